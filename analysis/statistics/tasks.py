"""Statistics over tasks: pure functions of one number per task.

The tasks are the sample (Agarwal et al. 2021, arXiv:2108.13264, aggregate over tasks before they say anything in
general): what a task's own seeds and rows leave uncertain already stands in how far the tasks lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FEWEST_TASKS = 5  # with fewer, how far tasks lie apart is known too badly for anything general


class OverTasks(NamedTuple):
    """A mean over tasks. low, high: its two-sided 95% t-interval; new_low, new_high: where another task's own value
    would lie (95% prediction interval, if values are normally distributed over tasks). nan with fewer than
    FEWEST_TASKS."""

    n_tasks: int
    mean: float
    low: float
    high: float
    new_low: float
    new_high: float


def over_tasks(values: Sequence[float]) -> OverTasks:
    """values (tasks,), one per task; at least one."""
    v = np.asarray(values, dtype=np.float64)
    n, mean = len(v), float(v.mean())
    if n < FEWEST_TASKS:
        return OverTasks(n, mean, *[math.nan] * 4)
    t, spread = float(stats.t.ppf(0.975, n - 1)), float(v.std(ddof=1))
    half, beyond = t * spread / math.sqrt(n), t * spread * math.sqrt(1 + 1 / n)
    return OverTasks(n, mean, mean - half, mean + half, mean - beyond, mean + beyond)


def at_most(values: Sequence[float], confidence: float = 0.95) -> float:
    """With this confidence the mean over such tasks is at most so much (one-sided t); nan with too few tasks."""
    v = np.asarray(values, dtype=np.float64)
    n = len(v)
    if n < FEWEST_TASKS:
        return math.nan
    return float(v.mean() + stats.t.ppf(confidence, n - 1) * v.std(ddof=1) / math.sqrt(n))


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's exact 95% interval of a share of tasks; nan with too few tasks."""
    if total < FEWEST_TASKS:
        return math.nan, math.nan
    found = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)
