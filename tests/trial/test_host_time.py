"""What a trial does not do: a checkpoint that nobody needs, and frozen weights that travel to be looked at."""

from __future__ import annotations

import signal

import killing
import pytest
import torch
from families import build
from training import trainer_for

from finetune.config import TrialConfig
from finetune.errors import EnvironmentProblem, TrialFailed
from finetune.freezing import audit, checksum
from finetune.training.checkpoint import Checkpoints
from finetune.training.resume import restore_trainer, trainer_state
from finetune.trial import checkpoints as trial_module
from finetune.trial import run_trial


@pytest.fixture
def knobs(tiny_bert_dir):
    return {"model_name_or_path": str(tiny_bert_dir), "train_size": 16, "evaluation_size": 8, "num_train_epochs": 2,
            "per_device_train_batch_size": 8, "prefix_cache": False}


def saved(knobs, folder, monkeypatch):
    """The names of the checkpoints that a trial writes."""
    names, original = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, checkpoint: (names.append(checkpoint.name),
                                                                        original(self, checkpoint))[1])
    assert run_trial(TrialConfig.from_mapping(knobs), output_dir=folder).record.state == "complete"
    return names


def test_the_last_epochs_checkpoint_is_left_out_where_little_would_be_done_again(knobs, tmp_path, monkeypatch):
    assert saved(knobs, tmp_path, monkeypatch) == ["step-00000002-epoch-0001"]


def test_it_is_written_where_much_would_be(knobs, tmp_path, monkeypatch):
    monkeypatch.setattr(trial_module, "LITTLE_TO_DO_AGAIN_SECONDS", 0.0)
    assert saved(knobs, tmp_path, monkeypatch) == ["step-00000002-epoch-0001", "step-00000004-epoch-0002"]


class WhileTesting(killing.At):
    """Sends the signal when the first batch of the test split is padded."""

    def epoch_ended(self, epoch, entry):
        if epoch == 2:
            killing.WhileEvaluating(epoch, self.number).stepped(epoch, epoch, 0.0)
        return "continue"


@pytest.mark.fault("kill", "stopped while the test split is evaluated",
                   "the signal's checkpoint holds the last epoch; resumed, it equals an uninterrupted one")
def test_a_signal_while_the_test_split_is_evaluated_keeps_the_last_epoch(knobs, tmp_path):
    assert killing.run(knobs, tmp_path / "whole")[0] == 0
    code, said = killing.run(knobs, tmp_path / "stopped", WhileTesting(number=signal.SIGTERM))
    assert code == 143, said
    code, said = killing.run(knobs, tmp_path / "stopped")
    assert code == 0 and "resumed at 4 after 2 epochs" in said, said
    assert killing.result(tmp_path / "stopped") == killing.result(tmp_path / "whole")


@pytest.mark.fault("kill", "SIGKILL while the test split is evaluated",
                   "the last epoch, where it took under 30 s, is trained again; the result is the same, bit for bit")
def test_killed_while_the_test_split_is_evaluated(knobs, tmp_path):
    assert killing.run(knobs, tmp_path / "whole")[0] == 0
    assert killing.run(knobs, tmp_path / "killed", WhileTesting(number=signal.SIGKILL))[0] == -signal.SIGKILL
    code, said = killing.run(knobs, tmp_path / "killed")
    assert code == 0 and "resumed at 2 after 1 epochs" in said, said
    assert killing.result(tmp_path / "killed") == killing.result(tmp_path / "whole")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_a_checksum_sees_every_change_of_a_bit_and_of_places(dtype, monkeypatch):
    monkeypatch.setattr(checksum, "CHUNK", 16)
    tensor = torch.arange(1, 64).to(dtype).view(9, 7)
    (before,) = checksum.checksums([tensor])
    assert checksum.checksums([tensor.clone()]) == [before] == checksum.checksums([tensor.t().contiguous().t()])
    seen = {before}
    for index in range(63):
        changed = tensor.clone()
        changed.view(-1).view(torch.uint8)[index * dtype.itemsize] ^= 1
        seen |= set(checksum.checksums([changed]))
    swapped = tensor[torch.tensor([1, 0, *range(2, 9)])]
    seen |= set(checksum.checksums([swapped]))
    assert len(seen) == 65


