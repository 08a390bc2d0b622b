"""Which setting stands for a depth, and which seeds testify: chosen on validation, measured on other seeds' test rows.

The same trained models may not choose and testify. `finetune sweep --confirm` marks the trials that tune and those
that confirm; where there are confirming trials, only they are reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from analysis.load.adaptive import AdaptivePlan
from analysis.load.groups import Group
from analysis.load.records import Arm, Trial
from analysis.statistics import sequential
from finetune.training.evaluation import higher_is_better


@dataclass
class Setting:
    """All trials of one setting in one phase."""

    setting_id: str
    arm: Arm
    phase: str
    example: Trial  # any of its trials, also a lost one
    trials: dict[int, Trial] = field(default_factory=dict)  # complete, by seed
    lost: dict[int, str] = field(default_factory=dict)  # seed -> why it has no result
    duplicates: list[int] = field(default_factory=list)  # seeds that were trained more than once

    @property
    def seeds(self) -> list[int]:
        return sorted(self.trials)

    def knobs(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self.example.knobs.get(name) for name in names}

    def score(self, split: str, metric: str) -> float:
        """Mean over seeds, with a lost seed counted at the baseline; nan where nothing is known."""
        values = [trial.metric(split, metric) for trial in self.trials.values()]
        known = [value for value in values if value is not None]
        floor = baseline_value(self.example, split, metric)
        lost = [floor] * len(self.lost) if floor is not None else []
        return fmean([*known, *lost]) if known else math.nan


@dataclass(frozen=True)
class Choice:
    """The setting that stands for an arm on the curve."""

    arm: Arm
    setting: Setting  # as reported
    candidates: list[Setting]  # what tuning chose from
    missing: dict[int, str]  # expected seed -> why there is no result

    @property
    def chosen_by_tuning(self) -> bool:
        return len(self.candidates) > 1


@dataclass(frozen=True)
class Protocol:
    """How a group's curve was made."""

    group: Group
    choices: list[Choice]  # by depth, then strategies
    confirmed: bool
    unconfirmed: list[Arm]  # arms left out because others were confirmed and they were not
    without_result: dict[Arm, str]  # arms of which no trial has a result, and why
    settings: list[Setting]  # of both phases
    outside_plan: int  # trials on disk that the sweep as it stands does not ask for
    waiting: list[Arm] = field(default_factory=list)  # of an adaptive sweep: begun, and without a look so far

    @property
    def adaptive(self) -> AdaptivePlan | None:
        return self.group.adaptive

    @property
    def tuning(self) -> list[Setting]:
        return [setting for setting in self.settings if setting.phase == "tune"]


def baseline_value(trial: Trial, split: str, metric: str) -> float | None:
    value = (trial.record.baseline.get(split) or {}).get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def make_protocol(group: Group) -> Protocol:
    """Choose one setting per arm of the group."""
    found = _make_protocol(group)
    return found if group.adaptive is None else _at_looks(found, group.adaptive)


def _at_looks(protocol: Protocol, plan: AdaptivePlan) -> Protocol:
    """An adaptive sweep's protocol: each arm with the fresh seeds of its last complete look, and no others.

    What is lost among them is missing; seeds that no look has asked for are not.
    """
    cut = [(choice, _at_look(choice.setting, plan)) for choice in protocol.choices] if protocol.confirmed else []
    choices = [replace(choice, setting=setting, missing=dict(setting.lost)) for choice, setting in cut
               if setting is not None and setting.trials]
    without = {**_untunable(protocol), **protocol.without_result}
    begun = {setting.arm for setting in protocol.settings} - {choice.arm for choice in choices} - set(without)
    return replace(protocol, choices=choices, confirmed=True, unconfirmed=[], without_result=without,
                   waiting=sorted(begun, key=lambda arm: arm.order))


def _as_searched(group: Group, options: list[Setting], tuning: Sequence[Setting]) -> list[Setting]:
    """The confirming setting that the search's halving prefers, where an earlier sweep has confirmed others too."""
    alive = {s.setting_id: s for s in tuning if s.arm == options[0].arm}
    if len(options) < 2 or not alive:
        return options
    maximize = higher_is_better(group.selection)
    for rung, _ in enumerate(seeds := sorted({seed for plan in group.plans for seed in plan.seeds})):
        scores = {name: [_score(s, seed, group.selection) for seed in seeds[:rung + 1]] for name, s in alive.items()}
        alive = {name: alive[name] for name in sequential.halving(scores, rung, maximize=maximize)}
        if len(alive) < 2:
            break
    return [s for s in options if s.setting_id == next(iter(alive), None)] or options


def _score(setting: Setting, seed: int, metric: str) -> float:
    value = setting.trials[seed].metric("validation", metric) if seed in setting.trials else None
    return math.nan if value is None else value


def _untunable(protocol: Protocol) -> dict[Arm, str]:
    """Arms of which no tuning trial has a result, and why."""
    by_arm: dict[Arm, list[Setting]] = defaultdict(list)
    for setting in protocol.tuning:
        by_arm[setting.arm].append(setting)
    return {arm: ", ".join(sorted({why for s in settings for why in s.lost.values()}))
            for arm, settings in by_arm.items() if not any(s.trials for s in settings)}


