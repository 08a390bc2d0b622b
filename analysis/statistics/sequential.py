"""The verdict in looks: one depth after the other in the order of a bisection, each with no more seeds than it needs.

One depth's test. Its loss against full fine-tuning is looked at after 5, 7, 10, 14, … `max_seeds` seeds. The error
that the test may make is spent over the looks by a function of the seeds (Lan & DeMets 1983), and what a look may
spend becomes a one-sided level by the joint normal distribution of the looks (Armitage, McPherson & Rowe 1969;
Jennison & Turnbull 2000, chapter 19); the level is then used with the split-t bound of that look ("significance level
approach", Jennison & Turnbull 2000, section 4.4). The looks share the test rows, so that their true correlation is at
least sqrt(s/S), the one used here: by Slepian's inequality the error is then at most what was spent. The bound at a
look's level is a repeated confidence bound (Jennison & Turnbull 1989): over all looks together it holds with 1 -
alpha, so that it may be reported whatever made the sweep stop.

Several depths. Bisection makes at most m tests (`bisection`), each with alpha/m.

What `finetune sweep --adaptive` leaves in `sweep.json`, for the report and for a restart:

    "adaptive": {
      "candidates": [-1, 1, …, L],      depths in the order of what is frozen, without 0
      "margin": 0.01, "alpha": 0.05, "max_seeds": 20, "metric": "accuracy", "population": "new_text",
      "seeds": [3, 4, …],               the fresh seeds in the order in which looks use them; max_seeds of them
      "decisions": [                    one per look that was taken, in order; a depth's last one stands
        {"freeze_depth": 6, "look": 1, "seeds": 5, "state": "undecided" | "safe" | "unsafe" | "futile",
         "estimate": 0.003, "lower": -0.011, "bound": 0.017, "confidence": 0.9958, "lost": 0}],
      "trained_ahead_unused": 0         confirming and tuning trials of depths that no decision needed
    }

`decisions` can be computed from the records at any time (`paired.losses`, then `decide`, on the first 5, 7, … of
`seeds`); the file is what was decided when. Tuning ties go to the smaller setting_id, as in the report. Estimates and
bounds are in the metric's unit (a share: fractions), positive where freezing loses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, special

from analysis.statistics import bisection, stats
from analysis.statistics.stats import Parts, Population

State = Literal["safe", "unsafe", "futile", "undecided"]
ALPHA = 0.05  # of the verdict as a whole
MAX_SEEDS = 20
GRID_SEEDS = 10  # fresh ones per depth, of the grid that an adaptive sweep is compared with
FIRST_LOOK = stats.VERDICT_SEEDS
USUAL_SEEDS, USUAL_REFERENCE_SEEDS = 7.5, 11  # of a tested depth and of full fine-tuning, in the simulated worlds
SPENDING_POWER = 1.5
HALVING = 3  # Hyperband's usual reduction (Li et al. 2018)
FUTILE = 0.2  # a depth is given up when the chance that more seeds show it safe falls below this
_GRID = 401  # points of the numerical integration, odd for Simpson's rule
_FAR = 8.0  # standard deviations beyond which nothing is left


def looks(max_seeds: int = MAX_SEEDS) -> tuple[int, ...]:
    """How many seeds each look has: 5, 7, 10, 14, 20, 28, 40 … (each √2 times the one before) and max_seeds.

    Raises ValueError below 5.
    """
    if max_seeds < FIRST_LOOK:
        raise ValueError(f"max_seeds = {max_seeds}: a verdict needs at least {FIRST_LOOK} seeds")
    steps = (round(FIRST_LOOK * 2 ** (step / 2)) for step in itertools.count())
    return (*itertools.takewhile(lambda seeds: seeds < max_seeds, steps), max_seeds)


def spent(alpha: float, seeds: int, max_seeds: int) -> float:
    """How much of alpha may be spent by the look at `seeds`: alpha·t^1.5 with t = seeds / max_seeds.

    The power family (Kim & DeMets, Biometrika 74, 1987), between Pocock's and O'Brien and Fleming's boundaries. 1.5 by
    simulation: with it bisections name depths as deep as a grid of 10 seeds does, at the least cost
    (`analysis.simulate --table adaptive`).
    """
    return alpha * min(seeds / max_seeds, 1.0) ** SPENDING_POWER


@cache
def levels(alpha: float, max_seeds: int = MAX_SEEDS) -> tuple[float, ...]:
    """The one-sided level of each look: crossing at any of them has chance alpha where the loss is at the margin."""
    at = looks(max_seeds)
    times = [seeds / max_seeds for seeds in at]
    found: list[float] = []
    density, places, before = np.ones(1), np.zeros(1), 0.0
    for seeds, time in zip(at, times, strict=True):
        step = math.sqrt(time - before)
        may_spend = spent(alpha, seeds, max_seeds) - (spent(alpha, at[len(found) - 1], max_seeds) if found else 0.0)
        border = _border(density, places, step, may_spend)
        found.append(float(special.ndtr(-border / math.sqrt(time))))
        new = np.linspace(min(-_FAR * math.sqrt(time), border - 1), border, _GRID)
        arrived = np.exp(-(((new[:, None] - places) / step) ** 2) / 2) @ density / (step * math.sqrt(2 * math.pi))
        density, places, before = arrived * _simpson(new), new, time
    return tuple(found)


def _border(density: np.ndarray, places: np.ndarray, step: float, tail: float) -> float:
    """Where a Brownian path that stands at `places` with these weights is found above after `step` with chance `tail`.
    """
    def excess(border: float) -> float:
        return float(density @ special.ndtr((places - border) / step)) - tail

    return float(optimize.brentq(excess, -_FAR, 2 * _FAR))


def _simpson(grid: np.ndarray) -> np.ndarray:
    weights = np.ones(len(grid))
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return weights * (grid[1] - grid[0]) / 3


class Decision(NamedTuple):
    """What one look at one depth says. The loss is `estimate`; with `confidence`, over all looks together with
    1 - alpha, it is at most `bound`, and likewise at least `lower` (fractions of the metric, nan where unknown)."""

    state: State
    estimate: float
    bound: float
    lower: float
    seeds: int
    look: int  # counted from 1
    confidence: float  # of the bound at this look
    next_seeds: int | None  # of the next look; None after the last
    lost: int = 0  # seeds without a result
    chance: float = math.nan  # that more seeds show it safe, as predicted from these

    @property
    def final(self) -> bool:
        """Whether more seeds of this depth are of no use."""
        return self.state != "undecided" or self.next_seeds is None

    @property
    def safe(self) -> bool:
        return self.state == "safe"


def without_result(seeds: int = 0, look: int = 0) -> Decision:
    """Of a depth of which no pair of `seeds` has a result: not safe, and more seeds would not change it. Without seeds:
    all of its tuning trials have failed."""
    return Decision("undecided", math.nan, math.nan, math.nan, seeds, look, math.nan, None, lost=seeds)


def decide(
    losses: Parts | np.ndarray, margin: float, alpha: float, max_seeds: int = MAX_SEEDS, *,
    population: Population = "new_text", seeds: int | None = None, lost: int = 0,
) -> Decision:
    """One look at a depth's loss against full fine-tuning, paired by seed (and row).

    losses: `Parts`, or (seeds, rows) differences full - depth, positive where freezing loses. alpha: of this depth's
    whole test (`bisection.level`). seeds: how many were trained, where some are copies or lost (default: as many as in
    `losses`). A collapsed seed counts as it is. A lost one (failed, not finite) can only flatter: such a depth is not
    called safe, and as more seeds do not change that, it is given up. Raises ValueError where no look has `seeds`.

    safe: the bound is at most the margin. unsafe: the loss is above the margin at the same confidence. futile: the
    predicted chance that `max_seeds` show it safe is below 20%; not binding, since the levels do not count on it.
    """
    parts = losses if isinstance(losses, Parts) else stats.split_parts(losses)
    trained, at = parts.n_seeds + lost if seeds is None else seeds, looks(max_seeds)
    if trained not in at:
        raise ValueError(f"seeds = {trained}: looks are at {', '.join(map(str, at))}")
    look = at.index(trained)
    level = levels(alpha, max_seeds)[look]
    known = parts.n_seeds >= stats.INTERVAL_SEEDS
    bound = stats.upper_bound(parts, population, 1 - level) if known else math.nan
    lower = stats.lower_bound(parts, population, 1 - level) if known else math.nan
    chance = predicted(parts, margin, alpha, max_seeds, population)
    state = _state(parts, bound, lower, margin, chance, lost)
    following = at[look + 1] if look + 1 < len(at) else None
    return Decision(state, parts.estimate, bound, lower, trained, look + 1, 1 - level, following, lost, chance)


def _state(parts: Parts, bound: float, lower: float, margin: float, chance: float, lost: int) -> State:
    if lost:
        return "futile"
    if bound <= margin and parts.n_seeds >= stats.VERDICT_SEEDS:
        return "safe"
    if lower > margin:
        return "unsafe"
    return "futile" if chance < FUTILE else "undecided"


def predicted(parts: Parts, margin: float, alpha: float, max_seeds: int, population: Population = "new_text") -> float:
    """The predictive chance that the last look calls the depth safe (Spiegelhalter, Freedman & Blackburn 1986).

    With a flat prior the last estimate is around the present one with the variance that (S - s) further of S seeds add,
    seeds·(1 - s/S), on s - 1 degrees of freedom; the rows' luck stays what it is. nan with fewer than three seeds.
    """
    if parts.n_seeds < stats.INTERVAL_SEEDS:
        return math.nan
    share = min(parts.n_seeds / max_seeds, 1.0)
    last = parts._replace(seeds=parts.seeds * share, n_seeds=max_seeds, degrees=max_seeds - 1)
    room = margin - parts.estimate - stats.half_width(last, 1 - levels(alpha, max_seeds)[-1], population)
    spread = math.sqrt(parts.seeds * (1 - share))
    if spread == 0:
        return float(room >= 0)
    return float(special.stdtr(parts.degrees, room / spread))


def repeated_confidence(seeds: int, max_seeds: int, confidence: float = 1 - ALPHA) -> float:
    """The nominal confidence of a one-sided bound at this look whose claim holds at all looks together with
    `confidence` (a repeated confidence bound). Between two looks that of the earlier one."""
    at = looks(max_seeds)
    return 1 - levels(1 - confidence, max_seeds)[max(sum(look <= seeds for look in at) - 1, 0)]


def repeated_p_value(p_value: float, seeds: int, max_seeds: int) -> float:
    """The two-sided p-value that agrees with the repeated interval at this look; nominal p-value as without looks."""
    if math.isnan(p_value) or p_value >= 1:
        return p_value

    def excess(alpha: float) -> float:
        return 1 - repeated_confidence(seeds, max_seeds, 1 - alpha) - p_value / 2

    return 1.0 if excess(0.5) <= 0 else min(1.0, 2 * float(optimize.brentq(excess, p_value / 4, 0.5)))


class Step(NamedTuple):
    """Where a bisection stands: the depth to test `now` (None: done), those that would come after either result,
    and the deepest that was shown safe so far."""

    now: int | None
    if_safe: int | None
    if_not: int | None
    named: int | None
    tested: tuple[int, ...]


def next_depths(candidates: Sequence[int], decisions: Mapping[int, Decision]) -> Step:
    """The bisection over `candidates` (in the order of what is frozen), given each depth's last decision.

    A depth without a decision, or with one that is not final, is to be tested now. Decisions of depths that lie off
    the path are not looked at.
    """
    final = {depth: decision.safe for depth, decision in decisions.items() if decision.final}
    low, high, tested, named = -1, len(candidates), [], None
    while high - low > 1:
        middle = (low + high) // 2
        depth = candidates[middle]
        if depth not in final:
            after = ((middle + high) // 2, (low + middle) // 2)
            return Step(depth, candidates[after[0]] if after[0] > middle else None,
                        candidates[after[1]] if after[1] > low else None, named, tuple(tested))
        tested.append(depth)
        named = depth if final[depth] else named
        low, high = (middle, high) if final[depth] else (low, middle)
    return Step(None, None, None, named, tuple(tested))


def each_alpha(candidates: Sequence[int], alpha: float = ALPHA) -> float:
    """The error that one depth's test may make over all its looks: alpha/m."""
    return bisection.level(len(candidates), alpha)


