"""How often verdicts are wrong, and how deep they dare to go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as distributions

from analysis.simulate.worlds import ACCURACY, ROWS, SEEDS, World, draw, error, header, percent, row, worlds
from analysis.statistics import bisection, stats
from analysis.statistics.stats import Parts

DEPTHS = 6
MARGIN = 0.01
IDEAL_POWER = 0.8


class Verdicts(NamedTuple):
    """`wrong`: experiments in which any depth is called safe although all lie at the margin.

    `power`: mean place of the named depth, as a share of all, where none loses anything, at the margin at which the
    ideal fixed sequence, which knows the variance, gets 80% of the way. `sequence`: the same for our bounds tested from
    shallow to deep at 5% each instead of in the order of a bisection.
    """

    wrong: float
    power: float
    sequence: float
    repeats: int


def verdicts(world: World, repeats: int, rng: np.random.Generator, depths: int = DEPTHS) -> Verdicts:
    margin = (1 - world.collapse) * MARGIN
    at_margin = _losses(world, repeats, [ACCURACY] + [ACCURACY - MARGIN] * depths, rng)
    wrong = float(np.mean(_named(at_margin.strict <= margin) > 0))
    nothing_lost = _losses(world, repeats, [ACCURACY] * (depths + 1), rng)
    ideal = distributions.norm.ppf(0.95) * float(nothing_lost.estimate.std())
    needed = ideal + float(np.quantile(np.maximum.accumulate(nothing_lost.estimate, axis=1), IDEAL_POWER))
    return Verdicts(wrong, float(_named(nothing_lost.strict <= needed).mean() / depths),
                    float(_in_sequence(nothing_lost.bound <= needed).mean() / depths), repeats)


class Losses(NamedTuple):
    """(repeats, depths) each: the estimated loss against the first arm, its one-sided 95% bound, and the bound at the
    level of a bisection's single test."""

    estimate: np.ndarray
    bound: np.ndarray
    strict: np.ndarray


def _losses(world: World, repeats: int, accuracies: Sequence[float], rng: np.random.Generator) -> Losses:
    found = np.empty((3, repeats, len(accuracies) - 1))
    confidence = 1 - bisection.level(len(accuracies) - 1)
    for repeat in range(repeats):
        correct, _ = draw(world, accuracies, rng)
        full = correct[0].astype(np.float64)
        for depth, arm in enumerate(correct[1:]):
            parts: Parts = stats.split_parts(full - arm)
            found[:, repeat, depth] = (parts.estimate, stats.upper_bound(parts),
                                       stats.upper_bound(parts, confidence=confidence))
    return Losses(*found)


def _named(safe: np.ndarray) -> np.ndarray:
    """The depth (1 … n; 0 none) that a bisection names; safe (repeats, depths) -> (repeats,)."""
    return np.array([1 + (-1 if (found := bisection.deepest(bisection.bisect(len(row), row.__getitem__))) is None
                          else found) for row in safe])


def _in_sequence(safe: np.ndarray) -> np.ndarray:
    """The same for a fixed sequence from shallow to deep."""
    return np.array([stats.fixed_sequence(row) for row in safe])


class Shape(NamedTuple):
    """How losses run with depth, as shares of the margin; `safe`: the places (from 1) that may be named."""

    name: str
    losses: list[float]

    @property
    def unsafe(self) -> list[int]:
        return [place for place, loss in enumerate(self.losses, start=1) if loss >= 1]


def shapes(layers: int) -> list[Shape]:
    half = layers // 2
    return [
        Shape("nothing is lost", [0.0] * layers), Shape("all at the margin", [1.0] * layers),
        Shape("a knee in the middle", [0.0] * half + [1.0 + 0.5 * i for i in range(layers - half)]),
        Shape("every second depth at the margin", [float(i % 2) for i in range(layers)]),
        Shape("only the deepest is safe", [1.0] * (layers - 1) + [0.0]),
    ]


def bisections(world: World, shape: Shape, repeats: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """(share of experiments that name an unsafe depth, mean named depth, that of the fixed sequence)."""
    found = _losses(world, repeats, [ACCURACY] + [ACCURACY - MARGIN * loss for loss in shape.losses], rng)
    named, sequence = _named(found.strict <= MARGIN), _in_sequence(found.bound <= MARGIN)
    return float(np.isin(named, shape.unsafe).mean()), float(named.mean()), float(sequence.mean())


def verdict_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    yield f"\n### Verdicts over {DEPTHS} depths (%, ± {error(repeats):.1f})\n"
    yield from header("wrong where all lie at the margin", "power", "of the ideal's", "from shallow to deep")
    for world in worlds([n for n in SEEDS if n >= stats.VERDICT_SEEDS]):
        v = verdicts(world, repeats, rng)
        yield row(world, *map(percent, (v.wrong, v.power, v.power / IDEAL_POWER, v.sequence)))


def bisection_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    yield f"\n### Bisection, 10 seeds, {ROWS:,} rows, seed sd 0.8 points, margin 1 point (± {error(repeats):.1f})\n"
    yield "| layers | losses | wrong (%) | named depth, bisection | named depth, from shallow to deep |"
    yield "|---|---|---|---|---|"
    for layers in (6, 12, 24):
        for shape in shapes(layers):
            wrong, named, sequence = bisections(World(10, 0.008), shape, repeats, rng)
            yield f"| {layers} | {shape.name} | {percent(wrong)} | {named:.1f} | {sequence:.1f} |"
