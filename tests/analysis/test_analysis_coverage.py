"""Planted metrics that are no means over rows: their truth, how often intervals hold it, how wide they are.

Small: `python -m analysis.simulate --table metrics` is the full version, its table is in docs/statistics.md. The bounds
are four standard errors of the simulation away from what they guard.
"""

import math

import numpy as np
import pytest

from analysis.simulate import metrics, narrowest
from analysis.simulate.planted import PLANTED
from analysis.simulate.worlds import World
from analysis.statistics import influence, stats

CASES = [pytest.param(planted, metric, id=f"{planted.task}-{metric}")
         for planted in PLANTED for metric in planted.metrics]


@pytest.mark.parametrize("collapse", [0.0, 0.3])
@pytest.mark.parametrize(("planted", "metric"), CASES)
def test_the_planted_truth_is_the_mean_over_many_seeds_and_rows(planted, metric, collapse):
    world, quality = World(100, 0.04, collapse, rows=8000, majority=0.7), 0.75
    logits, labels = planted.plant(world, [quality], np.random.default_rng(0))
    values = influence.row_values(metric, planted.task, logits[0], labels).mean(axis=1)
    # Seeds share their luck and their rows: more than the spread over seeds alone is uncertain.
    error = 4 * values.std() / math.sqrt(len(values)) + 4 * 0.6 / math.sqrt(len(labels))
    assert values.mean() == pytest.approx(planted.expected(metric, world, quality), abs=error)
    assert values.std() > 0.03


@pytest.mark.parametrize("planted", PLANTED, ids=[planted.task for planted in PLANTED])
@pytest.mark.parametrize(("seeds", "seed_sd"), [(4, 0.001), (10, 0.02)])
def test_intervals_hold_the_truth_and_are_not_idle(planted, seeds, seed_sd):
    repeats = 150
    found = metrics.coverage(planted, World(seeds, seed_sd, rows=400), repeats, np.random.default_rng(seeds))
    assert set(found) == {(metric, of) for metric in planted.metrics for of in metrics.OF}
    for held in found.values():
        assert held.covered > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)
        assert held.exceeded < 0.05 + 4 * math.sqrt(0.95 * 0.05 / repeats)
        assert 0.95 <= held.due < 0.98
        assert held.width < narrowest.behaviour(narrowest.split_t(seeds), seeds).width.max() + 0.25


def test_an_interval_that_ignores_the_rows_is_caught():
    """What the simulation must notice: influence values of 0, as if the metric did not vary with the rows."""
    planted, rng = PLANTED[1], np.random.default_rng(0)
    world, parts = World(10, 0.001, rows=400), []
    for _ in range(100):
        logits, labels = planted.plant(world, [0.8], rng)
        rows = influence.row_values("pearson", planted.task, logits[0], labels)
        parts.append(stats.seed_parts(rows.mean(axis=1)))
    assert metrics.held(parts, planted.expected("pearson", world, 0.8)).covered < 0.85


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_split_t_is_nearly_as_narrow_as_95_percent_allow(seeds):
    ours, best = (narrowest.behaviour(q(seeds), seeds) for q in (narrowest.split_t, narrowest.narrowest))
    assert best.covered == pytest.approx(0.95, abs=0.001)
    assert ours.covered.min() > 0.949 and ours.covered.max() < 0.98
    assert 1.0 < (ours.width / best.width).max() < 1.2
    t = stats.half_width(stats.Parts(0.0, 1.0, 0.0, seeds, seeds - 1), 0.975)
    assert narrowest.split_t(seeds)(np.array([1.0]))[0] == pytest.approx(t)
