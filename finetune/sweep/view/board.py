"""What a sweep looks like right now. The coordinator keeps it, the views and `finetune status` draw it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Running:
    """One trial on one worker. `since` is monotonic seconds."""

    label: str
    kind: str  # trials of one kind take about the same time: their strategy
    since: float
    epoch: int = 0
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    value: float | None = None


@dataclass
class Board:
    """`total` is None for a search without an end. `already` were on disk when the sweep started."""

    name: str
    metric: str
    maximize: bool = True
    phase: str = "tune"
    total: int | None = None
    already: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0
    elsewhere: int = 0  # ended on other machines that share the sweep
    workers: int = 1
    running: dict[int, Running] = field(default_factory=dict)
    best: tuple[float, str] | None = None
    pending: Counter[str] = field(default_factory=Counter)  # waiting trials by kind
    durations: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    started: float = field(default_factory=time.monotonic)
    finished: float | None = None  # when the phase had ended
    first_step: float | None = None  # when the first optimizer step was done, in seconds since 1970
    deciding: str | None = None  # adaptive: what the trials are for

    @property
    def ended(self) -> int:
        return self.already + self.complete + self.pruned + self.failed + self.elsewhere

    def seconds(self) -> float:
        """How long the phase has been running, or ran."""
        return (time.monotonic() if self.finished is None else self.finished) - self.started

    def offer_best(self, value: float, label: str) -> None:
        if self.best is None or (value > self.best[0] if self.maximize else value < self.best[0]):
            self.best = (value, label)

    def seconds_left(self) -> float | None:
        """Estimated from the trials that ended; None before the first one, and for a search without an end."""
        if not self.durations or self.total is None:
            return None
        now = time.monotonic()
        work = sum(count * self._typical(kind) for kind, count in self.pending.items())
        work += sum(max(0.0, self._typical(trial.kind) - (now - trial.since)) for trial in self.running.values())
        return work / max(1, self.workers)

    def _typical(self, kind: str) -> float:
        same = self.durations.get(kind)
        everything = same or [seconds for group in self.durations.values() for seconds in group]
        return sum(everything) / len(everything)

    def summary(self) -> dict[str, Any]:
        """What `finetune status` reads from the output directory."""
        now = time.monotonic()
        return {
            "name": self.name, "phase": self.phase, "metric": self.metric, "total": self.total, "already": self.already,
            "complete": self.complete, "pruned": self.pruned, "failed": self.failed, "elsewhere": self.elsewhere,
            "workers": self.workers,
            "best": None if self.best is None else {"value": self.best[0], "trial": self.best[1]},
            "first_step": self.first_step, "deciding": self.deciding,
            "seconds_left": self.seconds_left(), "running_seconds": self.seconds(),
            "running": [{"worker": index, **_public(trial), "seconds": now - trial.since}
                        for index, trial in sorted(self.running.items())],
        }


def _public(trial: Running) -> dict[str, Any]:
    return {key: value for key, value in vars(trial).items() if key not in ("since", "kind")}


def shown_value(value: float) -> str:
    """Of a metric or a loss: four decimals, or three digits where those would say nothing."""
    return f"{value:.4f}" if abs(value) >= 0.005 or not value else f"{value:.3g}"


def label_of(values: Mapping[str, Any], searched: list[str]) -> str:
    """A trial in a few words: the knobs in which the sweep's trials differ."""
    return " ".join(f"{name}={_short(values.get(name))}" for name in searched) or "the only trial"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= 32 else clean[:15] + "…" + clean[-16:]


def duration(seconds: float | None) -> str:
    """45s · 3m 20s · 2h 5m"""
    if seconds is None:
        return "–"
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