def survivors(count: int) -> int:
    """How many of `count` settings go on to the next tuning seed."""
    return math.ceil(count / HALVING)


def halving(scores: Mapping[str, Sequence[float]], rung: int, *, maximize: bool = True) -> list[str]:
    """Successive halving over settings by seeds (Jamieson & Talwalkar 2016): those that get the next tuning seed.

    scores: setting -> its validation metric on the tuning seeds so far, in the order of the seeds. On rung r (from 0)
    a setting has r + 1 of them; the best third by their mean, rounded up, goes on; ties go to the smaller name. A
    setting that lacks a finite score is not comparable and is dropped; [] where all do. Best first: after the last
    seed the first one is the choice.
    """
    whole = [name for name, values in scores.items() if len(values) > rung and np.isfinite(values[:rung + 1]).all()]
    sign = -1 if maximize else 1
    ranked = sorted(whole, key=lambda name: (sign * float(np.mean(scores[name][:rung + 1])), name))
    return ranked[:survivors(len(scores))]


def halving_trials(settings: int, seeds: int) -> int:
    """How many trials tuning one depth takes: K + ⌈K/3⌉ + ⌈K/9⌉ … over the seeds, until one setting is left."""
    total = 0
    for _ in range(seeds):
        total += settings
        if settings == 1:
            break
        settings = survivors(settings)
    return total


class Plan(NamedTuple):
    """Numbers of trials: of an adaptive sweep at least, as a rule and at most; of the grid with 10 confirming seeds."""

    least: int
    expected: int
    most: int
    grid: int


def plan(candidates: int, settings: int, tuning_seeds: int, max_seeds: int = MAX_SEEDS, confirm: int = GRID_SEEDS
         ) -> Plan:
    """Trials for `candidates` depths beside full fine-tuning, `settings` each; without what is trained ahead.

    expected: if the deepest safe depth may as well be any of them, with the simulation's usual numbers of seeds.
    """
    tests, tuning = bisection.tests_needed(candidates), halving_trials(settings, tuning_seeds)
    paths = [len(bisection.bisect(candidates, lambda index, knee=knee: index < knee)) for knee in range(candidates + 1)]
    usual = sum(paths) / len(paths)
    expected = (1 + usual) * tuning + usual * min(USUAL_SEEDS, max_seeds) + min(USUAL_REFERENCE_SEEDS, max_seeds)
    return Plan((1 + min(paths)) * tuning + (1 + min(paths)) * FIRST_LOOK, round(expected),
                (1 + tests) * (tuning + max_seeds), (1 + candidates) * (settings * tuning_seeds + confirm))
