"""analysis.statistics.stats, power and metrics against other implementations and against simulated truth."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as distributions
from sklearn import metrics as sklearn_metrics
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from analysis.simulate import coverage, verdicts, worlds
from analysis.simulate.__main__ import TABLES
from analysis.statistics import metrics, power, stats
from analysis.statistics.stats import Parts
from finetune.training.evaluation import compute_metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def crossed(rng, seeds=6, rows=40, seed_sd=1.0, row_sd=2.0):
    return seed_sd * rng.normal(size=(seeds, 1)) + row_sd * rng.normal(size=(1, rows)) + rng.normal(size=(seeds, rows))


def test_split_t_is_the_documented_formula(rng):
    d = crossed(rng)
    seeds, rows = d.shape
    r, c, m = d.mean(1), d.mean(0), d.mean()
    a, b = r.var(ddof=1) / seeds, c.var(ddof=1) / rows
    e = sum((d[s, i] - r[s] - c[i] + m) ** 2 for s in range(seeds) for i in range(rows)) / (
        (seeds - 1) * (rows - 1) * seeds * rows)
    half = math.sqrt(distributions.t.ppf(0.975, seeds - 1) ** 2 * a + 1.959964**2 * max(b - e, 0))
    found = stats.interval(stats.split_parts(d))
    assert found.estimate == pytest.approx(m)
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-6)


def test_without_rows_that_differ_it_is_the_t_interval(rng):
    values = rng.normal(size=7)
    low, high = distributions.t.interval(0.95, 6, values.mean(), distributions.sem(values))
    found = stats.interval(stats.split_parts(np.tile(values[:, None], (1, 30))))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_this_test_set_is_the_t_interval_over_seed_means(rng):
    d = crossed(rng)
    means = d.mean(axis=1)
    low, high = distributions.t.interval(0.95, len(means) - 1, means.mean(), distributions.sem(means))
    found = stats.interval(stats.split_parts(d), "this_test_set")
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(("seeds", "tag", "has_interval"), [
    (1, "this checkpoint", True), (2, "two seeds", False), (3, "few seeds", True), (4, "few seeds", True),
    (5, "", True)])
def test_what_so_many_seeds_allow_to_say(rng, seeds, tag, has_interval):
    found = stats.interval(stats.split_parts(crossed(rng, seeds)))
    assert found.tag == tag
    assert math.isfinite(found.low) == has_interval


def test_p_value_agrees_with_the_interval(rng):
    parts = stats.split_parts(crossed(rng))
    p = stats.p_value(parts)
    touching = stats.half_width(parts, 1 - p / 2)
    assert touching == pytest.approx(abs(parts.estimate), rel=1e-6)
    assert stats.p_value(parts._replace(estimate=0.0)) == 1.0
    assert stats.p_value(parts._replace(estimate=stats.half_width(parts, 0.975))) == pytest.approx(0.05, rel=1e-6)


def test_unpaired_seeds_are_welchs_interval_where_rows_do_not_differ(rng):
    a, b = rng.normal(0.3, 1, 6), rng.normal(0, 2, 4)
    welch = distributions.ttest_ind(a, b, equal_var=False)
    low, high = welch.confidence_interval()
    found = stats.interval(stats.unpaired_parts(np.tile(a[:, None], (1, 9)), np.tile(b[:, None], (1, 9))))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_holm_agrees_with_statsmodels_and_passes_nan_by(rng):
    p = list(rng.random(9) ** 3)
    assert stats.holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    with_nan = stats.holm([p[0], math.nan, p[1]])
    assert math.isnan(with_nan[1]) and with_nan[::2] == pytest.approx(stats.holm(p[:2]))


def test_mcnemar_agrees_with_statsmodels(rng):
    a, b = rng.random(80) < 0.8, rng.random(80) < 0.7
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert stats.mcnemar(a, b) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)


def test_fixed_sequence_stops_at_the_first_failure():
    assert stats.fixed_sequence([True, True, False, True]) == 2
    assert stats.fixed_sequence([False, True]) == 0 and stats.fixed_sequence([True]) == 1


@pytest.mark.parametrize("higher", [True, False])
def test_expected_best_is_the_mean_over_all_subsets(rng, higher):
    values = list(rng.normal(size=6))
    best = max if higher else min
    brute = [np.mean([best(subset) for subset in combinations(values, n)]) for n in range(1, 7)]
    assert stats.expected_best(values, higher_is_better=higher) == pytest.approx(brute)


def test_seed_correlation_is_pearsons(rng):
    values = rng.normal(size=(3, 8))
    assert stats.seed_correlation(values) == pytest.approx(np.corrcoef(values))
    assert np.isnan(stats.seed_correlation(values[:, :2])).all()


@pytest.mark.parametrize(("task", "classes", "name"), [
    ("classification", 2, "f1"), ("classification", 4, "f1_macro"), ("classification", 4, "f1_weighted"),
    ("classification", 3, "matthews"), ("multilabel", 3, "f1_micro"), ("multilabel", 3, "f1_macro"),
    ("regression", 1, "pearson"), ("regression", 1, "spearman")])
def test_weighting_rows_is_repeating_them(rng, task, classes, name):
    rows = 60
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    labels = {"classification": rng.integers(classes, size=rows), "regression": rng.normal(size=rows).round(1),
              "multilabel": (rng.random((rows, classes)) < 0.4).astype(np.float32)}[task]
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=5).astype(np.float32)
    found = metrics.weighted(name, task, logits, labels, weights)
    for value, weight in zip(found, weights.astype(int), strict=True):
        again = np.repeat(np.arange(rows), weight)
        assert value == pytest.approx(compute_metrics(task, logits[again], labels[again])[name], abs=1e-6)


def test_macro_f1_agrees_with_sklearn_also_with_a_class_that_never_occurs(rng):
    logits, labels = rng.normal(size=(50, 4)), rng.integers(3, size=50)
    found = metrics.weighted("f1_macro", "classification", logits, labels, np.ones((1, 50), np.float32))[0]
    assert found == pytest.approx(sklearn_metrics.f1_score(labels, logits.argmax(1), average="macro"))


@pytest.mark.parametrize(("name", "task"), [("accuracy", "classification"), ("loss", "classification"),
                                            ("subset_accuracy", "multilabel"), ("loss", "multilabel"),
                                            ("mse", "regression")])
def test_row_scores_average_to_the_metric(rng, name, task):
    outputs = 1 if task == "regression" else 3
    logits = rng.normal(size=(30, outputs)).astype(np.float32)
    labels = {"classification": rng.integers(3, size=30), "regression": rng.normal(size=30),
              "multilabel": (rng.random((30, 3)) < 0.5).astype(np.float32)}[task]
    assert metrics.per_row(name, task, logits, labels).mean() == pytest.approx(
        compute_metrics(task, logits, labels)[name], rel=1e-5)


def test_detectable_margin_falls_to_the_floor_of_the_rows():
    margins = [power.detectable_margin(seeds, 2000) for seeds in (3, 5, 10, 10**6)]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] == pytest.approx(0.011, abs=0.0005)
    assert power.detectable_margin(10**6, 8000) == pytest.approx(margins[-1] / 2, rel=1e-3)
    assert math.isinf(power.detectable_margin(2, 2000))
    assert "no interval" in power.planned(1, 2000) and "fewer than 5 seeds" in power.planned(4, 2000)


def test_what_would_show_is_seeds_where_seeds_suffice_and_rows_where_they_do_not():
    by_seeds = power.what_would_show(Parts(0.0, 0.004**2, 0.001**2, 5, 4), 2000, 0.01)
    assert by_seeds.startswith("to show it would take about ")
    needed = int(by_seeds.split()[-2])
    enough = Parts(0.0, 0.004**2 * 5 / needed, 0.001**2, needed, needed - 1)
    assert power.realised_margin(enough) <= 0.01
    by_rows = power.what_would_show(Parts(0.0, 0.0, 0.006**2, 5, 4), 2000, 0.01)
    assert by_rows == "no number of seeds would show it; about 4,500 test examples would"
    assert "hardly" in power.what_would_show(Parts(0.02, 0.004**2, 0.001**2, 5, 4), 2000, 0.01)


# Simulated truth, small: `python -m analysis.simulate` is the full version, its table is in docs/statistics.md. The
# bounds below are four standard errors of the simulation away from what they guard.

@pytest.mark.parametrize("seeds", [4, 5, 10])
@pytest.mark.parametrize("seed_sd", [0.001, 0.02])
def test_coverage_and_width_of_a_difference(rng, seeds, seed_sd):
    repeats = 300
    found = coverage.accuracy_coverage(worlds.World(seeds, seed_sd, rows=500), repeats, rng)
    error = math.sqrt(0.95 * 0.05 / repeats)
    assert 0.95 - 4 * error < found.split_t
    assert found.width_ratio < 1.2


def test_a_t_interval_over_seeds_alone_does_not_cover_new_text(rng):
    found = coverage.accuracy_coverage(worlds.World(10, 0.001, rows=500), 200, rng)
    assert found.others["t over seeds"] < 0.9 < found.split_t


@pytest.mark.parametrize("collapse", [0.0, 0.05])
def test_verdicts_are_wrong_in_at_most_five_percent_and_have_power(rng, collapse):
    repeats = 200
    found = verdicts.verdicts(worlds.World(10, 0.008, collapse, rows=300), repeats, rng)
    assert found.wrong < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert found.power > 0.8 * verdicts.IDEAL_POWER - 0.1


def test_the_simulated_levels_are_what_they_say(rng):
    world = worlds.World(50, 0.04)
    correct, labels = worlds.draw(world, [worlds.ACCURACY, 0.7], np.random.default_rng(1))
    assert (labels == 0).mean() == pytest.approx(worlds.MAJORITY, abs=0.04)
    assert correct.mean(axis=(1, 2)) == pytest.approx([worlds.ACCURACY, 0.7], abs=0.03)
    assert correct.mean(axis=2).std(axis=1) == pytest.approx([0.04, 0.04], abs=0.02)


def test_satterthwaites_interval_is_the_t_interval_without_rows(rng):
    values = rng.normal(size=7)
    low, high = distributions.t.interval(0.95, 6, 0, distributions.sem(values))
    assert coverage.satterthwaite(np.tile(values[:, None], (1, 30))) == pytest.approx(high)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_tables_are_printed():
    for table in TABLES.values():
        title, header, _, *rows = table(40, np.random.default_rng(0))
        assert title.startswith("\n### ") and {row.count("|") for row in rows} == {header.count("|")}
