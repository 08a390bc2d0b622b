"""Observer: the callbacks of a running trial (started, epoch ended, finished …). Trackers, views and workers implement
them; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from finetune.results import TrialRecord

Verdict = Literal["continue", "prune", "stop"]


class Observer:
    """Does nothing; override what you need. All methods are called on the main process only."""

    def started(self, resolved: Mapping[str, Any]) -> None:
        """The trial is about to train; `resolved` is ResolvedTrial.describe(): ids, rows, freeze plan, steps."""

    def resumed(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        """After `started`: the trial goes on from a checkpoint at `step`. `history` are the epochs before it; an
        observer that was told of them before must not count them twice."""

    def retried(self) -> None:
        """Before `started` is called anew: what was told of this trial so far was an attempt that does not count."""

    def said(self, message: str) -> None:
        """A sentence for whoever watches: a checkpoint that was skipped, a version that has changed."""

    def stepped(self, step: int, total_steps: int, loss: float | None) -> None:
        """`step` of `total_steps` optimizer steps are done; called at most a few times a second."""

    def epoch_ended(self, epoch: int, entry: Mapping[str, Any]) -> Verdict:
        """One epoch (counted from 1) is validated; `entry` is its line of the record's history."""
        return "continue"

    def interrupted(self, signum: int) -> Verdict:
        """A signal has come, the checkpoint is written. "prune": the signal means that the trial shall end here, with
        a record; otherwise it ends without one, to be continued."""
        return "stop"

    def finished(self, record: TrialRecord, predictions: Mapping[str, np.ndarray]) -> None:
        """The trial is over, whatever its state."""


class Observers(Observer):
    """Several observers as one; the most severe verdict wins."""

    def __init__(self, observers: Iterable[Observer]):
        self.observers = list(observers)

    def started(self, resolved: Mapping[str, Any]) -> None:
        for observer in self.observers:
            observer.started(resolved)

    def resumed(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        for observer in self.observers:
            observer.resumed(history, step)

    def retried(self) -> None:
        for observer in self.observers:
            observer.retried()

    def said(self, message: str) -> None:
        for observer in self.observers:
            observer.said(message)

    def stepped(self, step: int, total_steps: int, loss: float | None) -> None:
        for observer in self.observers:
            observer.stepped(step, total_steps, loss)

    def epoch_ended(self, epoch: int, entry: Mapping[str, Any]) -> Verdict:
        verdicts = [observer.epoch_ended(epoch, entry) for observer in self.observers]
        return max(verdicts, key=["continue", "prune", "stop"].index, default="continue")

    def interrupted(self, signum: int) -> Verdict:
        verdicts = [observer.interrupted(signum) for observer in self.observers]
        return "prune" if "prune" in verdicts else "stop"

    def finished(self, record: TrialRecord, predictions: Mapping[str, np.ndarray]) -> None:
        for observer in self.observers:
            observer.finished(record, predictions)
