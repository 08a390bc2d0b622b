"""`finetune data` as a user runs it: what it prints, what it exits with, and that hostile text stays text."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.data.load import clear_memory
from finetune.display import plain

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    clear_memory()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny_model(tmp_path):
    """A folder with a config and a tokenizer of whole words: all that `finetune data` needs of a model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 4}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def described(capsys, *arguments):
    assert main(["data", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_list_holds_what_is_bundled(capsys):
    assert main(["data"]) == 0
    assert "rotten_tomatoes_mini\tbundled" in capsys.readouterr().out
    assert main(["data", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "rotten_tomatoes_mini"


def test_the_list_answers_at_once_and_loads_nothing_heavy():
    code = ("import sys; from finetune.cli import main; main(['data']); "
            "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])")
    began = time.monotonic()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - began < 5  # 0.4 s on an idle machine


def test_a_profile_counts_what_is_there(tmp_path, capsys, tiny_model):
    train = [{"text": f"text number {i}", "label": "ham" if i % 4 else "spam"} for i in range(40)]
    extra = (("Twice  SAID", "ham"), ("twice said", "spam"), ("", "ham"))
    train += [{"text": text, "label": label} for text, label in extra]
    write(tmp_path / "set", "train", train)
    write(tmp_path / "set", "dev", [{"text": "text number 1", "label": "ham"}, {"text": "new", "label": "spam"}])
    write(tmp_path / "set", "test", [{"text": "TWICE said", "label": "ham"}, {"text": "a b c d e", "label": "spam"}])
    found = described(capsys, tmp_path / "set", "--model", tiny_model)
    assert (found["task"], found["metric"], found["label_names"]) == ("classification", "accuracy", ["ham", "spam"])
    assert {name: split["rows"] for name, split in found["splits"].items()} == {"train": 42, "validation": 2, "test": 2}
    assert found["splits"]["train"]["labels"] == {"ham": 31, "spam": 11}
    assert found["splits"]["train"]["duplicates"] == 1
    lengths = {"unit": "tokens", "min": 2.0, "median": 3.5, "p95": 4.85, "p99": 4.97, "max": 5.0}
    assert found["splits"]["test"]["lengths"] == pytest.approx(lengths)
    assert found["overlap"] == {"train/validation": 1, "train/test": 1, "validation/test": 0}
    assert found["conflicting_labels"] == 1
    assert found["empty_rows"] == 1
    assert found["rejected"] == [{"source": "train.jsonl", "line": 43, "reason": "'text' is empty"}]
    assert found["columns"]["reasons"] == {"text": "a usual name for a text", "label": "a usual name for a label"}
    assert {example["label"] for example in found["examples"]} == {"ham", "spam"}
    assert found["baseline"]["test"] == 0.5


@pytest.mark.parametrize(("label", "task", "metric"), [
    (lambda i: i / 7, "regression", "pearson"), (lambda i: ["a", "b"][: i % 3], "multilabel", "f1_micro"),
    (lambda i: f"class {i % 30}", "classification", "accuracy"),
])
def test_every_task_is_shown(tmp_path, capsys, tiny_model, label, task, metric):
    rows = [{"sentence1": f"text {i}", "sentence2": f"more {i}", "label": label(i)} for i in range(300)]
    write(tmp_path / "set", "train", rows)
    assert main(["data", str(tmp_path / "set"), "--model", str(tiny_model)]) == 0
    shown = capsys.readouterr().out
    assert f": {task}" in shown
    assert f"metric {metric}" in shown
    assert "# columns" in shown
    assert "sentence2\tpair" in shown


def test_lengths_are_in_words_when_the_default_model_is_not_here(tmp_path, capsys, monkeypatch):
    write(tmp_path / "set", "train", [{"text": f"text number {i}", "label": i % 2} for i in range(40)])
    monkeypatch.setattr("finetune.models.sources.PACKAGE", "not-installed")
    found = described(capsys, tmp_path / "set")
    assert found["splits"]["train"]["lengths"]["unit"] == "words"
    assert any(note.startswith("lengths are in words: ") for note in found["notes"])


def test_a_folder_with_configurations_lists_them(tmp_path, capsys):
    rows = [{"text": f"text number {i}", "label": i % 2} for i in range(40)]
    write(tmp_path / "all" / "cola", "train", rows)
    write(tmp_path / "all" / "mrpc", "train", rows)
    assert described(capsys, tmp_path / "all") == {"name": str(tmp_path / "all"), "configurations": ["cola", "mrpc"]}
    assert described(capsys, tmp_path / "all", "cola")["config"] == "cola"


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["nothing.csv"], 4, "no such file"), (["rotten_tomatoes_min"], 5, "did you mean rotten_tomatoes_mini"),
    (["rotten_tomatoes_mini", "x"], 4, "there are none; leave it out"), (["--search", "x"], 5, "cannot be reached"),
    (["rotten_tomatoes_mini", "--search", "x"], 2, "without a NAME"),
    (["rotten_tomatoes_mini", "--text_column", "txt"], 4, "did you mean text"),
    (["rotten_tomatoes_mini", "--task", "clasification"], 2, "did you mean classification"),
    (["rotten_tomatoes_mini", "--model", "/no/such/model"], 5, "no such folder"),
])
def test_mistakes_end_in_one_sentence_and_their_exit_code(capsys, arguments, code, words):
    assert main(["data", *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


HOSTILE = "\x1b]0;owned\x07\x1b[31mred [bold]x[/bold] [link=file:///etc/passwd]\u202egnp.exe\r\nsecond\tline"


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_reaches_the_terminal_as_plain_characters(tmp_path, capsys, monkeypatch, tiny_model, terminal):
    rows = [{"text": f"{HOSTILE} {i}", "label": f"[red]{'yes' if i % 2 else 'no'}\x1b[2J"} for i in range(40)]
    write(tmp_path / "set", "train", [*rows, {"text": "", "label": HOSTILE}, "\x1b[2J"])
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", str(tmp_path / "set"), "--model", str(tiny_model)]) == 0
    shown = capsys.readouterr().out
    assert ("┃" in shown) == terminal
    drawn = shown.replace("\x1b[1m", "").replace("\x1b[0m", "")  # rich's own bold
    assert not any(ord(c) < 32 and c not in "\n\t" for c in drawn)
    assert "\u202e" not in drawn
    assert "[bold]x[/bold]" in drawn
    assert "[red]yes" in drawn


def test_plain_is_one_line_and_printable():
    assert plain(HOSTILE) == ("\\x1b]0;owned\\x07\\x1b[31mred [bold]x[/bold] [link=file:///etc/passwd]\\u202egnp.exe "
                              "second line")
    assert plain("\ud800 é 漢字 😀") == "\\ud800 é 漢字 😀"
    assert plain("abcdef", 4) == "abc…"


def test_output_into_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m finetune data rotten_tomatoes_mini --json | head -c 5"
    answer = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT,
                            env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert "Traceback" not in answer.stderr
