"""How far a trial or a sweep is, where a person watches: a bar in a notebook, what the commands show elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.display import plain
from finetune.errors import Interrupted
from finetune.sweep.view.board import Board, shown_value
from finetune.sweep.view.live import progress_of
from finetune.trial.events import Observer, Verdict

REDRAW_SECONDS = 0.3


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this (also Colab's and Kaggle's); a plain IPython shell is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def make_bar(**options: Any) -> Any:
    """tqdm's: the notebook's own where there are widgets, one of text otherwise."""
    if in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm
    else:
        from tqdm.std import tqdm
    return tqdm(**{"file": sys.stdout, "dynamic_ncols": True, "leave": True, **options})


class BarView:
    """A sweep's view in a notebook: one bar over its trials, and lines that stay."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._phase, self._drawn = "", 0.0

    def show(self, board: Board) -> None:
        done = board.total is not None and board.ended >= board.total
        if time.monotonic() - self._drawn < REDRAW_SECONDS and not done:
            return
        self._drawn = time.monotonic()
        if self._bar is None or self._phase != board.phase:
            self.close()
            self._bar = make_bar(total=board.total, initial=board.already, unit="trial",
                                 desc=f"{plain(board.name, 30)} ({board.phase})")
            self._phase = board.phase
        self._bar.total, self._bar.n = board.total, board.ended
        best = f"best {board.metric} {shown_value(board.best[0])}; " if board.best is not None else ""
        self._bar.set_postfix_str(best + "; ".join(f"{trial.label}: {progress_of(trial)}"
                                                   for _, trial in sorted(board.running.items())), refresh=True)

    def say(self, text: str) -> None:
        print(plain(text))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class BarObserver(Observer):
    """A trial's progress in a notebook: one bar over its steps."""

    def __init__(self) -> None:
        self._bar: Any = None

    def started(self, resolved: Mapping[str, Any]) -> None:
        self._bar = make_bar(total=resolved["total_steps"], unit="step", desc=resolved["strategy"])
        for note in resolved["notes"]:
            self.said(f"note: {note}")

    def resumed(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        self.said(f"goes on from a checkpoint at step {step}, {len(history)} epochs are done")
        self._bar.update(step - self._bar.n)

    def said(self, message: str) -> None:
        print(plain(message))

    def stepped(self, step: int, total_steps: int, loss: float | None) -> None:
        self._bar.update(step - self._bar.n)

    def epoch_ended(self, epoch: int, entry: Mapping[str, Any]) -> Verdict:
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in entry["validation"].items()})
        return "continue"

    def finished(self, record: Any, predictions: Mapping[str, Any]) -> None:
        if record.state == "complete":
            self._bar.update(self._bar.total - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Quiet:
    """A sweep's view that shows nothing."""

    def show(self, board: Board) -> None:
        """Not shown."""

    def say(self, text: str) -> None:
        """Not said."""

    def close(self) -> None:
        """Nothing to put in order."""


@contextlib.contextmanager
def stop_button() -> Iterator[None]:
    """Ctrl-C and a notebook's stop button end a call as they end any other, with KeyboardInterrupt; its text says what
    was kept."""
    import signal

    try:
        yield
    except Interrupted as interruption:
        if interruption.signum != signal.SIGINT:
            raise
        raise KeyboardInterrupt(str(interruption)) from None
