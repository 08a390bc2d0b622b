"""What the steps of a trial share: TrialState, which a checkpoint holds, and TrialRun, the objects around it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune.data.encoding.batches import Collator
from finetune.freezing import AuditReport
from finetune.results import RETRIED, TrialRecord
from finetune.training.background import Background
from finetune.training.checkpoint import Checkpoints
from finetune.training.evaluation import higher_is_better
from finetune.training.loop import Trainer
from finetune.training.stopwatch import Stopwatch
from finetune.trial.events import Observer
from finetune.trial.progress import Progress
from finetune.trial.resolve import ResolvedTrial

COSTS = ("setup_seconds", "prefix_seconds", "prefix_train_seconds", "train_seconds", "evaluation_seconds",
         "checkpoint_seconds")


@dataclass(frozen=True)
class TrialOutcome:
    record: TrialRecord  # without checksum: whoever publishes it seals it
    predictions: dict[str, np.ndarray]


@dataclass
class TrialState:
    """What a trial has found so far."""

    history: list[dict[str, Any]] = field(default_factory=list)  # a line per finished epoch
    best: dict[str, Any] = field(default_factory=dict)  # the best epoch's line of the history, and its `logits`
    cost: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    audit: AuditReport | None = None
    resumes: list[dict[str, Any]] = field(default_factory=list)
    clock: Stopwatch = field(default_factory=Stopwatch)  # training seconds of the running epoch
    safe_seconds: float = 0.0  # of training and evaluation, that a checkpoint holds

    def add(self, entry: dict[str, Any], logits: np.ndarray, metric: str) -> bool:
        """One more epoch; returns whether it is the best so far on validation (the earliest on ties)."""
        self.history.append(entry)
        if self.best and not _better(entry, self.best, metric):
            return False
        self.best = {**entry, "logits": logits}
        return True

    @property
    def spent_seconds(self) -> float:
        """Training and evaluation so far."""
        return self.cost["train_seconds"] + self.cost["evaluation_seconds"] + self.clock.seconds


def _better(entry: dict[str, Any], best: dict[str, Any], metric: str) -> bool:
    new, old = entry["validation"][metric], best["validation"][metric]
    return new > old if higher_is_better(metric) else new < old


@dataclass
class TrialRun:
    """One trial in one process: what was asked, where it runs, who watches, and how far it is."""

    resolved: ResolvedTrial
    accelerator: Accelerator
    observer: Observer
    output_dir: Path | str | None
    state: TrialState = field(default_factory=TrialState)
    splits: dict[str, Collator] = field(default_factory=dict)
    trainer: Trainer | None = None
    left_out: bool = False  # the last epoch's checkpoint, and the trainer is as it would hold it

    def __post_init__(self) -> None:
        name = self.resolved.trial_id + (RETRIED if self.resolved.asked_precision else "")  # not the first attempt's
        self.checkpoints = Checkpoints(self.output_dir, name) if self.output_dir else None
        self.background = Background()  # what is written while a GPU trains on
        self.progress = Progress(self.observer, alone=self.accelerator.num_processes == 1)

    @property
    def keeps_checkpoints(self) -> bool:
        """Not where it has no folder, and not of a head from a stack: training it again takes no longer."""
        return self.checkpoints is not None and (self.trainer is None or self.trainer.stacked is None)

    def release(self) -> None:
        """Model and optimizer refer back to this object: without this they wait for the garbage collector, and the
        next trial of a warm worker is built beside them. What is still written is waited for."""
        self.background.close()
        if self.trainer is not None:
            self.trainer.close()
        self.trainer = None