def test_checksums_of_nothing_and_of_odd_sizes():
    assert checksum.checksums([]) == []
    odd = torch.ones(3, dtype=torch.bfloat16)
    assert checksum.checksums([odd, torch.ones(()), torch.empty(0)]) == checksum.checksums(
        [odd.clone(), torch.ones(()), torch.empty(0)])


def test_a_leak_is_found_by_the_devices_checksums(monkeypatch):
    trainer = trainer_for(build("BERT"), freeze_depth=2)
    trainer.enter(1)
    monkeypatch.setattr(audit, "frozen_digests", lambda classifier, plan: dict(zip(
        sorted(plan.frozen), checksum.checksums(dict(classifier.named_parameters())[name]
                                                for name in sorted(plan.frozen)), strict=True)))
    before = audit.frozen_digests(trainer.classifier, trainer.plan)
    audit.check_frozen(trainer.classifier, trainer.plan, before)
    with torch.no_grad():
        trainer.classifier.backbone.encoder.layer[1].output.dense.weight[0, 0] += 1e-6
    with pytest.raises(TrialFailed, match="encoder.layer.1.output.dense.weight is frozen and changed"):
        audit.check_frozen(trainer.classifier, trainer.plan, before)


def test_a_checkpoint_from_another_kind_of_device_is_not_refused_for_its_digests():
    trainer = trainer_for(build("BERT"), freeze_depth=2)
    trainer.enter(1)
    state, tensors = trainer_state(trainer)
    assert state["frozen_by"] == "xxh3"
    other = trainer_for(build("BERT"), freeze_depth=2)
    restore_trainer(other, {**state, "frozen_by": "bits", "frozen": "elsewhere"}, tensors)
    assert other.step == trainer.step


# -- written beside training, as on a GPU ----------------------------------------------------------------------------


class Beside(killing.At):
    """A trial whose checkpoints are written beside it, in a process of its own."""

    def started(self, resolved):
        trial_module.WRITES_BESIDE, trial_module.SHORT_EPOCH_SECONDS = frozenset({"cpu"}), 0.0


def test_a_checkpoint_written_beside_training_holds_the_step_at_which_it_was_taken(knobs, tmp_path):
    knobs = {**knobs, "train_size": 48, "checkpointing_steps": 2}
    assert killing.run(knobs, tmp_path / "whole")[0] == 0
    for step, number in ((5, signal.SIGTERM), (9, signal.SIGKILL)):
        assert killing.run(knobs, tmp_path / "stopped", Beside(step, number))[0] in (143, -signal.SIGKILL)
    code, said = killing.run(knobs, tmp_path / "stopped", Beside())
    assert code == 0 and "resumed at" in said, said
    assert killing.result(tmp_path / "stopped") == killing.result(tmp_path / "whole")


def test_what_is_written_beside_is_raised_where_it_is_waited_for(knobs, tmp_path, monkeypatch):
    def refuse(self, checkpoint):
        raise EnvironmentProblem("cannot write a checkpoint: the disk is full")

    monkeypatch.setattr(trial_module, "WRITES_BESIDE", frozenset({"cpu"}))
    monkeypatch.setattr(trial_module, "SHORT_EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(Checkpoints, "save", refuse)
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        run_trial(TrialConfig.from_mapping(knobs), output_dir=tmp_path)


def test_between_short_epochs_on_a_gpu_no_checkpoint_is_written_but_a_signal_has_one(knobs, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(trial_module, "WRITES_BESIDE", frozenset({"cpu"}))
    monkeypatch.setattr(Checkpoints, "save", lambda self, checkpoint: written.append(checkpoint.step))
    run_trial(TrialConfig.from_mapping({**knobs, "num_train_epochs": 3}), output_dir=tmp_path)
    assert written == []
    monkeypatch.setattr(trial_module, "SHORT_EPOCH_SECONDS", 0.0)
    run_trial(TrialConfig.from_mapping({**knobs, "num_train_epochs": 3}), output_dir=tmp_path)
    assert len(written) == 2  # the last one's record follows at once


def test_many_small_tensors_have_the_checksums_of_each_by_itself(monkeypatch):
    monkeypatch.setattr(checksum, "CHUNK", 50)
    draw = torch.Generator().manual_seed(3)
    tensors = [torch.randn(size, generator=draw) for size in (3, 17, 0, 49, 1, 120, 5, 5)]
    tensors.insert(3, torch.ones(7, dtype=torch.bfloat16))  # 14 bytes
    assert checksum.checksums(tensors) == [checksum.checksums([tensor])[0] for tensor in tensors]
