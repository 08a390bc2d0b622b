"""Trials that belong to one curve: everything is equal but what is frozen, what is tuned, and the seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from analysis.load.adaptive import AdaptivePlan
from analysis.load.records import Loaded, SweepPlan, Trial
from finetune.config import CONTENT, KNOBS, NEVER

COMPARED = {"freeze_depth", "strategy", "seed"}
# A data set has one name per machine (a path), a model too: their digests tell whether they are the same.
_NAMED_BY = {"dataset": "data", "model": "weights", "split_seed": "data"}
_CURVE_GROUPS = {"freezing", "randomness", "data", "model", "execution"}
# A knob of these groups makes a curve of its own per value; the others are tuned: the best value is chosen per depth.
CURVE_KNOBS = [
    knob.name for knob in KNOBS.values()
    if knob.name != "split_seed" and knob.in_trial_id not in (NEVER, CONTENT) and knob.name not in COMPARED
    and (knob.group in _CURVE_GROUPS or knob.name == "pooling")
]
TUNED_KNOBS = [knob.name for knob in KNOBS.values() if knob.group in {"head", "optimization"}
               and knob.name not in {"pooling", "metric_for_best_model"} and knob.in_trial_id != NEVER]
MOST_WORDS = 4  # of a label, before it names everything that differs
_ANY = object()  # the value of a knob that acts on nothing in this trial: it belongs to every curve


@dataclass(frozen=True)
class Group:
    """The trials of one curve. `label` says how it differs from the others, "" when it is the only one."""

    identity: dict[str, Any]
    trials: list[Trial]
    label: str = ""
    plans: list[SweepPlan] = field(default_factory=list)
    also: tuple[str, ...] = ()  # what differs between the curves besides the label

    @property
    def first(self) -> Trial:
        return self.trials[0]

    @property
    def metric(self) -> str:
        return self.identity["metric"]

    @property
    def selection(self) -> str:
        """The validation metric that chooses a setting: the sweep's own, else the one that picks the epoch."""
        asked = {plan.metric for plan in self.plans if plan.metric}
        known = next((t.record.metrics["validation"] for t in self.trials if "validation" in t.record.metrics), {})
        return asked.pop() if len(asked) == 1 and asked <= set(known) else self.metric

    @property
    def adaptive(self) -> AdaptivePlan | None:
        """Of a sweep that was merged from several directories, the plan that knows most."""
        known = [plan.adaptive for plan in self.plans if plan.adaptive is not None]
        return max(known, key=lambda plan: len(plan.decisions), default=None)

    @property
    def num_layers(self) -> int | None:
        return next((t.record.num_layers for t in self.trials if t.record.num_layers is not None), None)

    @property
    def tuned(self) -> list[str]:
        """Tuned knobs that take several values here."""
        return [name for name in TUNED_KNOBS if len(distinct(t.knobs.get(name) for t in self.trials)) > 1]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Different values that are not None, in ascending order."""
    seen = {repr(value): value for value in values if value is not None}
    return sorted(seen.values(), key=_sortable)


def make_groups(loaded: Loaded, by: Sequence[str] = ()) -> list[Group]:
    """One group per curve, in a stable order; knobs named in `by` make curves too."""
    known = [(_identity(trial, by), trial) for trial in loaded.trials]
    whole = {_key(identity): identity for identity, _ in known if _ANY not in identity.values()}
    # Only trials with an inert knob: its value as asked for tells them apart well enough.
    whole = whole or {_key(asked): asked for asked in (_asked(identity, trial) for identity, trial in known)}
    groups = []
    for identity in whole.values():
        members = [trial for other, trial in known if _matches(other, identity)]
        plans = [plan for plan in loaded.plans if plan.name == identity["sweep"]]
        groups.append(Group(identity, sorted(members, key=lambda t: t.record.trial_id), plans=plans))
    return _labelled(sorted(groups, key=lambda group: [_sortable(value) for value in group.identity.values()]))


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not number, float(value) if number else 0.0, repr(value))


def _identity(trial: Trial, by: Sequence[str]) -> dict[str, Any]:
    record = trial.record
    identity: dict[str, Any] = {
        "sweep": trial.sweep, "dataset": dataset_name(trial), "split_seed": record.config.get("split_seed"),
        "data": record.data.get("fingerprint"), "model": short_name(str(record.config.get("model_name_or_path", "?"))),
        "weights": record.effective.get("model"), "metric": record.metric, "task": record.task,
    }
    for name in dict.fromkeys([*CURVE_KNOBS, *by]):
        identity[name] = _ANY if _is_inert(trial, name) else trial.knobs.get(name)
    return identity


def _is_inert(trial: Trial, name: str) -> bool:
    return name in trial.record.effective and trial.knobs[name] is None and trial.record.config.get(name) is not None


def _asked(identity: dict[str, Any], trial: Trial) -> dict[str, Any]:
    return {name: trial.record.config.get(name) if value is _ANY else value for name, value in identity.items()}


def _deciding(identity: dict[str, Any]) -> list[str]:
    """Without names where the digest of what they name is known."""
    return [name for name in identity if name not in _NAMED_BY or identity[_NAMED_BY[name]] is None]


def _key(identity: dict[str, Any]) -> str:
    return repr([identity[name] for name in _deciding(identity)])


def _matches(identity: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(identity[name] is _ANY or identity[name] == other[name] for name in _deciding(identity))


def dataset_name(trial: Trial) -> str:
    name = short_name(str(trial.record.config.get("dataset_name", "?")))
    part = trial.record.config.get("dataset_config_name")
    return f"{name}/{part}" if part else name


def short_name(name: str) -> str:
    """A path's last part; a hub id or a bundled name as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if re.match(r"[/.~]", name) or name.count("/") > 1 else name


