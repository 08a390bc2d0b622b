"""Keeping the model: the delta, the whole folder, and predicting with both."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny_bert

from finetune.cli import main
from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.errors import EnvironmentProblem
from finetune.results import RecordStore
from finetune.saving.manifest import KeptModel, find_kept
from finetune.saving.predict import described, predict, read_texts
from finetune.saving.read import load_kept
from finetune.trial import run_trial

NAMES = {"negative", "positive"}
KEPT = {  # knobs -> how the names of what is kept begin, besides the head
    "prefix:3": ({"strategy": "prefix:3"}, ("backbone.encoder.layer.3.",)),
    "head_only": ({"strategy": "head_only", "head_size": 8}, ()),
    "lp_ft:1": ({"strategy": "lp_ft:1"}, ("backbone.embeddings.", "backbone.encoder.")),
    "lora:2": ({"strategy": "lora:2"}, ("backbone.encoder.layer.",)),
    "head_only, re-initialised": ({"strategy": "head_only", "reinit_layers": 1}, ("backbone.encoder.layer.3.",)),
}


def trial(folder, model, **knobs):
    config = TrialConfig.from_mapping({
        "model_name_or_path": str(model), "train_size": 32, "evaluation_size": 12, "num_train_epochs": 2,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2, "output_dir": str(folder),
        **knobs})
    outcome = run_trial(config)
    store = RecordStore(folder)
    return store.publish(outcome.record, outcome.predictions), store.folder(outcome.record.trial_id), outcome


@pytest.fixture(scope="module", params=KEPT)
def kept(request, tiny_bert_dir, tmp_path_factory):
    knobs, begins = KEPT[request.param]
    folder = tmp_path_factory.mktemp("kept")
    record, trial_folder, outcome = trial(folder, tiny_bert_dir, **knobs)
    return {"record": record, "folder": trial_folder, "outcome": outcome, "begins": begins, "root": folder}


@pytest.fixture(scope="module")
def exported(kept):
    target = kept["root"] / "exported"
    assert main(["export", str(kept["folder"]), str(target)]) == 0
    return target




def rows_tested(kept):
    split = load_task_data(TrialConfig()).splits["test"]
    position = {row: index for index, row in enumerate(split.ids)}
    return [split.texts[position[row]] for row in kept["outcome"].predictions["test_ids"]]


def test_by_default_a_trial_keeps_what_differs_from_the_base(kept):
    names = load_file(kept["folder"] / "model" / "delta.safetensors").keys()
    assert kept["record"].model["kind"] == "delta" and kept["record"].model["tensors"] == len(names)
    backbone = [name for name in names if not name.startswith("head.")]
    assert all(name.startswith(kept["begins"]) for name in backbone)
    first_is_best = kept["record"].effective["strategy"] == "lp_ft:1" and kept["record"].best_epoch == 1
    assert bool(backbone) == (bool(kept["begins"]) and not first_is_best)
    assert len(names) - len(backbone) == (4 if kept["record"].config["head_size"] else 2)


def test_the_manifest_names_the_base_by_name_revision_and_digest(kept, tiny_bert_dir):
    _, manifest = find_kept(kept["folder"])
    assert manifest.base.name == str(tiny_bert_dir.resolve()) and manifest.base.source == "path"
    assert manifest.base.digest == kept["record"].effective["model"] and len(manifest.base.digest) == 64


def test_the_delta_on_its_base_predicts_what_the_trial_tested(kept):
    logits = predict(load_kept(kept["folder"]), rows_tested(kept), 4)
    np.testing.assert_allclose(logits, kept["outcome"].predictions["test_logits"], atol=1e-5)


def test_the_exported_folder_predicts_the_same(kept, exported):
    logits = predict(load_kept(exported), rows_tested(kept), 64)
    np.testing.assert_allclose(logits, kept["outcome"].predictions["test_logits"], atol=1e-5)


def test_transformers_loads_the_exported_backbone_with_every_weight(kept, exported):
    from transformers import AutoModel, AutoTokenizer

    model, loading = AutoModel.from_pretrained(exported, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert AutoTokenizer.from_pretrained(exported)("good film").input_ids
    trained = load_kept(kept["folder"]).classifier
    if kept["record"].effective["strategy"] != "lora:2":
        weights = dict(model.named_parameters())
        assert all(torch.equal(p, weights[name]) for name, p in trained.backbone.named_parameters())


def test_the_card_s_own_lines_predict_with_transformers_alone(kept, exported, tmp_path, capsys):
    code = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace('"FOLDER"', repr(str(exported))).replace("'a text'", "'a warm , funny film'")
    capsys.readouterr()
    exec(code, {})
    printed = capsys.readouterr().out
    (tmp_path / "a.txt").write_text("a warm , funny film\n")
    texts = read_texts(tmp_path / "a.txt", None, ["text"])
    row = next(described(predict(load_kept(exported), texts, 1), load_kept(exported)))
    assert ast.literal_eval(printed) == pytest.approx(row["probabilities"], abs=1e-5)


def test_what_is_kept_names_labels_but_no_place_on_this_machine(kept, exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    for folder in (kept["folder"] / "model", exported):
        assert str(kept["root"]) not in (folder / "model.json").read_text()


def test_the_card_states_data_strategy_metrics_and_how_they_were_measured(kept, exported):
    record = kept["record"]
    for folder in (kept["folder"] / "model", exported):
        card = (folder / "README.md").read_text()
        assert f"Strategy `{record.effective['strategy']}`" in card and "rotten_tomatoes_mini" in card
        assert f"| accuracy | {record.metrics['validation']['accuracy']:.4f} | " \
               f"{record.metrics['test']['accuracy']:.4f} |" in card
        assert "validation chose the epoch" in card and record.trial_id[:12] in card and "Labels: negative" in card


@pytest.fixture(scope="module")
def one_kept(tiny_bert_dir, tmp_path_factory):
    return trial(tmp_path_factory.mktemp("one"), tiny_bert_dir, freeze_depth=3, num_train_epochs=1)[1]


def test_predict_writes_one_line_per_row_in_the_file_s_order(one_kept, tmp_path, capsys):
    texts = ["a warm , funny , engaging film .", "bad", "the script is a mess and the acting is worse ."]
    (tmp_path / "new.csv").write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)))
    assert main(["predict", str(one_kept), str(tmp_path / "new.csv")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert all(set(row["probabilities"]) == {"negative", "positive"} for row in rows)
    assert all(row["probability"] == max(row["probabilities"].values()) for row in rows)
    (tmp_path / "new.txt").write_text("\n".join(reversed(texts)) + "\n")
    assert main(["predict", str(one_kept), str(tmp_path / "new.txt"), "--output", str(tmp_path / "out.jsonl")]) == 0
    turned = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, same in zip(rows, reversed(turned), strict=True):
        assert row["probabilities"]["positive"] == pytest.approx(same["probabilities"]["positive"], abs=1e-5)


@pytest.mark.parametrize(("content", "name", "code", "says"), [
    ("title\nx\n", "a.csv", 0, ""), ("title,body\nx,y\n", "a.csv", 4, "no column 'text'"),
    ("id,text\n1,\n2,x\n", "a.csv", 4, "a.csv line 2: 'text' is empty; every row must be usable"),
    ("id,text\n1,\"x\ny\"\n2,\n", "a.csv", 4, "a.csv line 4: 'text' is empty"),
    ("id,text\n1,x\n2,y,z,w\n", "a.csv", 4, "line 3"), ("", "a.txt", 4, "no rows"),
    ("x\n\ny\n", "a.txt", 4, "a.txt line 2: 'text' is empty"), (bytes(range(256)), "a.txt", 4, "save it as UTF-8"),
    (None, "a.csv", 4, "there is no such file"), ("x", "a.docx", 4, "not a data format"),
])
def test_a_file_that_cannot_be_used_is_one_sentence(one_kept, tmp_path, capsys, content, name, code, says):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["predict", str(one_kept), str(tmp_path / name)]) == code
    captured = capsys.readouterr()
    assert says in captured.err and (code == 0 or (captured.err.count("\n") == 1 and not captured.out))


def test_texts_are_read_as_training_reads_them(tmp_path):
    """In whatever encoding, without what no tokenizer can read; numbers are texts; only a line's end ends a text."""
    (tmp_path / "a.txt").write_bytes("Das ist schön\r\nüber die Straße\u2026 größer".encode("cp1252"))
    assert read_texts(tmp_path / "a.txt", None, ["text"]) == [("Das ist schön",), ("über die Straße… größer",)]
    (tmp_path / "b.txt").write_text("one\u2028line\n", encoding="utf-8")
    assert read_texts(tmp_path / "b.txt", None, ["text"]) == [("one\u2028line",)]
    (tmp_path / "c.jsonl").write_text('{"text": "half a \\ud83d pair"}\n{"text": 7}\n')
    assert read_texts(tmp_path / "c.jsonl", None, ["text"]) == [("half a \ufffd pair",), ("7",)]


