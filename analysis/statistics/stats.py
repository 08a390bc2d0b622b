"""Statistics of a (seeds, rows) array: pure functions, every random number from a generator that is passed.

The population is stated. "new_text": new seeds and new rows, given this training set. "this_test_set": new seeds on
exactly these rows. docs/statistics.md derives the formulas; analysis/simulate.py measures how often they are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, special, stats

Population = Literal["new_text", "this_test_set"]
VERDICT_SEEDS = 5  # with fewer, variance over seeds is known too badly for a verdict
INTERVAL_SEEDS = 3  # with two, a t-interval is 6 times as wide as with three


class Parts(NamedTuple):
    """A mean over seeds and rows, with the two parts of its squared standard error.

    seeds: from drawing seeds, var(seed means) / S (nan with one seed); rows: from drawing rows, max(b - e, 0).
    """

    estimate: float
    seeds: float
    rows: float
    n_seeds: int
    degrees: float  # of freedom of `seeds`


class Interval(NamedTuple):
    """An estimate with its two-sided interval; low and high are nan where none can be given (two seeds)."""

    estimate: float
    low: float
    high: float
    tag: str  # "this checkpoint" | "two seeds" | "few seeds" | "" (enough for a verdict)


def seed_tag(n_seeds: int) -> str:
    """How far a number from so many seeds can be trusted."""
    if n_seeds == 1:
        return "this checkpoint"
    if n_seeds < INTERVAL_SEEDS:
        return "two seeds"
    return "few seeds" if n_seeds < VERDICT_SEEDS else ""


def split_parts(d: np.ndarray) -> Parts:
    """Split-t: the parts of mean(d), where d (seeds, rows) are scores, or differences paired by seed and row.

    a = var(r) / S, b = var(c) / N, e = Σ(d - r - c + m)² / ((S-1)(N-1)·S·N), with r the seed means, c the row means,
    m the grand mean; `rows` is max(b - e, 0), because b holds e, the part that already stands in a.
    """
    d = np.asarray(d, dtype=np.float64)
    n_seeds, n_rows = d.shape
    by_seed, by_row, grand = d.mean(axis=1), d.mean(axis=0), float(d.mean())
    b = float(by_row.var(ddof=1)) / n_rows if n_rows > 1 else math.nan
    if n_seeds == 1:
        return Parts(grand, math.nan, b, 1, 0)
    rows = max(b - residual_part(d), 0.0)
    return Parts(grand, float(by_seed.var(ddof=1)) / n_seeds, rows, n_seeds, n_seeds - 1)


def seed_parts(values: np.ndarray) -> Parts:
    """The parts where nothing is known about the rows: values (seeds,), so that only the seeds' part is there."""
    n = len(values)
    return Parts(float(np.mean(values)), float(np.var(values, ddof=1)) / n if n > 1 else math.nan, 0.0, n, n - 1)


def unpaired_parts(a: np.ndarray, b: np.ndarray) -> Parts:
    """mean(a) - mean(b) where the seeds differ but the rows (second axis) are the same: Welch over the seeds.

    a (seeds_a, rows), b (seeds_b, rows), each with at least two seeds.
    """
    of_a, of_b = split_parts(a), split_parts(b)
    n_rows = a.shape[1]
    by_row = np.asarray(a, dtype=np.float64).mean(axis=0) - np.asarray(b, dtype=np.float64).mean(axis=0)
    e = sum(residual_part(np.asarray(x, dtype=np.float64)) for x in (a, b))
    return Parts(
        of_a.estimate - of_b.estimate, of_a.seeds + of_b.seeds, max(float(by_row.var(ddof=1)) / n_rows - e, 0.0),
        min(of_a.n_seeds, of_b.n_seeds), welch_degrees(of_a, of_b),
    )


def residual_part(d: np.ndarray) -> float:
    """e of split-t, the part of the row means' variance that stands in the seed means' variance; d (seeds, rows)."""
    n_seeds, n_rows = d.shape
    residual = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0, keepdims=True) + d.mean()
    return float((residual**2).sum()) / ((n_seeds - 1) * max(n_rows - 1, 1) * n_seeds * n_rows)


def welch_degrees(a: Parts, b: Parts) -> float:
    """Welch and Satterthwaite's degrees of freedom of the sum of two seed parts."""
    total = a.seeds + b.seeds
    if total == 0:
        return min(a.degrees, b.degrees)
    return total**2 / (a.seeds**2 / a.degrees + b.seeds**2 / b.degrees)


