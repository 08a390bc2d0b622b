"""Heads that train as a stack: as they would alone, and whatever lies in the other slots."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from finetune.config import TrialConfig
from finetune.errors import Interrupted
from finetune.sweep.plan import Description, Plan
from finetune.sweep.search.trials import Candidate
from finetune.training import head_stack as module
from finetune.training import signals
from finetune.training.head_stack import Common, common_width
from finetune.trial import head_stacks, idle, run_trial
from finetune.trial.events import Observer

LAYERS = 4
pytestmark = pytest.mark.usefixtures("device_of_its_own")
SECONDS = {"train_seconds", "evaluation_seconds", "step_seconds", "peak_memory_bytes"}


@pytest.fixture
def trial(tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    head_stacks.configure([])
    head_stacks._trained.clear()

    def run(stacked=True, observer=None, output_dir=None, **changes):
        monkeypatch.setattr(head_stacks, "STACKED_ON", {"cpu", "cuda"} if stacked else set())
        return run_trial(TrialConfig.from_mapping(knobs_of(tiny_bert_dir, **changes)), observer=observer,
                         output_dir=output_dir)

    yield run
    head_stacks.configure([])
    head_stacks._trained.clear()


def knobs_of(model, **changes):
    return {"model_name_or_path": str(model), "train_size": 90, "evaluation_size": 32, "max_length": 48,
            "subset_seed": 0, "num_train_epochs": 3, "per_device_train_batch_size": 8, "freeze_depth": LAYERS,
            "head_learning_rate": 1e-2, "seed": 1, **changes}


def content(outcome):
    """All of a record that is not time."""
    record = outcome.record.as_json()
    history = [{name: value for name, value in entry.items() if name not in SECONDS} for entry in record["history"]]
    return {name: record[name] for name in ("trial_id", "state", "metrics", "last_epoch_metrics", "best_epoch",
                                            "weights", "details")}, history


def assert_same(found, expected):
    assert content(found) == content(expected)
    for name, values in expected.predictions.items():
        assert np.array_equal(found.predictions[name], values), name


@pytest.mark.parametrize("changes", [
    {}, {"head_dropout": 0.0}, {"head_size": 20, "head_dropout": 0.4}, {"max_grad_norm": 0.05},
    {"weight_decay": 0.3}, {"class_weights": "balanced"},
    {"lr_scheduler_type": "cosine", "warmup_ratio": 0.3}, {"pooling": "cls"}, {"mixed_precision": "bf16"}], ids=str)
def test_a_stacked_head_trains_as_it_would_alone(trial, changes):
    found, expected = trial(**changes), trial(stacked=False, **changes)
    assert found.record.prefix["head_slots"] == 64 and "head_slots" not in expected.record.prefix
    assert found.record.trial_id == expected.record.trial_id
    close = 0.02 if "mixed_precision" in changes else 1e-4 if torch.cuda.is_available() else 1e-5
    for ours, theirs in zip(found.record.history, expected.record.history, strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], abs=close)
        assert ours["train"]["learning_rate"] == pytest.approx(theirs["train"]["learning_rate"], rel=1e-6)
        assert ours["train"]["padding_share"] == theirs["train"]["padding_share"]
    if "mixed_precision" not in changes:
        np.testing.assert_allclose(found.predictions["test_logits"], expected.predictions["test_logits"],
                                   atol=1e-3 if torch.cuda.is_available() else 1e-4)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_other_tasks_too(trial, tmp_path, task):
    rng, lines = np.random.default_rng(0), []
    for index in range(120):
        label = float(rng.normal(50, 9)) if task == "regression" else [name for name in "abc" if rng.random() < 0.4]
        lines.append(json.dumps({"text": f"words {index} and {rng.integers(99)}",
                                 "label" if task == "regression" else "labels": label}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    knobs = {"dataset_name": str(tmp_path), "train_size": None, "task": task}
    found, expected = trial(**knobs), trial(stacked=False, **knobs)
    assert "head_slots" in found.record.prefix
    np.testing.assert_allclose(found.predictions["test_logits"], expected.predictions["test_logits"], rtol=1e-4,
                               atol=1e-4)


def test_neighbours_change_no_bit(trial, tiny_bert_dir):
    own = {"seed": 3, "head_size": 20, "head_dropout": 0.2}
    alone = trial(**own)
    others = [{"seed": seed, "head_size": size, "head_learning_rate": rate, "weight_decay": decay, "head_dropout": drop}
              for seed, size, rate, decay, drop in [(1, 32, 1e-3, 0.0, 0.1), (2, 7, 3e-2, 0.5, 0.0),
                                                    (4, 20, 1e-2, 0.01, 0.6), (5, 31, 10.0, 0.01, 0.1)]]
    head_stacks.configure([knobs_of(tiny_bert_dir, **knobs) for knobs in [*others[:2], own, *others[2:]]])
    among = trial(**own)
    assert len(head_stacks._trained) == 4, "the others are there when they are asked for"
    assert_same(among, alone)
    second = trial(**others[0])
    assert len(head_stacks._trained) == 3 and second.record.state == "complete"
    head_stacks.configure([])
    head_stacks._trained.clear()
    assert_same(trial(**others[0]), second)


@pytest.mark.parametrize("changes", [{}, {"mixed_precision": "bf16", "head_size": 20}, {"pooling": "cls"}], ids=str)
def test_the_next_head_takes_over_the_backbone(trial, changes):
    idle.forget_idle()
    first = trial(**changes, seed=2, head_dropout=0.2)
    kept, = idle._idle.values()
    trial(**changes, seed=3, head_dropout=0.4)
    again, = idle._idle.values()
    assert again.classifier is kept.classifier
    assert_same(trial(**changes, seed=2, head_dropout=0.2), first)


def test_a_head_that_diverges_leaves_its_neighbours_alone(tiny_bert_dir, trial, monkeypatch):
    alone = trial(seed=2)
    original = head_stacks._member

    def spoiled(run, config):
        member = original(run, config)
        if config.seed == 1:
            with torch.no_grad():
                member.head.linears[0].weight.fill_(torch.inf)
        return member

    monkeypatch.setattr(head_stacks, "_member", spoiled)
    head_stacks.configure([knobs_of(tiny_bert_dir, seed=seed) for seed in (1, 2)])
    failed = trial(seed=1).record
    assert failed.state == "failed" and failed.error["kind"] == "non-finite"
    assert len(head_stacks._trained) == 1
    assert_same(trial(seed=2), alone)


def test_dropout_differs_from_step_to_step_and_by_seed(trial):
    losses = [[entry["train"]["loss"] for entry in trial(seed=seed, head_dropout=0.5, head_learning_rate=1e-12)
               .record.history] for seed in (1, 2)]
    assert len({*losses[0], *losses[1]}) == 6


@pytest.mark.parametrize("changes", [{"freeze_depth": LAYERS - 1}, {"gradient_accumulation_steps": 2},
                                     {"checkpointing_steps": 5}, {"prefix_cache": False}, {"strategy": "lp_ft:1",
                                     "freeze_depth": None}, {"reinit_layers": 1}], ids=str)
def test_what_is_more_than_a_head_trains_as_ever(trial, changes):
    outcome = trial(**changes)
    assert outcome.record.state == "complete" and "head_slots" not in outcome.record.prefix


def test_who_shares_a_stack(tiny_bert_dir):
    def group(**changes):
        return head_stacks._group(TrialConfig.from_mapping(knobs_of(tiny_bert_dir, **changes)))

    assert group() == group(seed=9, head_learning_rate=1.0, weight_decay=0.0, head_dropout=0.5, learning_rate=1.0)
    assert group(head_size=33) == group(head_size=64) != group(head_size=65)
    assert group() != group(head_size=8) and group() != group(num_train_epochs=4)
    assert group(subset_seed=None) != group(subset_seed=None, seed=2), "other rows"
    assert [common_width(size) for size in (0, 1, 32, 33, 256)] == [0, 32, 32, 64, 256]


def test_slots_follow_from_the_shapes_alone():
    def slots(width, hidden, outputs=2):
        return Common("classification", 100, width, hidden, outputs, 8, 1, None).slots

    assert slots(768, 0) == slots(768, 256) == 64 and slots(8192, 8192) < 8 and slots(65536, 65536) == 1


def test_masks_are_drawn_in_pieces_without_a_seam(trial, monkeypatch):
    monkeypatch.setattr(module, "MASK_BYTES", 1)
    losses = [entry["train"]["loss"] for entry in trial(head_dropout=0.5).record.history]
    assert len(set(losses)) == 3
    stack = module.Common("classification", 90, 32, 0, 2, 8, 3, None)
    assert stack.mask_steps == 1


def test_a_head_that_is_stopped_in_its_stack_starts_again(trial, tmp_path, monkeypatch):
    expected = trial(head_dropout=0.3)
    calls = iter([None, None])

    def check():
        if next(calls, "over") == "over":
            raise Interrupted(15)

    with monkeypatch.context() as patched:
        patched.setattr(signals, "check", check)
        with pytest.raises(Interrupted):
            trial(head_dropout=0.3, output_dir=tmp_path / "out")
    assert not head_stacks._trained
    again = trial(head_dropout=0.3, output_dir=tmp_path / "out")
    assert_same(again, expected)
    assert [entry["step"] for entry in again.record.resumes] == [0]


def test_out_of_memory_falls_back_to_training_alone(trial, monkeypatch):
    said = []

    class Listens(Observer):
        def said(self, message):
            said.append(message)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(head_stacks.HeadStack, "train", full)
    outcome = trial(observer=Listens())
    assert outcome.record.state == "complete" and "head_slots" not in outcome.record.prefix
    assert len(said) == 1 and "stack of heads" in said[0]


def test_a_plan_says_once_what_its_heads_share():
    def candidate(index, depth):
        values = {"dataset_name": "x", "freeze_depth": depth, "seed": index, "head_learning_rate": 10.0 ** -(index % 3)}
        return Candidate(f"{depth}-{index}", values)

    candidates = tuple(candidate(index, depth) for depth in (2, LAYERS) for index in range(200))
    descriptions = {one.trial_id: Description({"trial_id": one.trial_id, "setting_id": "any", "num_layers": LAYERS,
                                               "prefix_boundaries": [one.values["freeze_depth"]]})
                    for one in candidates}
    plan = Plan(None, "study", candidates, descriptions, {"output_dir": "out"}, len(candidates), (), False, [])
    shared, own = plan.heads()
    assert shared == {"dataset_name": "x", "freeze_depth": LAYERS, "output_dir": "out"}
    assert own[:2] == [{"seed": 0, "head_learning_rate": 1.0}, {"seed": 1, "head_learning_rate": 0.1}]
    assert len(own) == 200 and len(pickle.dumps(("heads", (shared, own)))) < 2**15, "a pipe holds twice that"