def _labelled(groups: list[Group]) -> list[Group]:
    """Groups with a label of what differs between them, in the fewest words: the fewest of these differences that tell
    all of them apart. The others are in `also`."""
    if len(groups) == 1:
        return groups
    names = [name for name in groups[0].identity if _values(groups, [name]) > 1]
    chosen = _fewest(groups, names)
    hidden = [*chosen, *_NAMED_BY.values(), "task", *([] if "sweep" not in names else ["sweep"])]
    also = tuple(name for name in names if name not in hidden)
    models = [str(group.identity["model"]) for group in groups]
    short = len({model.rsplit("/", 1)[-1] for model in models}) == len(set(models))
    return [Group(g.identity, g.trials, ", ".join(_part(name, g.identity[name], short) for name in chosen), g.plans,
                  also) for g in groups]


def _fewest(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """The cheapest of `names` that together tell the groups apart as well as all of them do; always with the data set,
    which nothing else may stand for."""
    most, first = _values(groups, names), [name for name in names if name == "dataset"]
    rest = sorted((name for name in names if name != "dataset"), key=_cost)
    sets = ([*first, *found] for size in range(len(rest) + 1) for found in combinations(rest, size)
            if size <= MOST_WORDS or size == len(rest))
    telling = (found for found in sets if _values(groups, found) == most)
    return min(telling, key=lambda found: sum(map(_cost, found)), default=list(names))


def _cost(name: str) -> float:
    """How much a reader has to make of a word: data and model say most, then a knob; a sweep's name hides what differs,
    a digest says nothing."""
    if name in _NAMED_BY.values():
        return 9.0
    return {"dataset": 1.0, "model": 1.1, "train_size": 1.2, "sweep": 2.6}.get(name, 1.3)


def _values(groups: Sequence[Group], names: Sequence[str]) -> int:
    return len({repr([group.identity[name] for name in names]) for group in groups})


def _part(name: str, value: Any, short_model: bool) -> str:
    if name == "model" and short_model:
        return str(value).rsplit("/", 1)[-1]
    if name in ("dataset", "model", "sweep"):
        return str(value)
    if name in ("data", "weights"):
        return f"{name} {str(value)[:8]}"
    if value is None:
        return "all rows" if name == "train_size" else f"default {name}"
    return f"{value} rows" if name == "train_size" else f"{name} {value}"