def _at_look(setting: Setting, plan: AdaptivePlan) -> Setting | None:
    seeds = set(plan.seeds[:plan.last_look({*setting.trials, *setting.lost})])
    return replace(setting, trials={seed: trial for seed, trial in setting.trials.items() if seed in seeds},
                   lost={seed: why for seed, why in setting.lost.items() if seed in seeds}) if seeds else None


def _make_protocol(group: Group) -> Protocol:
    trials = _planned(group)
    settings = collect_settings(trials, group.metric)
    confirming = [s for s in settings if s.phase == "confirm"]
    tuning = [s for s in settings if s.phase == "tune"]
    reported = confirming or tuning
    by_arm: dict[Arm, list[Setting]] = defaultdict(list)
    for setting in reported:
        by_arm[setting.arm].append(setting)
    if group.adaptive is not None and confirming:
        by_arm = {arm: _as_searched(group, options, tuning) for arm, options in by_arm.items()}
    chosen = {arm: choose(options, group.selection) for arm, options in by_arm.items()}
    expected = expected_seeds(group, reported, [s for s in chosen.values() if s is not None])
    choices = [
        Choice(arm, setting, [s for s in tuning if s.arm == arm] or by_arm[arm], _missing(setting, expected))
        for arm, setting in chosen.items() if setting is not None
    ]
    unconfirmed = {s.arm for s in tuning} - set(by_arm) if confirming else set()
    without = {arm: ", ".join(sorted({why for s in by_arm[arm] for why in s.lost.values()}))
               for arm, setting in chosen.items() if setting is None}
    return Protocol(group, sorted(choices, key=lambda c: c.arm.order), bool(confirming),
                    sorted(unconfirmed, key=lambda arm: arm.order), without, settings,
                    len(group.trials) - len(trials))


def _planned(group: Group) -> list[Trial]:
    """Without tuning trials that an earlier version of the sweep left behind (a grid lists what it asks for)."""
    if group.adaptive is not None:
        return group.trials
    grids = [plan for plan in group.plans if plan.method == "grid" and plan.trial_ids]
    if not grids or len(grids) != len(group.plans):
        return group.trials
    asked = frozenset().union(*(plan.trial_ids for plan in grids))
    return [t for t in group.trials if t.phase != "tune" or t.record.trial_id in asked] or group.trials


def collect_settings(trials: Sequence[Trial], metric: str) -> list[Setting]:
    settings: dict[tuple[str, str], Setting] = {}
    by_strategy = any(trial.arm.freeze_depth is None for trial in trials)
    for trial in trials:
        key = (trial.phase, trial.record.setting_id)
        setting = settings.setdefault(key, Setting(
            trial.record.setting_id, replace(trial.arm, by_strategy=by_strategy), trial.phase, trial))
        reason = _why_lost(trial, metric)
        if trial.seed in setting.trials:
            setting.duplicates += [] if reason else [trial.seed]
        elif reason:
            setting.lost[trial.seed] = reason
        else:
            setting.trials[trial.seed] = trial
            setting.lost.pop(trial.seed, None)
    return list(settings.values())


def _why_lost(trial: Trial, metric: str) -> str | None:
    """None for a trial with a usable result."""
    record = trial.record
    if record.state == "failed":
        return f"failed ({(record.error or {}).get('kind', 'unknown')})"
    if record.state == "pruned":
        return "pruned"
    if trial.metric("test", metric) is None or trial.metric("validation", metric) is None:
        return f"no finite {metric}"
    return None


def choose(options: Sequence[Setting], metric: str) -> Setting | None:
    """The setting that is best on validation by its mean over seeds; ties go to the smallest setting_id.

    One that lacks seeds which others have (failed, pruned, not run) is not comparable and cannot win.
    """
    most = max((len(s.trials) for s in options), default=0)
    if most == 0:
        return None
    eligible = [s for s in options if len(s.trials) == most]
    sign = 1 if higher_is_better(metric) else -1
    return min(eligible, key=lambda s: (-sign * s.score("validation", metric), s.setting_id))


def expected_seeds(group: Group, reported: Sequence[Setting], chosen: Sequence[Setting]) -> list[int]:
    """Seeds that every depth should have: planned, used by a chosen setting, or tried by most settings of an arm."""
    expected = {seed for setting in chosen for seed in (*setting.trials, *setting.lost)}
    if reported and reported[0].phase == "confirm":
        return sorted(expected | {seed for s in reported for seed in (*s.trials, *s.lost)})
    if all(plan.method == "grid" for plan in group.plans):
        expected |= {seed for plan in group.plans for seed in plan.seeds}
    by_arm: dict[Arm, list[Setting]] = defaultdict(list)
    for setting in reported:
        by_arm[setting.arm].append(setting)
    for settings in by_arm.values():
        tried = [seed for s in settings for seed in (*s.trials, *s.lost)]
        expected |= {seed for seed in tried if 2 * tried.count(seed) > len(settings)}
    return sorted(expected)


def _missing(setting: Setting, expected: Sequence[int]) -> dict[int, str]:
    return {seed: setting.lost.get(seed, "never run") for seed in expected if seed not in setting.trials}