def test_predict_reads_texts_from_stdin(one_kept, monkeypatch, capsys):
    def predicted(texts):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts.encode())))
        code, captured = main(["predict", str(one_kept), "-"]), capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    code, rows, _ = predicted("a warm film\na mess\n")
    assert code == 0 and [row["row"] for row in rows] == [0, 1] and {row["label"] for row in rows} <= NAMES
    code, rows, told = predicted("a warm film\n \n")
    assert code == 4 and not rows and "stdin line 2: 'text' is empty" in told and told.count("\n") == 1


def test_a_folder_without_a_model_says_what_to_do(tmp_path, capsys):
    (tmp_path / "new.txt").write_text("x\n")
    assert main(["predict", str(tmp_path), str(tmp_path / "new.txt")]) == 2
    assert "holds no trained model" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "none"), str(tmp_path / "new.txt")]) == 2
    assert f"{tmp_path / 'none'} does not exist" in capsys.readouterr().err


def test_a_damaged_or_missing_file_is_refused(one_kept, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(one_kept / "model", broken)
    payload = bytearray((broken / "delta.safetensors").read_bytes())
    payload[-1] ^= 1
    (broken / "delta.safetensors").write_bytes(payload)
    with pytest.raises(EnvironmentProblem, match="delta.safetensors is damaged: its sha256 .* with --force"):
        find_kept(broken)
    (broken / "delta.safetensors").unlink()
    with pytest.raises(EnvironmentProblem, match="delta.safetensors is missing; copy the folder anew"):
        find_kept(broken)
    manifest = json.loads((broken / "model.json").read_text())
    del manifest["base"]["digest"]
    for content, says in ((json.dumps(manifest), "base: digest: Field required"), ('{"base":', "Invalid JSON")):
        (broken / "model.json").write_text(content)
        with pytest.raises(EnvironmentProblem, match=f"model.json is damaged .*{says}.* with --force"):
            find_kept(broken)


def test_a_delta_on_another_base_is_refused(one_kept, tmp_path):
    other = save_tiny_bert(tmp_path / "other", seed=5)
    moved = tmp_path / "moved"
    shutil.copytree(one_kept / "model", moved)
    manifest = KeptModel.model_validate_json((moved / "model.json").read_text())
    manifest.config["model_name_or_path"] = str(other)
    (moved / "model.json").write_text(manifest.model_dump_json())
    with pytest.raises(EnvironmentProblem, match="is a delta on .* its weights, config or tokenizer are others"):
        load_kept(moved)


def test_export_never_overwrites(one_kept, tmp_path, capsys):
    assert main(["export", str(one_kept), str(tmp_path)]) == 2
    assert "already there" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_save_model_true_keeps_the_whole_and_false_nothing(tiny_bert_dir, tmp_path):
    from transformers import AutoModel

    record, folder, outcome = trial(tmp_path / "whole", tiny_bert_dir, freeze_depth=4, num_train_epochs=1,
                                    save_model=True)
    assert record.model["kind"] == "full" and AutoModel.from_pretrained(folder / "model").config.hidden_size == 32
    kept = {"outcome": outcome}
    np.testing.assert_allclose(predict(load_kept(folder), rows_tested(kept), 8),
                               outcome.predictions["test_logits"], atol=1e-5)
    record, folder, _ = trial(tmp_path / "none", tiny_bert_dir, freeze_depth=4, num_train_epochs=1, save_model=False)
    assert record.model["kind"] == "none" and not (folder / "model").exists()


def test_save_model_does_not_make_another_trial(tiny_bert_dir, tmp_path):
    from finetune.trial import resolve_trial

    ids = {resolve_trial(TrialConfig.from_mapping({"model_name_or_path": str(tiny_bert_dir), "save_model": kept}))
           .trial_id for kept in (True, False, "delta", "True")}
    assert len(ids) == 1


def test_finetune_train_keeps_the_model_beside_the_record(tiny_bert_dir, tmp_path, monkeypatch, capsys):
    """Without output_dir: in the default directory."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"--model_name_or_path={tiny_bert_dir}", "--freeze_depth=4", "--train_size=16",
                 "--evaluation_size=8", "--num_train_epochs=1"]) == 0
    (folder,) = (tmp_path / "runs" / "single" / "trials").iterdir()
    assert {path.name for path in folder.iterdir()} == {"record.json", "predictions.npz", "model"}
    assert find_kept(folder)[1].trial_id == folder.name
