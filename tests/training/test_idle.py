"""The next trial of a kind takes the last one's model and recorded steps over, and trains as if it were the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.config import TrialConfig
from finetune.errors import Interrupted
from finetune.models.backbone import forget_backbones
from finetune.training import loop, signals
from finetune.training.graphs import StepGraphs, graphs_for
from finetune.training.recorders import EagerTwin
from finetune.trial import idle, run_trial

LAYERS = 4
pytestmark = pytest.mark.usefixtures("device_of_its_own")


class Binding(EagerTwin):
    """A replay reads and writes where the tensors lay when it was recorded, as a CUDA graph does."""

    recorded = 0

    def __init__(self):
        self.graphs = None

    def record(self, run):
        Binding.recorded += 1
        before = self.places()

        def replay():
            assert self.places() == before, "the model or its moments lie elsewhere than when the step was recorded"
            run()

        return replay

    def places(self):
        trainer = self.graphs.trainer
        tensors = [*trainer.classifier.parameters(), *trainer.classifier.buffers(), *self.graphs._held.values(),
                   *(value for state in trainer.optimizer.state.values() for value in state.values()),
                   *(group["lr"] for group in trainer.optimizer.param_groups)]
        weights = [] if trainer.class_weights is None else [trainer.class_weights]
        return [tensor.data_ptr() for tensor in [*tensors, *weights]]


@pytest.fixture
def trial(tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    idle.forget_idle()
    Binding.recorded = 0

    def recording(trainer, recorder=None):
        made = graphs_for(trainer, recorder or Binding())
        if made is not None:
            made.recorder.graphs = made
        return made

    monkeypatch.setattr(loop, "graphs_for", recording)

    def run(observer=None, output_dir=None, **changes):
        knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 64, "evaluation_size": 32, "max_length": 48,
                 "subset_seed": 0, "num_train_epochs": 3, "per_device_train_batch_size": 8, "freeze_depth": 1,
                 "learning_rate": 1e-3, "head_learning_rate": 1e-2, "seed": 1, **changes}
        return run_trial(TrialConfig.from_mapping(knobs), observer=observer, output_dir=output_dir)

    yield run
    idle.forget_idle()


def waiting():
    return [one for one in idle._idle.values() if one.graphs is not None]


def assert_same(found, expected):
    assert found.record.weights == expected.record.weights and found.record.metrics == expected.record.metrics
    for name, values in expected.predictions.items():
        assert np.array_equal(found.predictions[name], values), name


@pytest.mark.parametrize("changes", [
    {}, {"freeze_depth": 0}, {"freeze_depth": 3}, {"freeze_depth": -1}, {"mixed_precision": "bf16"},
    {"class_weights": "balanced"}, {"head_size": 12, "layer_decay": 0.8}, {"pooling": "cls"},
    {"prefix_cache": False}, {"num_train_epochs": 5},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}], ids=str)
def test_the_second_trial_is_as_the_first_would_have_been(trial, changes):
    expected = trial(**changes, seed=2, learning_rate=3e-4)
    idle.forget_idle()
    trial(**changes, seed=1)
    kept, = waiting()
    assert bool(kept.graphs._passes) == (changes.get("num_train_epochs") == 5)
    recorded = Binding.recorded
    second = trial(**changes, seed=2, learning_rate=3e-4)
    assert waiting()[0].classifier is kept.classifier and waiting()[0].graphs is kept.graphs
    assert second.record.state == "complete" and Binding.recorded - recorded <= 1, "a shape that the first had not met"
    assert_same(second, expected)


def test_another_kind_gets_its_own(trial):
    trial()
    kept, = waiting()
    for changes in ({"freeze_depth": 2}, {"weight_decay": 0.3}, {"head_dropout": 0.4}, {"max_grad_norm": 0.1},
                    {"class_weights": "balanced"}, {"per_device_train_batch_size": 4}):
        trial(**changes)
        other, = waiting()
        assert other.classifier is not kept.classifier and other.graphs is not kept.graphs
        kept = other


def test_rates_that_make_other_groups_are_recorded_anew(trial):
    expected = trial(learning_rate=1e-2)
    idle.forget_idle()
    trial()
    recorded = Binding.recorded
    second = trial(learning_rate=1e-2)  # as the head's: one group of parameters instead of two
    assert Binding.recorded > recorded
    assert_same(second, expected)


@pytest.mark.parametrize("strategy", ["lp_ft:1", "suffix:1", "lora:2", "bitfit"])
def test_only_plain_depths_are_kept(trial, strategy):
    assert trial(strategy=strategy, freeze_depth=None).record.state == "complete" and not waiting()


def test_a_trial_that_failed_or_was_stopped_leaves_nothing(trial, tmp_path, monkeypatch):
    expected = trial(seed=2)
    trial()
    assert len(waiting()) == 1
    calls = []

    def check():
        calls.append(1)
        if len(calls) > 12:
            raise Interrupted(15)

    with monkeypatch.context() as patched:
        patched.setattr(signals, "check", check)
        with pytest.raises(Interrupted):
            trial(seed=2, output_dir=tmp_path / "out")
    assert not waiting()
    trial()  # what waits now must not be taken for what the checkpoint goes on with
    resumed = trial(seed=2, output_dir=tmp_path / "out")
    assert resumed.record.resumes and resumed.record.resumes[0]["step"] > 0
    assert_same(resumed, expected)
    assert not waiting()


def test_moments_start_from_zero_and_rates_are_the_new_ones():
    parameter = torch.nn.Parameter(torch.ones(3))
    graphs = StepGraphs(None, EagerTwin())

    def optimizer(rate, decay=0.1):
        made = torch.optim.AdamW([{"params": [parameter], "peak_lr": rate, "weight_decay": decay, "born": 0}], lr=rate)
        return made

    first, second = optimizer(1e-3), optimizer(1e-2)
    parameter.grad = torch.ones(3)
    first.step()
    graphs._optimizer = first
    assert graphs.with_fresh_moments(second) is second, "nothing was handed over"
    graphs.hand_over(None)
    assert graphs.with_fresh_moments(second) is first and first.param_groups[0]["peak_lr"] == 1e-2
    assert all(not tensor.any() for state in first.state.values() for tensor in state.values())
    graphs._steps["a shape"] = "recorded"
    graphs.hand_over(None)
    other = optimizer(1e-2, decay=0.2)
    assert graphs.with_fresh_moments(other) is other and not graphs._steps


def test_what_changed_between_two_trials_is_a_leak_of_the_second(trial):
    trial()
    kept, = waiting()
    frozen = next(name for name in kept.frozen)
    with torch.no_grad():
        kept.classifier.get_parameter(frozen).view(-1)[0] += 1
    try:
        record = trial(seed=2).record
        assert record.state == "failed" and record.error["kind"] == "leak" and frozen in record.error["message"]
        assert not waiting()
    finally:
        forget_backbones()  # the bytes were the pretrained model's own
