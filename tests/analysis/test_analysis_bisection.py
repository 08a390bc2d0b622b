"""The order of a bisection, its level, and how often it errs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.simulate import verdicts, worlds
from analysis.statistics import bisection


@pytest.mark.parametrize("count", range(1, 40))
def test_it_finds_every_knee_with_as_many_tests_as_it_says(count):
    for knee in range(count + 1):  # the first `knee` depths are safe
        path = bisection.bisect(count, lambda index, knee=knee: index < knee)
        assert bisection.deepest(path) == (knee - 1 if knee else None)
        assert bisection.obstacle(path) == (knee if knee < count else None)
        assert len(path) <= bisection.tests_needed(count) == math.ceil(math.log2(count + 1))
        assert len({test.index for test in path}) == len(path)


def test_the_level_is_shared_by_the_tests():
    assert bisection.level(7) == pytest.approx(0.05 / 3) and bisection.level(8) == pytest.approx(0.05 / 4)
    assert bisection.level(1) == 0.05
    assert bisection.bisect(0, lambda index: True) == []


def test_the_order_depends_on_the_results_alone():
    assert [test.index for test in bisection.bisect(7, lambda index: index < 3)] == [3, 1, 2]


@pytest.mark.parametrize("shape", verdicts.shapes(6)[1:], ids=lambda shape: shape.name)
def test_an_unsafe_depth_is_named_in_at_most_five_percent(shape):
    repeats = 150
    wrong, _, _ = verdicts.bisections(worlds.World(5, 0.008, rows=300), shape, repeats, np.random.default_rng(0))
    assert wrong < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)
