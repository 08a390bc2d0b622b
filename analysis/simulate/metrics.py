"""How often 95% intervals hold the truth for metrics that are no means over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from analysis.simulate.planted import PLANTED, Planted
from analysis.simulate.worlds import ACCURACY, SEEDS, World, error, header, percent, row, worlds
from analysis.statistics import influence, stats
from analysis.statistics.metrics import TAGGED
from analysis.statistics.stats import Parts

QUALITIES = (ACCURACY, ACCURACY - 0.02)  # of the two arms: chance to be right, correlation, recall
OF = ("difference", "level")  # of the arms; of the first


class Held(NamedTuple):
    """covered: share of 95% intervals that hold the truth. width: their mean over the width of the ideal, which knows
    the true standard error. exceeded: share of one-sided 95% upper bounds that lie below the truth."""

    covered: float
    width: float
    exceeded: float


def coverage(planted: Planted, world: World, repeats: int, rng: np.random.Generator
             ) -> dict[tuple[str, str], Held]:
    """By metric and "difference" | "level"; both metrics and both questions from the same experiments."""
    found: dict[tuple[str, str], list[Parts]] = {(m, of): [] for m in planted.metrics for of in OF}
    for _ in range(repeats):
        logits, labels = planted.plant(world, QUALITIES, rng)
        for metric in planted.metrics:
            rows = influence.row_values(metric, planted.task, logits.reshape(-1, *logits.shape[2:]), labels)
            first, second = rows.reshape(len(QUALITIES), world.n_seeds, -1)
            found[metric, "difference"].append(stats.split_parts(first - second))
            found[metric, "level"].append(stats.split_parts(first))
    truth = {}
    for metric in planted.metrics:
        better, worse = (planted.expected(metric, world, quality) for quality in QUALITIES)
        truth |= {(metric, "difference"): better - worse, (metric, "level"): better}
    return {key: held(parts, truth[key]) for key, parts in found.items()}


def held(parts: Sequence[Parts], truth: float) -> Held:
    """Of repeated experiments, at least two."""
    estimates = np.array([one.estimate for one in parts])
    half = np.array([stats.half_width(one, 0.975) for one in parts])
    bounds = np.array([stats.upper_bound(one) for one in parts])
    ideal = float(special.ndtri(0.975)) * estimates.std(ddof=1)
    return Held(float(np.mean(abs(estimates - truth) <= half)), float(half.mean() / ideal),
                float(np.mean(bounds < truth)))


def metrics_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    """A cell is the coverage, and in brackets the width over the ideal's."""
    yield f"\n### Coverage of 95% intervals, metrics that are no means over rows (%, ± {error(repeats):.1f})\n"
    yield from header("of", *(f"entity {metric}" if one.task == TAGGED else metric
                              for one in PLANTED for metric in one.metrics))
    for world in worlds(SEEDS):
        found = [coverage(one, world, repeats, rng) for one in PLANTED]
        for of in OF:
            yield row(world, of, *(f"{percent(value.covered)} ({value.width:.2f})"
                                   for each in found for (_, what), value in each.items() if what == of))
