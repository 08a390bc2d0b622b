"""Phases on two processes: ranks never diverge, and they train what one process with twice the batch trains."""

from __future__ import annotations

import json

import killing
import pytest
import ranks_driver
import torch
from safetensors.torch import load_file

PHASED = ["lp_ft:1", "gradual:1", "lisa:2/3", "auto:80"]
STRATEGIES = ["full", "prefix:2", *PHASED, "lora:2"]
EPOCHS = 3


def file_name(strategy):
    return strategy.replace(":", "-").replace("/", "-")


def run(count, folder, model, batch):
    trials = {
        file_name(strategy): {
            "model_name_or_path": str(model), "strategy": strategy, "train_size": 48, "evaluation_size": 12,
            "num_train_epochs": EPOCHS, "per_device_train_batch_size": batch, "learning_rate": 1e-3,
            "head_learning_rate": 1e-2, "head_dropout": 0.0, "prefix_cache": False,
        } for strategy in STRATEGIES
    }
    folder.mkdir()
    failed = killing.ranks(count, folder, ranks_driver.main, folder, trials)
    assert not failed, failed
    return folder


@pytest.fixture(scope="module")
def quiet_bert(tiny_bert_dir, tmp_path_factory):
    """The tiny BERT without dropout: each rank draws its own, so only then are numbers the same."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("quiet_bert")
    model = AutoModel.from_pretrained(tiny_bert_dir)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_ranks(quiet_bert, tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("two") / "out", quiet_bert, batch=4)


@pytest.fixture(scope="module")
def one_rank(quiet_bert, tmp_path_factory):
    return run(1, tmp_path_factory.mktemp("one") / "out", quiet_bert, batch=8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_have_the_same_weights_after_every_epoch(two_ranks, strategy):
    first, second = (load_file(two_ranks / f"{file_name(strategy)}.rank{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() and {name.partition("/")[0] for name in first} == {"1", "2", "3"}
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    moved = [name for name in first if name.startswith("3/") and not torch.equal(first[name], first["1/" + name[2:]])]
    assert any("head" in name for name in moved) and len(moved) > 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_what_one_does_with_twice_the_batch(two_ranks, one_rank, strategy):
    both = load_file(two_ranks / f"{file_name(strategy)}.rank0.safetensors")
    alone = load_file(one_rank / f"{file_name(strategy)}.rank0.safetensors")
    assert both.keys() == alone.keys()
    # Adam divides a gradient by its own size: where it is all rounding error (a bias of the keys), so is the step.
    for name in both:
        if "key.bias" not in name:
            torch.testing.assert_close(both[name], alone[name], atol=1e-4, rtol=1e-3, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_record_says_the_same_on_two_ranks(two_ranks, one_rank, strategy):
    both, alone = (json.loads((folder / f"{file_name(strategy)}.json").read_text()) for folder in (two_ranks, one_rank))
    assert both["state"] == "complete" and both["environment"]["processes"] == 2
    for key in ("trainable_parts", "trainable_parameters"):
        assert [entry[key] for entry in both["history"]] == [entry[key] for entry in alone["history"]]
    assert (len(both["freeze_plan"]) > 1) == (strategy in PHASED)
    assert both["freeze_plan"] == alone["freeze_plan"] and both["trial_id"] != alone["trial_id"]
