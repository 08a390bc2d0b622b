"""`--confirm N`: tune on the file's seeds, then train each depth's chosen setting on N fresh ones.

The same trained models may not choose and testify: a setting that was chosen on a seed is favoured by that seed's luck.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from finetune.config import KNOBS, NEVER, TrialConfig

# Not tuned: a knob of these groups asks a question of its own (another data set, model, training size …). Within each
# question, and for each strategy, one setting is chosen. The report draws one curve per question by the same rule.
_QUESTIONS = ("freezing", "randomness", "data", "model", "execution")
CONDITIONS = tuple(
    knob.name for knob in KNOBS.values()
    if (knob.group in _QUESTIONS or knob.name in ("pooling", "metric_for_best_model")) and knob.in_trial_id != NEVER
    and knob.name not in ("freeze_depth", "strategy", "seed")
)
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Tuned:
    """One trial of the tuning phase. `kind` is its canonical strategy, `value` its metric on validation."""

    values: Mapping[str, Any]
    setting_id: str
    kind: str
    value: float

    @property
    def config(self) -> TrialConfig:
        return TrialConfig.from_mapping(self.values)


@dataclass(frozen=True)
class Choice:
    """The setting that won for one strategy under one condition. `values` has no seed."""

    values: dict[str, Any]
    kind: str
    mean: float
    seeds: tuple[int, ...]  # on which it was tuned
    rivals: int  # settings it was compared with, itself included


def choose(trials: Iterable[Tuned], *, maximize: bool) -> list[Choice]:
    """Per condition and strategy, the setting with the best mean over seeds.

    A setting that lacks seeds which others have (failed or pruned trials) is not comparable and cannot win.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Tuned]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        condition = tuple(_hashable(trial.config.get(name)) for name in CONDITIONS)
        groups[(*condition, trial.kind)][trial.setting_id].append(trial)
    return [_best(list(settings.values()), maximize) for settings in groups.values()]


def _best(settings: Sequence[list[Tuned]], maximize: bool) -> Choice:
    full = max(len(setting) for setting in settings)
    whole = [setting for setting in settings if len(setting) == full]
    sign = 1 if maximize else -1
    winner = max(whole, key=lambda setting: sign * fmean(trial.value for trial in setting))
    values = {name: value for name, value in winner[0].values.items() if name != "seed"}
    seeds = tuple(sorted(trial.config.seed for trial in winner))
    return Choice(values, winner[0].kind, fmean(trial.value for trial in winner), seeds, len(settings))


def fresh_seeds(used: Iterable[int], count: int) -> list[int]:
    """`count` seeds that tuning has not seen, the same for every choice, so that comparisons are paired."""
    taken = set(used)
    first = max(taken, default=int(KNOBS["seed"].default)) + 1
    candidates = (seed % (LARGEST_SEED + 1) for seed in range(first, first + count + len(taken)))
    return [seed for seed in candidates if seed not in taken][:count]


def confirmation_values(choices: Sequence[Choice], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The knobs of every confirming trial, strategy by strategy."""
    return [{**choice.values, "seed": seed} for choice in choices for seed in seeds]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
