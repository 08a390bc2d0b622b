"""The verdict in looks: what may be spent, what is decided, in which order, and how often it errs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from analysis.simulate import adaptive, tuning, verdicts, worlds
from analysis.simulate.verdicts import Shape
from analysis.statistics import bisection, sequential, stats
from analysis.statistics.sequential import Decision
from analysis.statistics.stats import Parts


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def losses(mean: float, seeds: int, seed_sd: float = 0.004, rows_part: float = 0.0) -> Parts:
    """What `seeds` seeds with this spread say."""
    return Parts(mean, seed_sd**2 / seeds, rows_part, seeds, seeds - 1)


def test_looks_are_ever_further_apart_and_end_at_the_largest():
    assert sequential.looks(20) == (5, 7, 10, 14, 20)
    assert sequential.looks(12) == (5, 7, 10, 12) and sequential.looks(5) == (5,)
    with pytest.raises(ValueError, match="max_seeds = 4: a verdict needs at least 5 seeds"):
        sequential.looks(4)


@pytest.mark.parametrize("max_seeds", [5, 12, 20, 40])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_alpha_is_spent_as_the_function_says_and_no_more(max_seeds, alpha):
    paths = np.random.default_rng(1).standard_normal((50_000, max_seeds)).cumsum(axis=1)
    at = sequential.looks(max_seeds)
    borders = -special.ndtri(sequential.levels(alpha, max_seeds))
    crossed = np.stack([paths[:, s - 1] / math.sqrt(s) > c for s, c in zip(at, borders, strict=True)], axis=1)
    for look, seeds in enumerate(at, start=1):
        expected = sequential.spent(alpha, seeds, max_seeds)
        assert crossed[:, :look].any(axis=1).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / 50_000))
    assert sequential.spent(alpha, max_seeds, max_seeds) == alpha


def test_one_look_is_the_ordinary_bound():
    found = sequential.decide(losses(0.0, 5), 0.01, 0.05, 5)
    assert found.confidence == pytest.approx(0.95, abs=1e-6) and found.next_seeds is None
    assert found.bound == pytest.approx(stats.upper_bound(losses(0.0, 5), confidence=0.95), abs=1e-8)


@pytest.mark.parametrize(("mean", "seeds", "state"), [
    (0.0, 5, "undecided"), (0.0, 10, "safe"), (-0.02, 5, "safe"), (0.05, 5, "unsafe"), (0.011, 5, "futile"),
    (0.008, 20, "futile"), (0.007, 10, "undecided"),
])
def test_each_state(mean, seeds, state):
    found = sequential.decide(losses(mean, seeds), 0.01, 0.05 / 3)
    assert found.state == state
    assert found.final == (state != "undecided") and found.safe == (state == "safe")
    assert found.lower < mean < found.bound and found.seeds == seeds == sequential.looks()[found.look - 1]


def test_bounds_are_wider_than_without_looks_and_hold_together():
    single = stats.upper_bound(losses(0.0, 20), confidence=0.95)
    assert sequential.decide(losses(0.0, 20), 0.01, 0.05).bound > single
    assert sequential.repeated_confidence(20, 20) == pytest.approx(
        sequential.decide(losses(0.0, 20), 0.01, 0.05).confidence)
    assert sequential.repeated_confidence(13, 20) == sequential.repeated_confidence(10, 20)


def test_rows_that_no_seeds_can_outweigh_are_futile():
    found = sequential.decide(losses(0.0, 5, 0.001, rows_part=0.006**2), 0.01, 0.05 / 4)
    assert found.state == "futile"
    alone = sequential.decide(losses(0.0, 5, 0.001, rows_part=0.006**2), 0.01, 0.05 / 4, population="this_test_set")
    assert alone.state == "safe"


def test_a_lost_seed_is_never_safe_and_more_seeds_do_not_help():
    found = sequential.decide(losses(-0.02, 9), 0.01, 0.05, lost=1)
    assert found.state == "futile" and found.seeds == 10 and found.lost == 1
    with pytest.raises(ValueError, match="seeds = 9: looks are at 5, 7, 10, 14, 20"):
        sequential.decide(losses(-0.02, 9), 0.01, 0.05)


def test_copies_are_one_seed():
    found = sequential.decide(losses(-0.02, 4), 0.01, 0.05, seeds=5)
    assert found.state == "undecided" and found.seeds == 5
    one = sequential.decide(Parts(-0.02, math.nan, 0.0, 1, 0), 0.01, 0.05, seeds=20)
    assert one.state == "undecided" and math.isnan(one.bound) and one.final


def test_identical_results_of_all_seeds_decide_at_once():
    assert sequential.decide(losses(0.0, 5, 0.0), 0.01, 0.05).state == "safe"
    assert sequential.decide(losses(0.02, 5, 0.0), 0.01, 0.05).state == "unsafe"


def test_differences_are_read_as_the_report_reads_them(rng):
    d = rng.normal(0.002, 0.3, (10, 500))
    assert sequential.decide(d, 0.01, 0.05) == sequential.decide(stats.split_parts(d), 0.01, 0.05)


def made(safe: bool) -> Decision:
    return sequential.decide(losses(-0.02 if safe else 0.05, 5, 0.0), 0.01, 0.05)


@pytest.mark.parametrize("count", range(1, 26))
def test_the_next_depth_is_the_bisections(count):
    candidates = [-1, *range(1, count)]
    for knee in range(count + 1):
        path = bisection.bisect(count, lambda index, knee=knee: index < knee)
        decisions: dict[int, Decision] = {}
        for test in path:
            step = sequential.next_depths(candidates, decisions)
            assert step.now == candidates[test.index]
            decisions[step.now] = made(test.safe)
            following = sequential.next_depths(candidates, decisions).now
            assert following == (step.if_safe if test.safe else step.if_not)
        done = sequential.next_depths(candidates, decisions)
        assert (done.now, done.if_safe, done.if_not) == (None, None, None)
        assert done.named == (candidates[knee - 1] if knee else None)
        assert done.tested == tuple(candidates[test.index] for test in path)


def test_an_undecided_depth_stays_the_next_one():
    undecided = sequential.decide(losses(0.0, 5), 0.01, 0.05 / 3)
    assert not undecided.final and sequential.next_depths([1, 2, 3], {2: undecided, 3: made(True)}).now == 2


def test_halving_keeps_the_best_third_by_the_mean_of_the_seeds_so_far():
    scores = {"a": [0.7], "b": [0.9], "c": [0.8], "d": [0.8]}
    assert sequential.halving(scores, 0) == ["b", "c"]
    assert sequential.halving(scores, 0, maximize=False) == ["a", "c"]
    assert sequential.halving({"b": [0.9, 0.6], "c": [0.8, 0.8]}, 1) == ["c"]
    assert sequential.halving({"a": [math.nan], "b": [0.1], "c": []}, 0) == ["b"]
    assert sequential.halving({"a": [math.nan]}, 0) == []


@pytest.mark.parametrize(("settings", "seeds", "trials"), [(1, 3, 1), (4, 1, 4), (4, 2, 6), (12, 3, 18), (9, 5, 13)])
def test_what_tuning_costs(settings, seeds, trials):
    assert sequential.halving_trials(settings, seeds) == trials


def test_planned_trials():
    assert sequential.plan(7, 4, 2) == sequential.Plan(44, 58, 104, 144)
    assert sequential.plan(6, 1, 1, max_seeds=5) == sequential.Plan(18, 23, 24, 77)


# Simulated truth, small: `python -m analysis.simulate --table adaptive` is the full version.

MARGIN = 0.02
SMALL = worlds.World(20, 0.008, rows=300)


@pytest.mark.parametrize("collapse", [0.0, 0.05])
@pytest.mark.parametrize("shape", [*verdicts.shapes(6)[1:], verdicts.shapes(24)[1]],
                         ids=lambda shape: f"{shape.name} ({len(shape.losses)})")
def test_a_depth_is_wrongly_called_safe_in_at_most_five_percent(rng, shape, collapse):
    repeats = 100
    found = adaptive.compare(SMALL._replace(collapse=collapse), shape, repeats, rng, MARGIN)
    assert found.wrong[0] < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)


@pytest.mark.parametrize(("layers", "most"), [(6, 0.55), (12, 0.38), (24, 0.24)])
def test_it_goes_as_deep_as_the_grid_at_a_fraction_of_its_cost(rng, layers, most):
    shape = Shape("nothing is lost", [0.0] * layers)
    found = adaptive.compare(worlds.World(20, 0.008, rows=500), shape, 60, rng, 0.035)
    assert found.named[0] > 0.9 * found.named[1] > 0.4 * layers
    assert found.power[0] > 0.9 * found.power[1]
    assert found.cost[0] < most and found.cost[1] < most


def test_halving_chooses_almost_as_well_as_the_whole_grid(rng):
    found = tuning.regret(9, 3, 0.02, 500, rng)
    assert found.halving - found.grid < 0.001 and found.trials < 0.5
