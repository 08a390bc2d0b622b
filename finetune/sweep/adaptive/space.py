"""What an adaptive sweep may ask for: candidates, settings, tuning seeds and fresh seeds, read off the planned grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Problem
from finetune.results import frozen_rank
from finetune.sweep.plan import Plan
from finetune.sweep.search.confirmation import CONDITIONS, fresh_seeds
from finetune.sweep.search.trials import Candidate

FULL = 0  # freeze_depth of full fine-tuning, which every candidate is compared with
TUNE, CONFIRM = "tune", "confirm"


class Wish(NamedTuple):
    """A trial that is asked for by what it is; its trial_id is known once it has been resolved."""

    phase: str
    depth: int
    setting_id: str
    seed: int


@dataclass(frozen=True)
class Space:
    """`tuning` {depth: {setting_id: {seed: trial}}}; `candidates` without full fine-tuning, shallow to deep."""

    candidates: tuple[int, ...]
    tuning: Mapping[int, Mapping[str, Mapping[int, Candidate]]]
    tuning_seeds: tuple[int, ...]
    fresh: tuple[int, ...]
    margin: float  # in the metric's unit (a share: a fraction)
    max_seeds: int
    tuned_by: str  # the validation metric that chooses
    tuned_upwards: bool
    metric: str  # of the test split, whose loss is bounded
    task: str
    num_layers: int

    @property
    def looks(self) -> tuple[int, ...]:
        from analysis.statistics import sequential

        return sequential.looks(self.max_seeds)

    @property
    def alpha(self) -> float:
        """Of one depth's test."""
        from analysis.statistics import sequential

        return sequential.each_alpha(self.candidates)

    def values(self, wish: Wish) -> dict[str, Any]:
        """The knobs of a trial, as the file writes them."""
        some = next(iter(self.tuning[wish.depth][wish.setting_id].values()))
        return {**some.values, "seed": wish.seed}

    def phase_of(self, seed: int) -> str:
        return TUNE if seed in self.tuning_seeds else CONFIRM

    @property
    def settings(self) -> int:
        """Of the depth that has the most: where a knob acts on nothing, settings are one."""
        return max(len(settings) for settings in self.tuning.values())


def space_of(plan: Plan, max_seeds: int) -> Space:
    """Raises ConfigError where the grid asks more than one question."""
    configs = {c.trial_id: TrialConfig.from_mapping({**c.values, **plan.fixed}) for c in plan.candidates}
    problems = _several(list(configs.values()))
    if problems:
        raise ConfigError(problems)
    tuning: dict[int, dict[str, dict[int, Candidate]]] = defaultdict(lambda: defaultdict(dict))
    for candidate in plan.candidates:
        config = configs[candidate.trial_id]
        tuning[config.freeze_depth or FULL][candidate.setting_id][config.seed] = candidate
    seeds = tuple(dict.fromkeys(config.seed for config in configs.values()))
    first, content = configs[plan.candidates[0].trial_id], next(iter(plan.descriptions.values())).content
    return Space(
        tuple(sorted((depth for depth in tuning if depth != FULL), key=frozen_rank)),
        {depth: {name: dict(trials) for name, trials in settings.items()} for depth, settings in tuning.items()},
        tuple(sorted(seeds)), tuple(fresh_seeds(seeds, max_seeds)), first.margin, max_seeds, plan.metric,
        plan.maximize, content["metric"], content["task"], content["num_layers"],
    )


def _several(configs: list[TrialConfig]) -> list[Problem | str]:
    problems: list[Problem | str] = []
    for name in CONDITIONS:
        values = list(dict.fromkeys(str(config.get(name)) for config in configs))
        if len(values) > 1:
            problems.append(Problem(name, ", ".join(values), "allowed with --adaptive: one value, since each is a "
                                    f"question of its own; fix it with --set {name}={values[0]}, a sweep for each"))
    return problems
