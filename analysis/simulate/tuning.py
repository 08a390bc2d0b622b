"""What successive halving gives away: how much worse than the best setting its choice is, beside the whole grid's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from analysis.simulate.worlds import SEED_SHARED, percent
from analysis.statistics import sequential

VALIDATION_SD = 0.005  # of a setting's own luck with 1,000 validation rows, in every seed the same
TUNINGS = ((4, 2), (9, 2), (9, 3), (12, 3))
SPREADS = (0.005, 0.02)  # the second best setting's distance from the best is about this over the number of settings


class Regret(NamedTuple):
    """Means over experiments, as fractions of the metric; trials as a share of the grid's."""

    halving: float
    grid: float
    trials: float


def regret(settings: int, seeds: int, spread: float, repeats: int, rng: np.random.Generator,
           seed_sd: float = 0.008) -> Regret:
    """Settings whose distances from the best are exponential with mean `spread`, tuned both ways."""
    found = np.empty((repeats, 2))
    for repeat in range(repeats):
        distance = rng.exponential(spread, settings)
        distance -= distance.min()
        own = rng.normal(0, math.sqrt(1 - SEED_SHARED) * seed_sd, (settings, seeds))
        scores = own + (rng.normal(0, VALIDATION_SD, settings) - distance)[:, None]
        found[repeat] = distance[halved(scores)], distance[scores.mean(axis=1).argmax()]
    halving, grid = found.mean(axis=0)
    return Regret(float(halving), float(grid), sequential.halving_trials(settings, seeds) / (settings * seeds))


def halved(scores: np.ndarray) -> int:
    """Which of (settings, seeds) scores successive halving chooses."""
    left = [f"{setting:03d}" for setting in range(len(scores))]
    for rung in range(scores.shape[1]):
        left = sequential.halving({name: list(scores[int(name), :rung + 1]) for name in left}, rung)
    return int(left[0])


def halving_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    yield "\n### Successive halving beside the whole grid of settings (points of the metric that the choice loses)\n"
    yield "| settings × seeds | mean distance from the best (points) | halving | whole grid | trials |"
    yield "|---|---|---|---|---|"
    for settings, seeds in TUNINGS:
        for spread in SPREADS:
            found = regret(settings, seeds, spread, repeats, rng)
            yield (f"| {settings} × {seeds} | {100 * spread:g} | {100 * found.halving:.2f} | {100 * found.grid:.2f} | "
                   f"{percent(found.trials)}% |")
