"""`finetune layers`: the parts, what trains, and the audit, on a tiny BERT."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from finetune.cli import main


def run(capsys, *argv):
    code = main(["layers", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_parts_add_up_and_say_what_trains(tiny_bert_dir, capsys):
    code, out, _ = run(capsys, tiny_bert_dir, "--freeze_depth", 2, "--json")
    described = json.loads(out)
    parts = {row["part"]: row for row in described["parts"]}
    assert code == 0 and list(parts) == ["embeddings", *(f"layer.{i}" for i in range(4)), "top", "head"]
    assert sum(row["parameters"] for row in parts.values()) == described["parameters"]
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1)
    assert [name for name, row in parts.items() if row["trainable"]] == ["layer.2", "layer.3", "head"]
    assert described["audit"] is None and described["deepest_trainable_layer"] == 2


@pytest.mark.parametrize(("asked", "deepest"), [("--freeze_depth=3", 3), ("--strategy=head_only", 4),
                                                ("--strategy=bitfit", -1), ("--strategy=suffix:1", -1)])
def test_the_audit_reports_what_backpropagation_reached(tiny_bert_dir, capsys, asked, deepest):
    code, out, _ = run(capsys, tiny_bert_dir, asked, "--audit", "--json")
    audit = json.loads(out)["audit"]
    assert code == 0 and audit["leaks"] == [] and audit["deepest_trainable_layer"] == deepest
    assert audit["trainable_with_gradient"] > 0 and audit["trainable_without_gradient"] == []


def test_phases_are_shown_by_epoch(tiny_bert_dir, capsys):
    _, out, _ = run(capsys, tiny_bert_dir, "--strategy", "gradual:1", "--num_train_epochs", 3)
    assert "1\thead\t66" in out and "2\tlayer.3, head" in out and "3\tlayer.2-3, head" in out


def test_the_summary_shows_modules_and_which_train(tiny_bert_dir, capsys):
    code, out, _ = run(capsys, tiny_bert_dir, "--freeze_depth", 1)
    assert code == 0 and "BertLayer" in out and "Trainable params: 25,698" in out
    assert "BertLayer" not in run(capsys, tiny_bert_dir, "--freeze_depth", 1, "--parts_only")[1]


@pytest.mark.parametrize(("argv", "says"), [
    (["--freeze_depth=9"], "-1 to 4"), (["--strategy=prefx:2"], "did you mean prefix:4"),
    (["--strategy=train:2-9"], "layers 0 to 3"),
])
def test_a_wrong_request_is_one_sentence_and_exit_2(tiny_bert_dir, capsys, argv, says):
    code, out, err = run(capsys, tiny_bert_dir, *argv)
    assert code == 2 and says in err and out == "" and err.count("\n") == 1


def test_help_does_not_import_torch():
    code = ("import sys\nfrom finetune.cli import main\n"
            "try: main(['layers', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
