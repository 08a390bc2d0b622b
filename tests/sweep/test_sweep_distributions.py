"""Each of W&B's distributions against its definition: the quantile of u, and the shape of many draws."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from finetune.sweep.search.hyperband import brackets, should_stop
from finetune.sweep.spec.distributions import grid_size, grid_values, quantile
from finetune.sweep.spec.schema import Hyperband

U = [0.001, 0.1, 0.25, 0.5, 0.77, 0.999]
LOG = (math.log(1e-5), math.log(1e-2))
# distribution, arguments, its definition by scipy (a frozen distribution of what is sampled before rounding to q)
CONTINUOUS = [
    ("uniform", {"min": -1.0, "max": 3.0}, stats.uniform(-1, 4)),
    ("log_uniform", {"min": -11.0, "max": -4.0}, stats.loguniform(math.exp(-11), math.exp(-4))),
    ("log_uniform_values", {"min": 1e-5, "max": 1e-2}, stats.loguniform(1e-5, 1e-2)),
    ("normal", {"mu": 2.0, "sigma": 0.5}, stats.norm(2, 0.5)),
    ("normal", {}, stats.norm(0, 1)),
    ("log_normal", {"mu": 1.0, "sigma": 0.3}, stats.lognorm(0.3, scale=math.e)),
    ("beta", {"a": 2, "b": 5}, stats.beta(2, 5)),
    ("beta", {}, stats.uniform(0, 1)),
]
ROUNDED = [
    ("q_uniform", {"min": 0, "max": 10, "q": 2}, stats.uniform(0, 10)),
    ("q_uniform", {"min": 0.0, "max": 1.0, "q": 0.25}, stats.uniform(0, 1)),
    ("q_log_uniform", {"min": 0.0, "max": 5.0}, stats.loguniform(1, math.exp(5))),
    ("q_log_uniform_values", {"min": 1.0, "max": 500.0, "q": 5}, stats.loguniform(1, 500)),
    ("q_normal", {"mu": 3.0, "sigma": 4.0, "q": 0.5}, stats.norm(3, 4)),
    ("q_log_normal", {"sigma": 2.0, "q": 1}, stats.lognorm(2)),
    ("q_beta", {"a": 2, "b": 2, "q": 0.1}, stats.beta(2, 2)),
]


@pytest.mark.parametrize(("name", "arguments", "definition"), CONTINUOUS)
def test_continuous_quantiles_are_exact(name, arguments, definition):
    value = quantile(name, arguments)
    assert [value(u) for u in U] == pytest.approx(definition.ppf(U), rel=1e-9)


@pytest.mark.parametrize(("name", "arguments", "definition"), ROUNDED)
def test_quantized_quantiles_are_the_nearest_multiples_of_q(name, arguments, definition):
    value, q = quantile(name, arguments), arguments.get("q", 1.0)
    for u in U:
        assert value(u) == pytest.approx(np.round(definition.ppf(u) / q) * q)
        assert isinstance(value(u), int) == isinstance(q, int)


def test_inverse_log_uniform_is_uniform_in_the_logarithm_of_one_over_x():
    value = quantile("inv_log_uniform", {"min": 2.0, "max": 6.0})  # log(1/x) uniform in (2, 6)
    assert [math.log(1 / value(u)) for u in U] == pytest.approx([6 - 4 * u for u in U])
    values = quantile("inv_log_uniform_values", {"min": 1e-5, "max": 1e-2})
    assert [math.log(values(u)) for u in U] == pytest.approx([LOG[0] + u * (LOG[1] - LOG[0]) for u in U])


def test_integers_are_equally_likely_and_reach_both_ends():
    value = quantile("int_uniform", {"min": -1, "max": 3})
    counts = np.unique([value((i + 0.5) / 1000) for i in range(1000)], return_counts=True)
    assert counts[0].tolist() == [-1, 0, 1, 2, 3] and counts[1].tolist() == [200] * 5
    assert (value(1e-12), value(1 - 1e-12)) == (-1, 3)


def test_choices_have_their_probabilities():
    draws = [(i + 0.5) / 1000 for i in range(1000)]
    even = [quantile("categorical", {"values": ["a", [1], None, True]})(u) for u in draws]
    assert [even.count(choice) for choice in ("a", [1], None, True)] == [250] * 4
    weighted = quantile("categorical_w_probabilities", {"values": ["a", "b", "c"], "probabilities": [0.7, 0.0, 0.3]})
    assert [[weighted(u) for u in draws].count(choice) for choice in "abc"] == [700, 0, 300]
    assert weighted(1 - 1e-16) == "c" and weighted(0.7) == "c"
    short = quantile("categorical_w_probabilities", {"values": ["a", "b"], "probabilities": [0.999999, 0.0]})
    assert short(0.9999999) == "a"  # a sum a little below 1 does not fall to a value without weight


def test_normal_agrees_with_the_standard_library():
    value = quantile("normal", {"mu": -1.0, "sigma": 2.0})
    assert [value(u) for u in U] == pytest.approx([NormalDist(-1, 2).inv_cdf(u) for u in U], rel=1e-9)


@pytest.mark.parametrize(("name", "arguments", "values"), [
    ("constant", {"value": [1, 2]}, [[1, 2]]),
    ("categorical", {"values": [3, "a"]}, [3, "a"]),
    ("int_uniform", {"min": 2, "max": 5}, [2, 3, 4, 5]),
    ("q_uniform", {"min": 0, "max": 6, "q": 2}, [0, 2, 4]),
    ("q_uniform", {"min": 0.0, "max": 1.0, "q": 0.4}, [0.0, 0.4, 0.8]),
])
def test_a_grid_enumerates_what_wandb_enumerates(name, arguments, values):
    listed = grid_values(name, arguments)
    assert listed == (pytest.approx(values) if name == "q_uniform" else values)
    assert grid_size(name, arguments) == len(values)


# -- hyperband ---------------------------------------------------------------------------------------------------------

def test_brackets():
    assert brackets(Hyperband(min_iter=3, eta=2))[:4] == [3, 6, 12, 24]
    assert brackets(Hyperband(max_iter=27, s=2, eta=3)) == [3, 9]
    assert brackets(Hyperband(max_iter=5, s=4, eta=2)) == [1, 2]


LOSSES = [[10.0, 9.0], [10.0, 10.0], [10.0, 8.0, 8.0], [10.0, 7.0, 7.0], [10.0, 6.0, 6.0]]


def stopped(rule, histories, *, maximize=False):
    return [should_stop(rule, own, histories, maximize=maximize) for own in histories]


def test_hyperband_keeps_the_best_part_at_the_last_bracket():
    # At iteration 2 the values are 9 10 8 7 6: sorted[int(5/2)] = 8.
    rule = Hyperband(max_iter=5, eta=2, s=2)
    assert stopped(rule, LOSSES) == [True, True, False, False, False]
    negated = [[-value for value in history] for history in LOSSES]
    assert stopped(rule, negated, maximize=True) == [True, True, False, False, False]


def test_nothing_stops_before_the_first_bracket_and_one_trial_alone_never():
    assert stopped(Hyperband(min_iter=4), LOSSES) == [False] * 5
    assert stopped(Hyperband(min_iter=1, strict=True), [[5.0, 9.0, 11.0]]) == [False]


def test_strict_compares_the_bracket_where_the_default_compares_the_best_so_far():
    histories = [[1.0, 9.0], [5.0, 2.0], [6.0, 3.0]]
    # At iteration 2: 9 2 3, threshold sorted[int(3/3)] = 3. The first was once best and is now worst.
    assert stopped(Hyperband(min_iter=2, eta=3), histories) == [False, False, False]
    assert stopped(Hyperband(min_iter=2, eta=3, strict=True), histories) == [True, False, False]
