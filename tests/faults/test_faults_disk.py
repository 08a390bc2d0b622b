"""A full disk, a read-only one: a sentence and exit 5, nothing lost, nothing half-written, and on again afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import killing
import numpy as np
import pytest
import torch

import sweeps
from finetune.errors import EnvironmentProblem
from finetune.files import require_writable
from finetune.prefix.store import PrefixStore
from finetune.results import RecordStore, TrialRecord
from finetune.sweep.storages import open_storage
from finetune.training.checkpoint import Checkpoint, Checkpoints

TRIAL = "a" * 64
pytestmark = pytest.mark.needs_root


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of 1 MB at tmp_path/disk."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(["size=1m", *options]), "none", str(folder)],
                              capture_output=True, text=True)
        if done.returncode and os.environ.get("CI") != "true":
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.fixture
def small(mounted):
    return mounted()


def fill_up(folder):
    """Leave no byte; returns what to remove to make room."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    return filler


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "filler"}


def refused(write, folder, what):
    """`write` fails with one sentence and leaves the disk as it was; with room it succeeds."""
    before, filler = contents(folder), fill_up(folder)
    with pytest.raises(EnvironmentProblem) as problem:
        write()
    assert problem.value.exit_code == 5 and "\n" not in str(problem.value)
    assert what in str(problem.value) and "disk is full; free some space" in str(problem.value)
    assert contents(folder) == before
    filler.unlink()
    write()


def record(value):
    return TrialRecord(trial_id=TRIAL, setting_id="s", state="complete", config={}, metrics={"test": {"loss": value}})


@pytest.mark.fault("disk", "the disk is full while a record is written", "exit 5; the record before is intact")
def test_a_full_disk_while_a_record_is_written(small):
    store = RecordStore(small)
    store.publish(record(1.0), {"test_logits": np.zeros((9, 2))})
    refused(lambda: store.publish(record(2.0), {"test_logits": np.ones((9, 2))}), small, "predictions")
    assert store.load_complete(TRIAL).metrics["test"]["loss"] == 2.0


@pytest.mark.fault("disk", "the disk is full while a checkpoint is written", "exit 5; the checkpoint before is intact")
def test_a_full_disk_while_a_checkpoint_is_written(small):
    store = Checkpoints(small, TRIAL)

    def save(step):
        store.save(Checkpoint(step, 1, {}, {"model/weight": torch.full((20000,), float(step))}))

    save(1)
    refused(lambda: save(2), small, "a checkpoint")
    assert store.newest()[0].tensors["model/weight"][0] == 2.0 and len(contents(small)) == 2


@pytest.mark.fault("disk", "the disk fills up in the middle of a checkpoint's tensors", "the checkpoint before is used")
def test_a_checkpoint_that_does_not_fit(small):
    store = Checkpoints(small, TRIAL)
    store.save(Checkpoint(1, 1, {}, {"model/weight": torch.ones(20000)}))
    before = contents(small)
    with pytest.raises(EnvironmentProblem, match="a checkpoint.*disk is full"):
        store.save(Checkpoint(2, 1, {}, {"model/weight": torch.ones(1_000_000)}))
    assert contents(small) == before and store.newest()[0].step == 1


@pytest.mark.fault("disk", "the disk is full while activations are cached", "the trial computes them itself")
def test_a_full_disk_while_activations_are_written(small):
    store = PrefixStore(small)

    def write():
        with store.writer("key", (1000, 64), np.dtype(np.float32), {}) as writer:
            writer.array[:] = 1.0
            writer.publish(1.0)

    refused(write, small, "cached activations")
    assert store.read("key").array[0, 0] == 1.0


@pytest.mark.fault("disk", "the disk is full when the study is opened", "exit 5 with a sentence, on again with room")
def test_a_full_disk_while_the_study_is_written(small):
    filler = fill_up(small)
    with pytest.raises(EnvironmentProblem) as problem:
        open_storage(None, small)
    assert "\n" not in str(problem.value)
    filler.unlink()
    open_storage(None, small).close()


@pytest.mark.fault("disk", "the disk fills up in the middle of a sweep, under records and study",
                   "exit 5 with a sentence; with room the same command goes on, every trial is done once")
def test_a_sweep_on_a_disk_that_fills_up(small):
    process = sweeps.start(small)
    sweeps.wait_until(lambda: len(RecordStore(small).trial_ids()) >= 2)
    filler = fill_up(small)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 5 and "disk is full" in said and "Traceback" not in said, said
    assert all(RecordStore(small).load_complete(trial_id) for trial_id in RecordStore(small).trial_ids())
    filler.unlink()
    process = sweeps.start(small)
    assert process.wait(60) == 0, process.stderr.read()
    sweeps.check_everything_was_done_once(small)


@pytest.mark.fault("disk", "the disk fills up while a trial trains",
                   "exit 5 with a sentence; with room the same command goes on, to the same result")
def test_a_trial_on_a_disk_that_fills_up(small, tmp_path, tiny_bert_dir):
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 32, "evaluation_size": 16, "num_train_epochs": 2,
             "per_device_train_batch_size": 8, "freeze_depth": 4, "prefix_cache": False, "checkpointing_steps": 1,
             "save_model": False}
    assert killing.run(knobs, tmp_path / "whole")[0] == 0
    code, said = killing.run(knobs, small, killing.FillsUp(step=3, filler=small / "filler"))
    assert code == 5 and "cannot write a checkpoint" in said and "disk is full" in said, said
    (small / "filler").unlink()
    code, said = killing.run(knobs, small)
    assert code == 0 and "resumed at 2" in said, said
    assert killing.result(small) == killing.result(tmp_path / "whole")


@pytest.mark.fault("disk", "the output directory is read-only", "found before anything is loaded or trained: exit 5")
def test_a_read_only_directory_is_found_before_training(mounted, tmp_path):
    folder = mounted("ro")
    with pytest.raises(EnvironmentProblem, match="cannot write results .*read-only"):
        require_writable(folder / "out")
    done = subprocess.run([sys.executable, "-m", "finetune", "train",
                           f"--output_dir={folder / 'out'}", "--model_name_or_path=/no/such/model"],
                          capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "disabled"})
    assert done.returncode == 5 and "read-only" in done.stderr and "Traceback" not in done.stderr
