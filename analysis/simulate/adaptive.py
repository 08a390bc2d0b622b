"""How often the adaptive search is wrong, how deep it goes and what it costs, beside the grid it stands in for.

The grid: every depth tuned on every seed and confirmed on 10 fresh ones, its verdict by bisection (`verdicts`). The
adaptive search: `analysis.statistics.sequential`, the same functions as `finetune sweep --adaptive` uses. Both see the
same experiment; the search looks at up to 20 of its seeds, the grid at the first 10. Cost is in trial-epochs: trials of
the same number of epochs, tuning included, nothing trained ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from analysis.simulate.verdicts import MARGIN, Shape, shapes
from analysis.simulate.worlds import ACCURACY, ROWS, World, draw, error, percent
from analysis.statistics import bisection, sequential, stats

LAYERS = (3, 6, 12, 24)
CONFIRM = 10
TUNINGS = ((4, 2), (12, 3))  # settings and tuning seeds: sweeps/rotten_tomatoes.yaml, sweeps/freeze_depth.yaml
COLLAPSE = 0.05


class Search(NamedTuple):
    """One verdict in one experiment. Depths are counted from 1; `named` 0: none."""

    named: int
    safe: tuple[int, ...]  # every depth that was called safe on the way
    tested: tuple[int, ...]
    seeds: tuple[int, ...]  # of each tested depth

    def trials(self, settings: int, tuning_seeds: int) -> int:
        """Of a search: each tested depth and full fine-tuning, which is trained on as many seeds as any of them."""
        tuning = sequential.halving_trials(settings, tuning_seeds)
        return (1 + len(self.tested)) * tuning + sum(self.seeds) + max(self.seeds)


def search(correct: np.ndarray, margin: float, max_seeds: int = sequential.MAX_SEEDS) -> Search:
    """The adaptive search over correct (depths, seeds, rows), the first of which is full fine-tuning."""
    candidates = range(1, len(correct))
    alpha = sequential.each_alpha(candidates)
    decisions: dict[int, sequential.Decision] = {}
    while (depth := sequential.next_depths(candidates, decisions).now) is not None:
        seeds = decisions[depth].next_seeds if depth in decisions else sequential.looks(max_seeds)[0]
        losses = correct[0, :seeds].astype(np.float64) - correct[depth, :seeds]
        decisions[depth] = sequential.decide(losses, margin, alpha, max_seeds)
    found = sequential.next_depths(candidates, decisions)
    return Search(found.named or 0, tuple(d for d in found.tested if decisions[d].safe), found.tested,
                  tuple(decisions[d].seeds for d in found.tested))


def grid(correct: np.ndarray, margin: float) -> Search:
    """The grid's verdict on its own seeds."""
    confidence = 1 - bisection.level(len(correct) - 1)
    full = correct[0, :CONFIRM].astype(np.float64)
    path = bisection.bisect(len(correct) - 1, lambda index: stats.upper_bound(
        stats.split_parts(full - correct[index + 1, :CONFIRM]), confidence=confidence) <= margin)
    safe = tuple(test.index + 1 for test in path if test.safe)
    return Search(max(safe, default=0), safe, tuple(test.index + 1 for test in path), (CONFIRM,) * len(path))


def grid_trials(layers: int, settings: int, tuning_seeds: int) -> int:
    return (1 + layers) * (settings * tuning_seeds + CONFIRM)


class Compared(NamedTuple):
    """Adaptive search and grid over many experiments: pairs (adaptive, grid) of shares and means.

    wrong: a depth that loses the margin or more was called safe. power: the depth that is tested first, where it loses
    less than the margin, is called safe (nan where it does not). cost: share of the grid's trial-epochs, one per entry
    of TUNINGS.
    """

    wrong: tuple[float, float]
    power: tuple[float, float]
    named: tuple[float, float]
    seeds: float  # per tested depth
    cost: tuple[float, ...]


def compare(world: World, shape: Shape, repeats: int, rng: np.random.Generator, margin: float = MARGIN) -> Compared:
    """`world.n_seeds` is the search's largest number of seeds. Losses are shares of the margin."""
    layers, real = len(shape.losses), (1 - world.collapse) * margin
    accuracies = [ACCURACY, *(ACCURACY - margin * loss for loss in shape.losses)]
    found: list[tuple[Search, Search]] = []
    for _ in range(repeats):
        correct, _ = draw(world, accuracies, rng)
        found.append((search(correct, real, world.n_seeds), grid(correct, real)))
    return _compared(found, shape, layers)


def _compared(found: Sequence[tuple[Search, Search]], shape: Shape, layers: int) -> Compared:
    unsafe = set(shape.unsafe)
    first = found[0][0].tested[0]

    def share(of: Sequence[bool]) -> float:
        return float(np.mean(of))

    def pair(measure) -> tuple[float, float]:
        return share([measure(one) for one, _ in found]), share([measure(other) for _, other in found])

    return Compared(
        pair(lambda one: bool(unsafe & set(one.safe))),
        pair(lambda one: first in one.safe) if first not in unsafe else (float("nan"),) * 2,
        pair(lambda one: one.named),
        share([seeds for one, _ in found for seeds in one.seeds]),
        tuple(share([one.trials(*tuning) for one, _ in found]) / grid_trials(layers, *tuning) for tuning in TUNINGS),
    )


class Case(NamedTuple):
    world: World
    shape: Shape
    margin: float


def cases(layers: int) -> list[Case]:
    """Shapes of `verdicts` and two more at 1 point; collapsed seeds; and a margin of 2 that the rows can show."""
    world = World(sequential.MAX_SEEDS, 0.008)
    quarter = layers // 4
    more = [Shape("a knee after a quarter", [0.0] * quarter + [1.0 + 0.5 * i for i in range(layers - quarter)]),
            Shape("a ramp to four margins", list(np.linspace(4 / layers, 4, layers)))]
    known = shapes(layers)
    found = [Case(world, shape, MARGIN) for shape in (*known, *more)]
    found += [Case(world._replace(collapse=COLLAPSE), shape, MARGIN) for shape in known[:2]]
    return [*found, *(Case(world, shape, 2 * MARGIN) for shape in known[:3])]


def adaptive_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    """Lines of Markdown, as they are computed."""
    yield (f"\n### The adaptive search beside the grid, up to {sequential.MAX_SEEDS} seeds, {ROWS:,} rows, seed sd 0.8 "
           f"points (± {error(repeats):.1f} for “wrong”)\n")
    costs = [f"cost, {settings} settings × {seeds} seeds" for settings, seeds in TUNINGS]
    columns = ["layers", "losses", "margin", "wrong (%)", "grid's", "power (%)", "grid's", "named depth", "grid's",
               "seeds per tested depth", *costs]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for layers in LAYERS:
        costs_found = []
        for case in cases(layers):
            found = compare(case.world, case.shape, repeats, rng, case.margin)
            costs_found.append(found.cost)
            yield _line(layers, case, found)
        mean = " | ".join(f"**{cost:.2f}**" for cost in np.mean(costs_found, axis=0))
        yield f"| {layers} | **mean** | | | | | | | | | {mean} |"


def _line(layers: int, case: Case, found: Compared) -> str:
    name = case.shape.name + (f", {case.world.collapse:.0%} collapsed" if case.world.collapse else "")
    power = ["–" if value != value else percent(value) for value in found.power]
    cells = [str(layers), name, f"{100 * case.margin:g}", *map(percent, found.wrong), *power,
             *(f"{value:.1f}" for value in found.named), f"{found.seeds:.1f}", *(f"{cost:.2f}" for cost in found.cost)]
    return f"| {' | '.join(cells)} |"