def half_width(parts: Parts, quantile: float, population: Population = "new_text") -> float:
    """sqrt(t(quantile)²·seeds + z(quantile)²·rows); nan where `parts` allow no statement.

    quantile 0.975 makes the two-sided 95% interval, 0.95 the one-sided 95% bound. One seed: over rows alone.
    """
    z = float(special.ndtri(quantile))
    rows = parts.rows if population == "new_text" else 0.0
    if parts.n_seeds == 1:
        return z * math.sqrt(rows) if population == "new_text" else math.nan
    if parts.n_seeds < INTERVAL_SEEDS:
        return math.nan
    t = float(special.stdtrit(parts.degrees, quantile))
    return math.sqrt(t**2 * parts.seeds + z**2 * rows)


def interval(parts: Parts, population: Population = "new_text", confidence: float = 0.95) -> Interval:
    """The two-sided interval around the estimate."""
    half = half_width(parts, (1 + confidence) / 2, population)
    return Interval(parts.estimate, parts.estimate - half, parts.estimate + half, seed_tag(parts.n_seeds))


def upper_bound(parts: Parts, population: Population = "new_text", confidence: float = 0.95) -> float:
    """With this confidence the true mean is at most so much (one-sided)."""
    return parts.estimate + half_width(parts, confidence, population)


def lower_bound(parts: Parts, population: Population = "new_text", confidence: float = 0.95) -> float:
    """With this confidence the true mean is at least so much (one-sided)."""
    return parts.estimate - half_width(parts, confidence, population)


def p_value(parts: Parts, population: Population = "new_text", null: float = 0.0) -> float:
    """Two-sided p-value that agrees with `interval`: 1 - the confidence at which the interval just touches `null`."""
    distance = abs(parts.estimate - null)
    if math.isnan(half_width(parts, 0.975, population)):
        return math.nan
    if distance == 0:
        return 1.0
    if half_width(parts, 1 - 1e-15, population) <= distance:
        return 0.0 if half_width(parts, 0.975, population) == 0 else 2e-15

    def gap(log_tail: float) -> float:
        return half_width(parts, 1 - math.exp(log_tail), population) - distance

    return min(1.0, 2 * math.exp(optimize.brentq(gap, math.log(1e-15), math.log(0.5))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; nan stays nan and counts for nothing."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def fixed_sequence(safe: Sequence[bool]) -> int:
    """How many tests, in the order fixed beforehand, succeed before the first that does not.

    Each may be made at the full level, since a later one counts only if all before it succeeded.
    """
    for count, success in enumerate(safe):
        if not success:
            return count
    return len(safe)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided McNemar p-value of two checkpoints' correctness (rows,) on the same rows.

    Only for two single checkpoints: rows of several seeds stacked are not independent.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def crossed_bootstrap(
    d: np.ndarray, rng: np.random.Generator, draws: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of mean(d) when seeds and rows are both drawn again, d (seeds, rows).

    A cross-check, not the interval we report: its coverage depends on the variance over seeds.
    """
    d = np.asarray(d, dtype=np.float64)
    n_seeds, n_rows = d.shape
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=draws) / n_seeds
    rows = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=draws) / n_rows
    means = np.einsum("bn,bn->b", seeds @ d, rows)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def seed_correlation(values: np.ndarray) -> np.ndarray:
    """Correlation over seeds between settings, values (settings, seeds) -> (settings, settings).

    nan where a setting does not vary or where fewer than three seeds are shared.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape[1] < 3:
        return np.full((len(values), len(values)), np.nan)
    centred = values - values.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.outer(scale, scale) > 0, centred @ centred.T / np.outer(scale, scale), np.nan)


def expected_best(values: Sequence[float], *, higher_is_better: bool = True) -> list[float]:
    """Expected best of n of these values drawn without replacement, for n = 1..len(values).

    The unbiased estimate of Tang et al. (2020): the i-th smallest is the best of n with C(i-1, n-1) / C(N, n).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    ordered = ordered if higher_is_better else ordered[::-1]
    total = len(ordered)
    below = np.arange(total)

    def log_comb(n: np.ndarray | int, k: int) -> np.ndarray:
        return special.gammaln(np.add(n, 1)) - special.gammaln(k + 1) - special.gammaln(np.maximum(n - k, 0) + 1)

    expected = []
    for n in range(1, total + 1):
        weights = np.where(below >= n - 1, np.exp(log_comb(below, n - 1) - log_comb(total, n)), 0.0)
        expected.append(float(ordered @ weights))
    return expected
