"""A task that trains nothing, in no time: what the sweep's own tests run instead of finetune.trial.

It offers the same two functions. `dataset_name` carries what shall happen, as a query string:
  seconds=0.05   per epoch       crash=2   the trial with this seed kills its process     hang=2   … sleeps for ever
  fail=2         … fails         nan=2     … fails as non-finite                          once=1   only the first time
  cuda=2         … raises a CUDA error
  environment=1  its variables go to OUTPUT_DIR/environment.log        stubborn=1   SIGTERM is ignored
  layers=12      of the backbone (4)        knee=5   depths beyond it are wrong more often on the test rows
  test=400       test rows whose predictions are left: as right as the knee says, row by row, seed by seed
  prefix=1       depths from 1 on read kept activations, as far as their description goes
  child=1        a hanging trial has a child process of its own (OUTPUT_DIR/children.log)
The accuracy of an epoch is a known function of the knobs. Every start is a line in OUTPUT_DIR/starts.log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from finetune.config import TrialConfig
from finetune.errors import ConfigError, DataError, Problem
from finetune.files import digest_of
from finetune.results import TrialRecord
from finetune.trial.events import Observer

LAYERS = 4
ROWS = {"train": 64, "validation": 20, "test": 20}
PARAMETERS = {"total": 100, "trainable": 10}


@dataclass
class Resolved:
    config: TrialConfig
    trial_id: str
    setting_id: str
    effective: dict = field(default_factory=dict)

    def describe(self) -> dict:
        behaviour = behaviour_of(self.config)
        return {"trial_id": self.trial_id, "setting_id": self.setting_id, "effective": self.effective,
                "strategy": f"prefix:{self.config.freeze_depth}", "metric": "accuracy",
                "num_layers": int(behaviour.get("layers", LAYERS)), "metrics": ["accuracy", "loss"],
                "task": "classification", "prefix_id": "toy",
                "prefix_boundaries": [depth] if behaviour.get("prefix") and (depth := self.config.freeze_depth) else [],
                "rows": ROWS, "parameters": PARAMETERS, "total_epochs": self.config.num_train_epochs,
                "total_steps": 4 * self.config.num_train_epochs}


@dataclass
class Outcome:
    record: TrialRecord
    predictions: dict


def behaviour_of(config: TrialConfig) -> dict[str, str]:
    return dict(parse_qsl(config.dataset_name.partition("?")[2]))


def resolve_trial(config: TrialConfig) -> Resolved:
    layers = int(behaviour_of(config).get("layers", LAYERS))
    if config.dataset_name == "bad":
        raise DataError("the data set bad has no labels")
    if (config.freeze_depth or 0) > layers:
        raise ConfigError([Problem("freeze_depth", config.freeze_depth, f"allowed: -1..{layers}")])
    effective = config.model_dump(exclude={"output_dir", "wandb_project", "wandb_entity"})
    if config.freeze_depth == layers:
        effective["learning_rate"] = None
    setting = {name: value for name, value in effective.items() if name != "seed"}
    return Resolved(config, digest_of(effective), digest_of(setting), effective)


def accuracy(config: TrialConfig, epoch: int) -> float:
    """Shallower is better, a learning rate near 1e-4 is better, later is better, seeds differ a little."""
    distance = abs(np.log10(config.learning_rate) + 4)
    return round(float(0.9 - 0.03 * (config.freeze_depth or 0) - 0.05 * distance + 0.01 * epoch
                       + 0.001 * (config.seed % 7)), 6)


def run_trial(config: TrialConfig, *, observer: Observer) -> Outcome:
    resolved = resolve_trial(config)
    behaviour = behaviour_of(config)
    first = _note_start(config, resolved)
    if behaviour.get("environment"):
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "OMP_NUM_THREADS")
        with open(Path(config.output_dir) / "environment.log", "a") as file:
            file.write(json.dumps({name: os.environ.get(name) for name in names}) + "\n")
    observer.started(resolved.describe())
    error = _misbehave(config, behaviour, first)
    history, state = [], "complete"
    for epoch in range(1, config.num_train_epochs + 1):
        for step in range(4):
            time.sleep(float(behaviour.get("seconds", 0)) / 4)
            observer.stepped(4 * (epoch - 1) + step + 1, 4 * config.num_train_epochs, 0.5)
        entry = {"epoch": epoch, "train": {"loss": 0.5, "learning_rate": config.learning_rate}, "train_seconds": 0.1,
                 "validation": {"accuracy": accuracy(config, epoch), "loss": 1 - accuracy(config, epoch)}}
        history.append(entry)
        if observer.epoch_ended(epoch, entry) == "prune":
            state = "pruned"
            break
    best = max(history, key=lambda entry: entry["validation"]["accuracy"])
    record = TrialRecord(
        trial_id=resolved.trial_id, setting_id=resolved.setting_id, state="failed" if error else state, error=error,
        config=config.model_dump(), effective=resolved.effective, num_layers=int(behaviour.get("layers", LAYERS)),
        history=history, best_epoch=best["epoch"], metrics={"validation": best["validation"]},
        cost={"setup_seconds": 0.2, "prefix_seconds": 0.1, "train_seconds": 0.1, "evaluation_seconds": 0.1},
        data={"rows": ROWS}, parameters=PARAMETERS,
    )
    predictions = {"validation_logits": np.full((20, 2), config.seed, dtype=np.float32)}
    if behaviour.get("test"):
        predictions |= _tested(config, behaviour)
        right = predictions["test_logits"].argmax(1) == predictions["test_labels"]
        record.metrics["test"] = {"accuracy": float(right.mean())}
    observer.finished(record, predictions)
    return Outcome(record, predictions)


def _tested(config: TrialConfig, behaviour: dict[str, str]) -> dict[str, np.ndarray]:
    """Rows have a difficulty that all depths share; beyond the knee, five points more of them are wrong per layer."""
    rows, depth = int(behaviour["test"]), config.freeze_depth or 0
    beyond = max(0, depth - int(behaviour.get("knee", 1000)))
    own = np.random.default_rng([config.seed, depth + 1]).normal(0, 0.02, rows)
    difficulty = np.random.default_rng(0).uniform(0, 1, rows) + own + 0.05 * beyond
    labels = np.arange(rows) % 2
    guessed = np.where(difficulty < 0.8, labels, 1 - labels)
    logits = np.eye(2, dtype=np.float32)[guessed] + np.float32(1e-3 * config.seed)
    return {"test_logits": logits, "test_labels": labels, "test_ids": np.array([f"r{row:05}" for row in range(rows)])}


def _note_start(config: TrialConfig, resolved: Resolved) -> bool:
    log = Path(config.output_dir) / "starts.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    first = not log.exists() or resolved.trial_id not in log.read_text()
    with open(log, "a") as file:
        file.write(f"{resolved.trial_id} {os.getpid()}\n")
    return first


def _misbehave(config: TrialConfig, behaviour: dict[str, str], first: bool) -> dict[str, str] | None:
    if behaviour.get("once") and not first:
        return None
    mine = str(config.seed)
    if behaviour.get("crash") == mine:
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour.get("cuda") == mine:
        raise RuntimeError("CUDA error: the remote procedural call to the MPS server failed")
    if behaviour.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour.get("hang") == mine:
        if behaviour.get("child"):
            child = subprocess.Popen(["sleep", "1000"])
            with open(Path(config.output_dir) / "children.log", "a") as file:
                file.write(f"{child.pid}\n")
        time.sleep(1000)
    if behaviour.get("fail") == mine:
        return {"kind": "out-of-memory", "message": "8 GB were asked for"}
    if behaviour.get("nan") == mine:
        return {"kind": "non-finite", "message": "the loss is nan at step 3"}
    return None
