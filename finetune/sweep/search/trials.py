"""What coordinator and search say to each other about a trial: asked for, handed out, ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from finetune.results import TrialRecord


@dataclass(frozen=True)
class Outcome:
    """What a record says to the search. `curve` is the metric by epoch."""

    state: str  # complete | pruned
    value: float | None
    curve: Mapping[int, float]


def outcome_of(record: TrialRecord, metric: str) -> Outcome:
    """What a complete or pruned record says to a search for validation/`metric`."""
    curve = {entry["epoch"]: entry["validation"][metric] for entry in record.history
             if entry.get("validation", {}).get(metric) is not None}
    value = record.metrics.get("validation", {}).get(metric)
    return Outcome(record.state, value, curve)


@dataclass(frozen=True)
class Candidate:
    """A trial that the sweep asks for: `values` as the YAML writes them, `trial_id` as the worker resolved it."""

    trial_id: str
    values: Mapping[str, Any]
    u: Mapping[str, float] | None = None
    setting_id: str = ""
    kind: str = ""  # its canonical strategy

    def attributes(self) -> dict[str, Any]:
        """As the study keeps it: enough for another machine to take the trial over, and to choose by it."""
        drawn = {} if self.u is None else {"u": dict(self.u)}
        return {"values": dict(self.values), **drawn, "setting_id": self.setting_id, "kind": self.kind,
                "trial_id": self.trial_id}  # trial_id: complete


@dataclass
class Ticket:
    """A trial in the hands of this coordinator. `trial_id` is unknown until a drawn point is resolved."""

    trial: optuna.Trial
    values: dict[str, Any]
    u: dict[str, float] | None = None
    trial_id: str | None = None

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def key(self) -> int:
        return self.trial._trial_id


class TakenOver(Exception):
    """Another machine holds this trial now: this one was silent for too long."""
