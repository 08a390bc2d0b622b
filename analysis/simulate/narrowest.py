"""The narrowest interval that keeps its 95% when the seeds' variance must be estimated: what split-t could save.

The estimate's variance is A + R: A from S seeds, estimated by a, with a · (S − 1) / A a χ² of S − 1 degrees; R from
many rows, taken as known. An interval is then half = sqrt(a + R) · q(a / (a + R)), with q(0) = 1.96 and q(1) = t.
Split-t is one choice of q. Here q is fitted so that the coverage is 95% whatever the share A / (A + R) is (what Welch
1947 and Aspin 1948 expanded in powers of 1 / (S − 1)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import interpolate, optimize, special
from scipy import stats as distributions

from analysis.simulate.worlds import SEEDS, percent

Q = Callable[[np.ndarray], np.ndarray]
Z = float(special.ndtri(0.975))
KNOTS = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
SHARES = np.linspace(0, 1, 41)  # of the variance that is the seeds'
NODES = 400


class Behaviour(NamedTuple):
    """By the seeds' share of the variance: how often the interval holds the truth, and its mean width over that of an
    interval that knows the variance."""

    covered: np.ndarray
    width: np.ndarray


def behaviour(q: Q, seeds: int) -> Behaviour:
    """At SHARES, in expectation over a."""
    estimated = distributions.chi2.ppf((np.arange(NODES) + 0.5) / NODES, seeds - 1) / (seeds - 1)
    a, known = SHARES[:, None] * estimated, 1 - SHARES[:, None]
    half = np.sqrt(a + known) * q(a / (a + known))
    return Behaviour((2 * special.ndtr(half) - 1).mean(axis=1), half.mean(axis=1) / Z)


def split_t(seeds: int) -> Q:
    t = float(special.stdtrit(seeds - 1, 0.975))
    return lambda share: np.sqrt(t**2 * share + Z**2 * (1 - share))


def narrowest(seeds: int) -> Q:
    """The q whose coverage is nearest to 95% at all SHARES."""
    start = split_t(seeds)(KNOTS)

    def through(middle: np.ndarray) -> Q:
        return interpolate.PchipInterpolator(KNOTS, [start[0], *middle, start[-1]])

    return through(optimize.least_squares(
        lambda middle: 1000 * (behaviour(through(middle), seeds).covered - 0.95), start[1:-1]).x)


def narrowest_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    """Computed, not simulated: `repeats` and `rng` are not used."""
    yield "\n### Split-t / the narrowest interval that keeps 95%: widths over that of one that knows the variance\n"
    columns = ["seeds", *(f"{share:.0%} of the variance is the seeds'" for share in SHARES[::10]),
               "ratio, at most", "coverage of split-t (%)", "of the narrowest (%)"]
    yield from (f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for seeds in SEEDS:
        ours, best = behaviour(split_t(seeds), seeds), behaviour(narrowest(seeds), seeds)
        cells = [f"{mine:.2f} / {least:.2f}" for mine, least in zip(ours.width[::10], best.width[::10], strict=True)]
        yield (f"| {seeds} | {' | '.join(cells)} | {(ours.width / best.width).max():.2f} | {_range(ours.covered)} | "
               f"{_range(best.covered)} |")


def _range(covered: np.ndarray) -> str:
    low, high = percent(covered.min()), percent(covered.max())
    return low if low == high else f"{low} to {high}"
