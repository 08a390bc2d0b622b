"""Two ranks under torchrun are one rank with twice the batch: one W&B run, one record, the same figures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from wandb_stage import keys_in, stage, until

from finetune.config import TrialConfig
from finetune.results import RecordStore
from finetune.trial import run_trial

pytestmark = [pytest.mark.timeout(900),
              pytest.mark.skipif(torch.cuda.device_count() == 1, reason="NCCL refuses two ranks on one GPU")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
            "finetune.train"]
EQUAL = {"per_device_train_batch_size": 16, "train_size": 64, "head_dropout": 0.0}
# Sums of gradients are taken in another order; in 8 steps that moves fp32 logits by less than this.
TOLERANCE = 1e-4


@pytest.fixture
def staged(tmp_path, tiny_bert_dir):
    from transformers import BertModel

    model = tmp_path / "model"  # dropout draws from each rank's own stream: it has to be 0 for ranks to be equal
    backbone = BertModel.from_pretrained(tiny_bert_dir)
    backbone.config.hidden_dropout_prob = backbone.config.attention_probs_dropout_prob = 0.0
    backbone.save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((tiny_bert_dir / name).read_bytes())
    with stage(tmp_path, model) as director:
        yield director


def compare(staged, freeze_depth):
    (record,) = RecordStore(staged.folder / "out")
    two = RecordStore(staged.folder / "out").predictions(record)
    one = run_trial(TrialConfig.from_mapping({**staged.knobs(freeze_depth=freeze_depth), **EQUAL}))
    assert record.environment["processes"] == 2 and one.record.environment["processes"] == 1
    for split in ("validation", "test"):
        np.testing.assert_array_equal(two[f"{split}_ids"], one.predictions[f"{split}_ids"])
        np.testing.assert_array_equal(two[f"{split}_labels"], one.predictions[f"{split}_labels"])
        np.testing.assert_allclose(two[f"{split}_logits"], one.predictions[f"{split}_logits"], atol=TOLERANCE)
        assert record.metrics[split]["accuracy"] == one.record.metrics[split]["accuracy"]
        assert record.metrics[split]["loss"] == pytest.approx(one.record.metrics[split]["loss"], abs=TOLERANCE)
    for ours, theirs in zip(record.history, one.record.history, strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], abs=TOLERANCE)
    return record


def test_two_ranks_of_a_sweep_whose_command_passes_no_arguments(staged):
    """The main process reads what the agent drew and broadcasts it; it alone opens a run."""
    parameters = {**EQUAL, "per_device_train_batch_size": 8}
    sweep = staged.wandb_sweep(str(staged.sweep_file(command=TORCHRUN, freeze_depth=[2], **parameters)))
    staged.finish(staged.agent(sweep))
    record = compare(staged, 2)
    (run,) = staged.runs()
    assert run.state == "finished" and run.connections == 1 and record.wandb_run["id"] == run.name
    assert [row["epoch"] for row in run.rows()] == [1, 2]
    assert not keys_in(staged.texts()) and not staged.server.unknown
    until(lambda: not staged.left_behind(), "every process has ended", 60)


@pytest.mark.slow
@pytest.mark.parametrize("freeze_depth", [-1, 0, 4])
def test_two_ranks_equal_one_with_twice_the_batch(staged, freeze_depth):
    knobs = {**staged.knobs(freeze_depth=freeze_depth), **EQUAL, "per_device_train_batch_size": 8}
    code, output = staged.run(*TORCHRUN, *(f"--{name}={value}" for name, value in knobs.items()), WANDB_MODE="disabled")
    assert code == 0, output
    compare(staged, freeze_depth)


@pytest.mark.slow
def test_rows_that_do_not_fill_the_last_batch_are_counted_once(staged):
    """67 training rows and 19 of evaluation on two ranks: no duplicate of a tail enters a metric."""
    knobs = {**staged.knobs(freeze_depth=2), "train_size": 67, "evaluation_size": 19, "num_train_epochs": 1}
    code, output = staged.run(*TORCHRUN, *(f"--{name}={value}" for name, value in knobs.items()), "--json",
                              WANDB_MODE="disabled")
    assert code == 0, output
    (record,) = RecordStore(staged.folder / "out")
    predictions = RecordStore(staged.folder / "out").predictions(record)
    for split in ("validation", "test"):
        assert len(set(predictions[f"{split}_ids"])) == len(predictions[f"{split}_logits"]) == 19
    hits = predictions["test_logits"].argmax(1) == predictions["test_labels"]
    assert record.metrics["test"]["accuracy"] == hits.mean()
    assert sum(line.startswith('{"schema"') for line in output.splitlines()) == 1
    assert json.loads(next(line for line in output.splitlines() if line.startswith('{"schema"')))["trial_id"]
