"""How often 95% intervals hold the truth for metrics that are no means over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from analysis.amounts import amounts
from analysis.simulate import narrowest
from analysis.simulate.planted import PLANTED, Planted
from analysis.simulate.worlds import ACCURACY, SEEDS, World, error, header, percent, row, worlds
from analysis.statistics import influence, stats
from analysis.statistics.metrics import TAGGED
from analysis.statistics.stats import Parts

QUALITIES = (ACCURACY, ACCURACY - 0.02)  # of the two arms: chance to be right, correlation, recall
OF = ("difference", "level")  # of the arms; of the first


class Held(NamedTuple):
    """covered: share of 95% intervals that hold the truth. width: their mean over the width of the ideal, which knows
    the true standard error. exceeded: share of one-sided 95% upper bounds that lie below the truth. due: what split-t
    must cover at this share of the seeds, if variances are estimated without bias and nothing is skewed."""

    covered: float
    width: float
    exceeded: float
    due: float


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
    by_seeds, by_rows = (np.mean([getattr(one, part) for one in parts]) for part in ("seeds", "rows"))
    seeds = parts[0].n_seeds
    due = np.interp(by_seeds / (by_seeds + by_rows), narrowest.SHARES,
                    narrowest.behaviour(narrowest.split_t(seeds), seeds).covered)
    return Held(float(np.mean(abs(estimates - truth) <= half)), float(half.mean() / ideal),
                float(np.mean(bounds < truth)), float(due))


def metrics_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    """A cell is the coverage, and in brackets the width over the ideal's. Between the worlds without and with collapsed
    seeds: how far the coverage is from what is due, mean and standard deviation over the worlds."""
    yield f"\n### Coverage of 95% intervals, metrics that are no means over rows (%, ± {error(repeats):.1f})\n"
    names = [f"entity {metric}" if one.task == TAGGED else metric for one in PLANTED for metric in one.metrics]
    yield from header("of", *names)
    every = list(worlds(SEEDS))
    sound = [world for world in every if not world.collapse]
    away: list[list[float]] = []
    for world in sound:
        found = _in_a_row(world, repeats, rng)
        away += [[held.covered - held.due for held in each] for each in found.values()]
        yield from _lines(world, found)
    signed = amounts("f1").signed
    cells = [f"{signed(np.mean(each))} ± {percent(np.std(each))}" for each in zip(*away, strict=True)]
    yield f"| all | 0% | all | coverage − due | {' | '.join(cells)} |"
    for world in every[len(sound):]:
        yield from _lines(world, _in_a_row(world, repeats, rng))


def _in_a_row(world: World, repeats: int, rng: np.random.Generator) -> dict[str, list[Held]]:
    """By "difference" | "level", in the order of the table's columns."""
    each = [coverage(one, world, repeats, rng) for one in PLANTED]
    return {of: [held for one in each for (_, what), held in one.items() if what == of] for of in OF}


def _lines(world: World, found: dict[str, list[Held]]) -> Iterator[str]:
    for of, each in found.items():
        yield row(world, of, *(f"{percent(held.covered)} ({held.width:.2f})" for held in each))
