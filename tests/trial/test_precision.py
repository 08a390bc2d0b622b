"""`mixed_precision: auto`, and a second attempt in float32 for numbers that are finite there only."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from finetune.config import TrialConfig
from finetune.results import RecordStore
from finetune.training import precision
from finetune.trial import resolve_trial, run_trial
from finetune.trial.events import Observer


@pytest.fixture
def knobs(tiny_bert_dir, tmp_path):
    rows = "".join(json.dumps({"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2}) + "\n"
                   for i in range(40))
    (tmp_path / "films.jsonl").write_text(rows)
    return {"model_name_or_path": str(tiny_bert_dir), "dataset_name": str(tmp_path / "films.jsonl"),
            "num_train_epochs": 1, "max_length": 16, "output_dir": str(tmp_path / "out")}


@pytest.mark.parametrize(("fast", "becomes"), [(True, "bf16"), (False, "no")])
def test_auto_is_recorded_as_what_it_became(knobs, monkeypatch, fast, becomes):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: fast)
    record = run_trial(TrialConfig.from_mapping({**knobs, "mixed_precision": "auto"})).record
    assert record.config["mixed_precision"] == record.effective["mixed_precision"] == becomes
    said = resolve_trial(TrialConfig.from_mapping({**knobs, "mixed_precision": becomes}))
    assert record.trial_id == said.trial_id


def test_what_is_fast_is_a_fact_of_this_machine():
    amx = bool(torch.cpu._is_amx_tile_supported()) if not torch.accelerator.is_available() else None
    assert amx is None or precision.has_fast_bf16() is amx


@pytest.fixture
def finite_in_float32_only(tiny_bert_dir, tmp_path):
    """A bias of -3.4e38 before a GELU: finite in float32, where it gives 0, and -inf in bf16, where it gives NaN."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.intermediate.dense.bias"][0] = -torch.finfo(torch.float32).max
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


class Said(Observer):
    def __init__(self):
        self.sentences, self.records, self.retries = [], [], 0

    def retried(self):
        self.retries += 1

    def said(self, message):
        self.sentences.append(message)

    def finished(self, record, predictions):
        self.records.append(record)


def test_without_being_asked_a_trial_that_overflows_fails(knobs, finite_in_float32_only):
    config = TrialConfig.from_mapping({**knobs, "model_name_or_path": finite_in_float32_only, "freeze_depth": 2,
                                       "mixed_precision": "bf16"})
    assert run_trial(config).record.error["kind"] == "non-finite"


def test_asked_it_is_trained_once_more_in_float32(knobs, finite_in_float32_only):
    config = TrialConfig.from_mapping({**knobs, "model_name_or_path": finite_in_float32_only, "freeze_depth": 2,
                                       "mixed_precision": "bf16", "retry_in_float32": True})
    said = Said()
    outcome = run_trial(config, observer=said)
    record, plain = outcome.record, run_trial(config.replace(mixed_precision="no")).record
    assert record.state == "complete" and record.metrics == plain.metrics
    assert record.trial_id == resolve_trial(config).trial_id != plain.trial_id  # it stands for what was asked
    assert record.config["mixed_precision"] == "no" and record.retried["mixed_precision"] == "bf16"
    assert record.retried["error"]["kind"] == "non-finite"
    assert said.records == [record] and said.retries == 1
    assert any("once more in float32" in sentence for sentence in said.sentences)
    published = RecordStore(config.output_dir).publish(record, outcome.predictions)
    assert published.retried == record.retried and not list((RecordStore(config.output_dir).root / "checkpoints")
                                                            .glob("*"))


def test_a_failure_in_float32_too_is_a_failure(knobs, finite_in_float32_only):
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{finite_in_float32_only}/model.safetensors")
    weights["encoder.layer.0.intermediate.dense.bias"][0] = torch.nan
    save_file(weights, f"{finite_in_float32_only}/model.safetensors", {"format": "pt"})
    record = run_trial(TrialConfig.from_mapping({**knobs, "model_name_or_path": finite_in_float32_only,
                                                 "mixed_precision": "bf16", "retry_in_float32": True})).record
    assert record.state == "failed" and record.retried["mixed_precision"] == "bf16"
