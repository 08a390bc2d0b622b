"""How often 95% intervals of an accuracy hold the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats as distributions

from analysis.simulate.worlds import ACCURACY, SEEDS, World, draw, error, header, percent, row, worlds
from analysis.statistics import stats

BOOTSTRAP_DRAWS = 200


class Coverage(NamedTuple):
    """Shares of experiments in which 95% intervals hold the truth; width against Satterthwaite's interval."""

    split_t: float
    width_ratio: float
    others: dict[str, float]
    repeats: int


def accuracy_coverage(world: World, repeats: int, rng: np.random.Generator, *, of: str = "difference",
                      cross_checks: int = 0) -> Coverage:
    """Intervals of a difference of two equal arms, or of one arm's level. `cross_checks`: repeats of the bootstraps."""
    truth = 0.0 if of == "difference" else world.expected_accuracy(ACCURACY)
    hits, widths = [], []
    others: dict[str, list[bool]] = {"Satterthwaite": [], "t over seeds": [], "bootstrap of seeds": [],
                                     "crossed bootstrap": []}
    for repeat in range(repeats):
        correct, _ = draw(world, [ACCURACY, ACCURACY] if of == "difference" else [ACCURACY], rng)
        d = correct[0].astype(np.float64) - correct[1] if of == "difference" else correct[0].astype(np.float64)
        parts = stats.split_parts(d)
        half, reference = stats.half_width(parts, 0.975), satterthwaite(d)
        hits.append(abs(parts.estimate - truth) <= half)
        widths.append((half, reference))
        others["Satterthwaite"].append(abs(parts.estimate - truth) <= reference)
        others["t over seeds"].append(abs(parts.estimate - truth) <= stats.half_width(parts, 0.975, "this_test_set"))
        if repeat < cross_checks:
            low, high = np.quantile(rng.choice(d.mean(axis=1), (BOOTSTRAP_DRAWS, len(d))).mean(axis=1), [0.025, 0.975])
            others["bootstrap of seeds"].append(low <= truth <= high)
            low, high = stats.crossed_bootstrap(d, rng, BOOTSTRAP_DRAWS)
            others["crossed bootstrap"].append(low <= truth <= high)
    ours, reference = np.mean(widths, axis=0)
    return Coverage(float(np.mean(hits)), float(ours / reference),
                    {name: float(np.mean(found)) for name, found in others.items() if found}, repeats)


def satterthwaite(d: np.ndarray) -> float:
    """Half-width of the classical 95% interval of a crossed random-effects mean: t on Satterthwaite's degrees.

    The variance of the mean is estimated by a + b - e (Satterthwaite 1946); d (seeds, rows).
    """
    seeds, rows = d.shape
    a, b = d.mean(axis=1).var(ddof=1) / seeds, d.mean(axis=0).var(ddof=1) / rows
    e = stats.residual_part(d)
    total = max(a + b - e, 1e-300)
    degrees = total**2 / (a**2 / (seeds - 1) + b**2 / (rows - 1) + e**2 / ((seeds - 1) * (rows - 1)) + 1e-300)
    return float(distributions.t.ppf(0.975, max(degrees, 1.0)) * math.sqrt(total))


def difference_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    return _coverage_table("difference", repeats, rng, cross_checks=repeats // 10)


def level_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    return _coverage_table("level", repeats, rng, cross_checks=0)


def _coverage_table(of: str, repeats: int, rng: np.random.Generator, cross_checks: int) -> Iterator[str]:
    """Lines of Markdown, as they are computed."""
    yield f"\n### Coverage of 95% intervals, accuracy, {of} (%, ± {error(repeats):.1f})\n"
    names = ["Satterthwaite", "t over seeds", *(["bootstrap of seeds", "crossed bootstrap"] if cross_checks else [])]
    yield from header("split-t", "width / Satterthwaite's", *names)
    for world in worlds(SEEDS):
        found = accuracy_coverage(world, repeats, rng, of=of, cross_checks=cross_checks)
        yield row(world, percent(found.split_t), f"{found.width_ratio:.2f}", *map(percent, found.others.values()))

