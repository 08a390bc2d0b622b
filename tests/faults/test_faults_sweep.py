"""Sweeps of real trials, killed in the middle of them: what comes out equals what an undisturbed sweep publishes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killing
import psutil
import pytest
import yaml

from finetune.results import RecordStore

SECRETS = {"WANDB_API_KEY": "5ec12e7" * 5 + "abcde", "HF_TOKEN": "hf_5ec12e7thatnobodymaysee",
           "AWS_SECRET_ACCESS_KEY": "5ec12e7/ofthecloud+andmore", "DATABASE_PASSWORD": "5ec12e7-of-the-study"}


@pytest.fixture
def sweep(tmp_path, tiny_bert_dir):
    """Starts `finetune sweep` with two workers on a file in tmp_path; the folder is its output directory."""
    def start(folder, *flags, environment=None, **changes):
        values = {"model_name_or_path": str(tiny_bert_dir), "train_size": 160, "subset_seed": 0, "evaluation_size": 24,
                  "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_length": 24,
                  "head_learning_rate": 1e-2, "checkpointing_steps": 5, "freeze_depth": [0, 2], "seed": [1, 2, 3],
                  **changes}
        file = tmp_path / "kills.yaml"
        file.write_text(yaml.safe_dump({"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"},
                                        "parameters": {name: {"values" if isinstance(value, list) else "value": value}
                                                       for name, value in values.items()}}))
        return subprocess.Popen(
            [sys.executable, "-m", "finetune", "sweep", str(file), "--output_dir", str(folder), "--workers", "2",
             "--retries", "20", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})})

    return start


def results(folder):
    """{(depth, seed): what must not depend on interruptions}; every trial once."""
    store, found = RecordStore(folder), {}
    for trial_id in store.trial_ids():
        content = killing.content(store.load_complete(trial_id))
        key = content["config"]["freeze_depth"], content["config"]["seed"]
        assert key not in found and content["state"] == "complete"
        content["config"].pop("output_dir")
        found[key] = content
    return found


def checkpoints(folder):
    """Trials that have one. Folders come and go meanwhile, at which Path.glob would fail."""
    return {trial for trial in names(folder / "checkpoints")
            if any(name.startswith("step-") for name in names(folder / "checkpoints" / trial))}


def names(folder):
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def unfinished(folder):
    """Trials with a checkpoint and without a record."""
    return checkpoints(folder) - set(RecordStore(folder).trial_ids())


def wait_for(process, condition, seconds=90.0):
    """False when the sweep has ended before it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
    return True


def workers_of(process):
    found = []
    for child in psutil.Process(process.pid).children():
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def finish(process):
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    return said


@pytest.mark.faults
@pytest.mark.fault("sweep", "a worker and then the coordinator of real trials are killed while trials train",
                   "the trials go on from their checkpoints; every record equals an undisturbed sweep's, bit for bit")
def test_killed_real_trials_go_on_from_their_checkpoints(tmp_path, sweep):
    few = {"seed": [1, 2]}
    finish(sweep(tmp_path / "whole", **few))
    folder = tmp_path / "killed"
    process = sweep(folder, **few)
    assert wait_for(process, lambda: checkpoints(folder))
    workers_of(process)[0].kill()
    assert wait_for(process, lambda: RecordStore(folder).trial_ids() and unfinished(folder))
    process.kill()
    process.communicate()
    said = finish(sweep(folder, **few))
    assert "goes on from a checkpoint" in said
    assert results(folder) == results(tmp_path / "whole") and len(results(folder)) == 4
    assert not list(folder.rglob("*.tmp")) and not checkpoints(folder)


@pytest.mark.faults
@pytest.mark.fault("sweep", "workers and coordinators of real trials are killed at random moments, ten times",
                   "every trial is done once; every record equals an undisturbed sweep's, bit for bit")
def test_real_trials_killed_at_random_moments(tmp_path, sweep):
    finish(sweep(tmp_path / "whole"))
    folder, rng, resumed = tmp_path / "killed", random.Random(3), 0
    for kill in range(10):
        process = sweep(folder)
        if not wait_for(process, lambda: checkpoints(folder)):
            break
        time.sleep(rng.uniform(0.0, 0.6))
        if kill % 2:
            victims = workers_of(process) if process.poll() is None else []
            if victims:
                rng.choice(victims).send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        said, _ = process.communicate()
        resumed += said.count("goes on from a checkpoint")
    said = finish(sweep(folder))
    assert resumed + said.count("goes on from a checkpoint") > 0
    assert results(folder) == results(tmp_path / "whole") and len(results(folder)) == 6
    assert not list(folder.rglob("*.tmp")) and not checkpoints(folder)


@pytest.mark.fault("input", "secrets in the environment", "in no record, log, checkpoint, cache, run or message")
def test_no_secret_is_written_anywhere(tmp_path, sweep):
    places = {name: str(tmp_path / name.lower()) for name in ("FINETUNE_CACHE", "WANDB_DIR", "HOME")}
    for place in places.values():
        Path(place).mkdir()
    environment = {**SECRETS, **places, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    process = sweep(tmp_path / "out", environment=environment, freeze_depth=["nine"])
    said, _ = process.communicate(timeout=180)  # what is refused is told as well
    assert "freeze_depth" in said
    process = sweep(tmp_path / "out", "--workers=1", environment=environment, num_train_epochs=1, seed=[1],
                    freeze_depth=[2])
    said += finish(process)
    for command in (["doctor", "--json", "--output_dir", str(tmp_path / "out")], ["report", str(tmp_path / "out")]):
        done = subprocess.run([sys.executable, "-m", "finetune", *command], capture_output=True, text=True,
                              env={**os.environ, **environment})
        said += done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files) and any(path.name == "record.json" for path in files)
    for secret in SECRETS.values():
        assert secret not in said
        assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert json.loads((tmp_path / "out" / "report" / "summary.json").read_text())
