"""The live view on a terminal, and plain lines where there is none. Both draw a Board, both write to stderr."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from finetune.sweep.view.board import Board, Running, duration, shown_value

PLAIN_EVERY = 30.0  # seconds between progress lines where nothing else happens


class PlainView:
    """One line per event, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._last = time.monotonic()

    def show(self, board: Board) -> None:
        """Called a few times a second; says something at most every PLAIN_EVERY seconds."""
        if time.monotonic() - self._last >= PLAIN_EVERY and board.running:
            running = "; ".join(f"worker {index}: {trial.label}, {progress_of(trial)}"
                                for index, trial in sorted(board.running.items()))
            self.say(f"{counts_of(board)} | {running}")

    def say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to put in order."""


class RichView:
    """A table that is redrawn in place; lines that stay scroll by above it."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def show(self, board: Board) -> None:
        if time.monotonic() - self._drawn < 0.2:
            return
        self._drawn = time.monotonic()
        if not self._live.is_started:
            self._live.start()
        self._live.update(draw(board), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False)

    def close(self) -> None:
        self._live.stop()
        self._console.show_cursor()


View = PlainView | RichView


def open_view(stream: TextIO | None = None) -> View:
    """The live view on a terminal, plain lines otherwise."""
    stream = stream or sys.stderr
    return RichView(Console(file=stream)) if stream.isatty() else PlainView(stream)


def draw(board: Board) -> Group:
    table = Table(box=None, pad_edge=False, expand=False)
    for title in ("worker", "trial", "epoch", "loss", board.metric, "time"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("worker", "trial") else "right")
    now = time.monotonic()
    for index in range(1, board.workers + 1):
        trial = board.running.get(index)
        if trial is None:
            table.add_row(str(index), Text("idle", style="dim"), "", "", "", "")
        else:
            table.add_row(str(index), Text(trial.label), progress_of(trial), _number(trial.loss), _number(trial.value),
                          duration(now - trial.since))
    return Group(Text(counts_of(board), style="bold"), table)


def counts_of(board: Board) -> str:
    """4 of 12 trials done · 1 failed · best 0.853 (freeze_depth=2 seed=1) · about 3m 20s left"""
    of = f" of {board.total}" if board.total is not None else ""
    parts = [f"{board.name} ({board.phase}): {board.ended}{of} trials done"]
    parts += [f"{count} {word}" for count, word in ((board.already, "found on disk"), (board.pruned, "pruned"),
                                                    (board.failed, "failed"),
                                                    (board.elsewhere, "on other machines")) if count]
    if board.best is not None:
        parts.append(f"best {board.metric} {shown_value(board.best[0])} ({board.best[1]})")
    left = board.seconds_left()
    if left is not None and board.ended < (board.total or 0):
        parts.append(f"about {duration(left)} left")
    return " · ".join([*parts, board.deciding] if board.deciding else parts)


def progress_of(trial: Running) -> str:
    """1/3 (12%): the epoch that is running, and the share of all steps that is done."""
    if trial.steps is None:
        return "preparing"
    if trial.epochs and trial.epoch >= trial.epochs:
        return "testing"
    return f"{trial.epoch + 1}/{trial.epochs or '?'} ({100 * trial.step // max(1, trial.steps)}%)"


def _number(value: float | None) -> str:
    return "" if value is None else shown_value(value)
