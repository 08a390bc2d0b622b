"""How far a trial is, told to its observer a few times a second at most."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import accelerate

from finetune.training import signals
from finetune.training.loop import Trainer
from finetune.trial.events import Observer

REPORT_EVERY_SECONDS = 0.5
FILLING_EVERY_SECONDS = 10.0


class Progress:
    """Throttles what an observer is told. `alone`: this is the only process of the trial."""

    def __init__(self, observer: Observer, alone: bool):
        self.observer, self.alone = observer, alone
        self._filling_since = self._reported = 0.0

    def filling(self, done: int, total: int) -> None:
        """While activations are computed, before training: batch `done` of `total` is there."""
        now = time.monotonic()
        if done == 1:
            self._filling_since = self._reported = now
        if now - self._reported > FILLING_EVERY_SECONDS and 1 < done < total:
            self._reported = now
            left = (now - self._filling_since) / (done - 1) * (total - done)
            self.observer.said(f"computing the frozen layers once, to be reused: {done / total:.0%}, "
                               f"about {left:.0f} s left")
        if self.alone:  # it may take minutes; of several processes one fills, the others wait
            signals.check()

    def verdict(self, epoch: int, entry: Mapping[str, Any]) -> str:
        """What the observer says to an epoch, the same on every process."""
        return self._agreed(self.observer.epoch_ended(epoch, entry))

    def interrupted(self, signum: int) -> str:
        """What the observer says to a signal, the same on every process."""
        return self._agreed(self.observer.interrupted(signum))

    def _agreed(self, said: str) -> str:
        """The main process's observer is the one that was asked; the others' is deaf."""
        told = [said]
        if not self.alone:
            accelerate.utils.broadcast_object_list(told)
        return told[0]

    def stepped(self, trainer: Trainer) -> None:
        """After an optimizer step."""
        if time.monotonic() - self._reported > REPORT_EVERY_SECONDS:
            self._reported = time.monotonic()
            self.observer.stepped(trainer.step, trainer.total_steps, trainer.loss_so_far)
