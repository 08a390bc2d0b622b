"""Recorded training steps: with a twin that records nothing, everything but the recording leaves the numbers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import build
from training import trainer_for

from finetune.config import KNOBS, TrialConfig
from finetune.training import graphs, loop
from finetune.training.graphs import StepGraphs, graphs_for, make_recordable
from finetune.training.recorders import EagerTwin
from finetune.trial import run_trial

KNOBS_OF_20_STEPS = {"num_train_epochs": 5, "learning_rate": 1e-3, "head_learning_rate": 1e-3, "freeze_depth": 1}


def losses(recorder=None, count=16, family="BERT", **knobs):
    """Of every step, and the trainer; by `recorder` where there is one."""
    torch.manual_seed(0)
    trainer = trainer_for(build(family), count=count, **{**KNOBS_OF_20_STEPS, **knobs})
    trainer.said = said = []
    trainer.said = said.append
    if recorder is not None:
        trainer.graphs = StepGraphs(trainer, recorder)
    found, original = [], trainer._step

    def noting(window):
        found.append(float(original(window)))
        return torch.tensor(found[-1], dtype=torch.float64)

    trainer._step = noting
    for epoch in range(1, trainer.config.num_train_epochs + 1):
        trainer.train_epoch(epoch, lambda: None)
        trainer.end_epoch()
    trainer.check_frozen()
    return found, trainer, said


class Counting(EagerTwin):
    def __init__(self):
        self.recorded = 0

    def record(self, run):
        self.recorded += 1
        return run


@pytest.mark.parametrize("knobs", [{}, {"mixed_precision": "bf16"}, {"max_grad_norm": 0.0}, {"freeze_depth": 3},
                                   {"strategy": "lp_ft:2", "freeze_depth": None}], ids=str)
def test_twenty_steps_are_those_of_eager_training_dropout_included(knobs):
    eager, plain, _ = losses(**knobs)
    replayed, trainer, said = losses(EagerTwin(), **knobs)
    phases = len(trainer.phases)
    assert trainer.graphs.refused is None and not said
    assert len(eager) == 20 and trainer.graphs.replays == 20 - phases, "the first step of a plan is audited"
    np.testing.assert_allclose(replayed, eager, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(trainer.classifier.named_parameters(), plain.classifier.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(plain.optimizer.param_groups[0]["lr"], rel=1e-6)


def test_a_ragged_last_batch_is_recorded_too():
    eager, _, _ = losses(count=18)
    replayed, trainer, _ = losses(EagerTwin(), count=18)
    assert len(eager) == 25 and trainer.graphs.replays == 25 - 1
    np.testing.assert_allclose(replayed, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("knobs, count, steps", [
    ({}, 32, 20), ({"mixed_precision": "bf16"}, 32, 20), ({"strategy": "lp_ft:2", "freeze_depth": None}, 32, 20),
    ({"gradient_accumulation_steps": 3}, 32, 15), ({}, 36, 25), ({"max_grad_norm": 0.0}, 30, 20)], ids=str)
def test_micro_batches_are_added_up_as_in_eager_training(knobs, count, steps):
    """Windows that are full, short (a single micro-batch at last), and ragged."""
    knobs = {"gradient_accumulation_steps": 2, **knobs}
    eager, plain, _ = losses(count=count, **knobs)
    replayed, trainer, said = losses(EagerTwin(), count=count, **knobs)
    assert trainer.graphs.refused is None and not said
    assert len(eager) == steps and trainer.graphs.replays == steps - len(trainer.phases)
    bf16 = knobs.get("mixed_precision") == "bf16"
    np.testing.assert_allclose(replayed, eager, rtol=1e-5, atol=1e-5)
    # AdamW makes a whole step of a gradient that is rounding alone (a key's bias): in bf16 there are many.
    atol = 2 * 1e-3 * steps if bf16 else 1e-5
    for (name, ours), theirs in zip(trainer.classifier.named_parameters(), plain.classifier.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_recording_that_fails_in_the_middle_of_a_window_loses_none_of_its_micro_batches(nth):
    class BreaksLate(Counting):
        def record(self, run):
            if self.recorded + 1 == nth:
                raise RuntimeError("no longer")
            return super().record(run)

    knobs = {"gradient_accumulation_steps": 3, "num_train_epochs": 7}
    eager, plain, _ = losses(count=32, **knobs)
    found, trainer, said = losses(BreaksLate(), count=32, **knobs)
    assert (trainer.graphs.refused is None) == (not said), "a trial of fewer shapes never comes to the nth"
    assert trainer.graphs.refused or trainer.graphs.recorder.recorded < nth
    np.testing.assert_allclose(found, eager, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(trainer.classifier.named_parameters(), plain.classifier.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_a_parameter_without_a_gradient_is_left_alone_by_the_update_of_a_window():
    """A gradient of zeros would let AdamW decay it."""
    _, trainer, _ = losses(EagerTwin(), count=32, gradient_accumulation_steps=2)
    reached = {name for name, p in trainer.classifier.named_parameters() if p in trainer.graphs._held}
    assert reached == {name for name, p in trainer.classifier.named_parameters() if p in trainer.optimizer.state}


def test_what_comes_once_per_epoch_is_not_recorded_in_a_short_trial():
    knobs = {"num_train_epochs": 4, "learning_rate": 1e-3}
    _, trainer, _ = losses(EagerTwin(), count=18, **knobs)
    trainer.logits(trainer.train)
    assert trainer.graphs.replays == 4 * 4 - 1 and not trainer.graphs._passes


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_evaluation_is_recorded_once_per_shape_and_gives_the_same_logits(precision):
    _, trainer, _ = losses(Counting(), mixed_precision=precision)
    recorded = trainer.graphs.recorder.recorded
    found = [trainer.logits(trainer.train) for _ in range(3)]
    passes = trainer.graphs.recorder.recorded - recorded
    assert passes == len(trainer.graphs._passes) >= 1, "not again for the second and third time"
    trainer.graphs = None
    eager = trainer.logits(trainer.train)
    assert all(np.array_equal(logits, eager) for logits in found)


def test_weights_that_are_put_into_place_are_those_that_a_recorded_pass_reads():
    _, trainer, _ = losses(Counting())
    before, weights = trainer.logits(trainer.train), trainer.weights()
    trainer.classifier.load_state_dict({name: tensor * 1.5 for name, tensor in weights.items()}, strict=False)
    assert not np.allclose(trainer.logits(trainer.train), before)
    trainer.classifier.load_state_dict(weights, strict=False)
    assert np.array_equal(trainer.logits(trainer.train), before)


def test_an_evaluation_that_cannot_be_recorded_leaves_the_steps_recorded():
    _, trainer, said = losses(Counting())
    expected = trainer.logits(trainer.train)
    trainer.graphs._passes.clear()
    trainer.graphs.recorder.record = Breaks(RuntimeError("not while it is recorded\nat line 3")).record
    trainer.graphs.recorder.forget_failure = lambda: None
    assert np.array_equal(trainer.logits(trainer.train), expected) and np.array_equal(
        trainer.logits(trainer.train), expected)
    assert trainer.graphs.refused is None and len(said) == 1 and "evaluation" in said[0] and "\n" not in said[0]


def test_the_layer_from_which_a_batch_is_computed_decides_which_recording_serves():
    _, trainer, _ = losses(Counting())
    inputs = trainer.batch(np.arange(4))[0]
    trainer.starts_at = lambda split: 2
    served = trainer.graphs._key(inputs, trainer.train)
    trainer.starts_at = lambda split: 1
    assert trainer.graphs._key(inputs, trainer.train) != served


def test_the_masks_of_two_replays_differ():
    recorded = losses(EagerTwin(), learning_rate=1e-12, head_learning_rate=1e-12, head_dropout=0.5)[0]
    assert len(set(recorded)) == len(recorded)


class Breaks(EagerTwin):
    """A driver that refuses the n-th recording after it has half begun."""

    def __init__(self, error):
        self.error, self.forgotten = error, 0

    def record(self, run):
        raise self.error

    def forget_failure(self):
        self.forgotten += 1


@pytest.mark.parametrize("error, reason", [
    (RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors"), "not permitted"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "no memory"),
    (ValueError(), "ValueError"),
])
def test_what_cannot_be_recorded_is_computed_with_one_sentence(error, reason):
    eager, _, _ = losses()
    found, trainer, said = losses(Breaks(error))
    assert found == pytest.approx(eager, rel=1e-6) and trainer.graphs.replays == 0
    assert len(said) == 1 and reason in said[0] and "\n" not in said[0] and trainer.graphs.recorder.forgotten == 1


def test_a_model_that_draws_on_the_host_is_seen():
    with graphs.draws_undone(torch.device("cpu")) as drawn:
        before = np.random.get_state()[1].copy()
        np.random.rand()
    assert drawn.on_host and (np.random.get_state()[1] == before).all()
    with graphs.draws_undone(torch.device("cpu")) as drawn:
        torch.rand(3)
    assert not drawn.on_host, "on a CPU that is the device's own generator"


def test_one_recording_per_shape_and_none_of_an_earlier_plan():
    _, trainer, _ = losses(Counting(), strategy="lp_ft:2", freeze_depth=None)
    made = trainer.graphs.recorder.recorded
    shapes = {trainer.train.width(rows) for epoch in range(1, 6)
              for rows in loop.training_batches(trainer.train.encoded.lengths, 4, 1, epoch)}
    assert len(shapes) <= made <= 2 * len(shapes) and len(trainer.graphs._steps) <= len(shapes)


def test_learning_rates_are_written_where_a_recording_reads_them():
    trainer = trainer_for(build("BERT"), **KNOBS_OF_20_STEPS)
    trainer.enter(1)
    make_recordable(trainer.optimizer, torch.device("cpu"))
    place = trainer.optimizer.param_groups[0]["lr"]
    loop.set_learning_rates(trainer.optimizer, trainer.config, 3, 20)
    assert trainer.optimizer.param_groups[0]["lr"] is place and float(place) > 0


@pytest.mark.parametrize("knobs", [{"auto_micro_batch": True}, {"gradient_checkpointing": True},
                                   {"cuda_graphs": "false"},
                                   {"num_train_epochs": 1}], ids=str)
def test_where_it_cannot_be_done_or_does_not_pay_nothing_is_recorded(knobs):
    trainer = trainer_for(build("BERT"), count=64 if "num_train_epochs" not in knobs else 16,
                          **{**KNOBS_OF_20_STEPS, **knobs})
    assert graphs_for(trainer, EagerTwin()) is None
    assert trainer.graphs is None, "and never on a CPU"


@pytest.mark.parametrize("knobs, reason", [({"auto_micro_batch": True}, "auto_micro_batch"),
                                           ({"gradient_checkpointing": True}, "gradient_checkpointing")])
def test_who_asks_for_what_cannot_be_recorded_is_told_why(knobs, reason):
    trainer = trainer_for(build("BERT"), count=16, **{**KNOBS_OF_20_STEPS, **knobs, "cuda_graphs": "true"})
    said = []
    trainer.said = said.append
    assert graphs_for(trainer, EagerTwin()) is None and len(said) == 1 and reason in said[0]


def test_the_knob_is_no_part_of_a_trials_identity(tiny_bert_dir):
    assert KNOBS["cuda_graphs"].in_trial_id == "no"
    assert TrialConfig.from_mapping({"cuda_graphs": True}).cuda_graphs == "true"
    assert TrialConfig.from_mapping({"cuda_graphs": "false"}).cuda_graphs == "false"


def test_a_whole_trial_with_reuse_and_the_twin_is_that_of_eager_steps(tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 40, "evaluation_size": 20, "max_length": 24,
             "num_train_epochs": 2, "per_device_train_batch_size": 8}
    for depth in (0, 2, 4):
        config = TrialConfig.from_mapping({**knobs, "freeze_depth": depth})
        monkeypatch.undo()
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
        plain = run_trial(config)
        made = []
        monkeypatch.setattr(loop, "graphs_for", lambda trainer, made=made: made.append(
            StepGraphs(trainer, EagerTwin())) or made[-1])
        found = run_trial(config)
        assert made[-1].replays == 9 and made[-1].refused is None
        np.testing.assert_allclose(found.predictions["test_logits"], plain.predictions["test_logits"], atol=1e-4)
        assert found.record.prefix["used"] == (depth > 0)
