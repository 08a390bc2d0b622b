"""Influence values against numerical derivatives, the exact jackknife; degenerate cases."""

import numpy as np
import pytest

from analysis.statistics import influence, metrics, stats
from finetune.training.evaluation import compute_metrics, metric_names

ROWS = 60
CASES = [(task, outputs, name) for task, outputs in (("classification", 2), ("classification", 4), ("multilabel", 3),
                                                     ("regression", 1)) for name in metric_names(task, outputs)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def experiment(rng, task, outputs, rows=ROWS):
    logits = rng.normal(size=(rows, outputs))
    if task == "classification":
        labels = rng.integers(outputs, size=rows)
        logits[np.arange(rows), labels] += 1.0
    elif task == "multilabel":
        labels = (rng.random((rows, outputs)) < 0.4).astype(np.float32)
        logits += 2 * labels - 1
    else:
        labels = rng.normal(size=rows).round(1)
        logits = (logits + labels[:, None]).round(1)  # ties in both, where ranks are delicate
    return logits, labels


def under_weights(name, task, logits, labels, weights):
    if metrics.is_mean_over_rows(name):
        return weights @ metrics.per_row(name, task, logits, labels) / weights.sum(axis=1)
    return metrics.weighted(name, task, logits, labels, weights)


@pytest.mark.parametrize(("task", "outputs", "name"), CASES)
def test_influence_is_the_numerical_derivative_and_sums_to_zero(rng, task, outputs, name):
    logits, labels = experiment(rng, task, outputs)
    step = 1e-3  # the multi-label counts are made in float32
    up, down = (under_weights(name, task, logits, labels, 1 + sign * step * np.eye(ROWS)) for sign in (1, -1))
    found = influence.influence(name, task, logits, labels)
    assert found == pytest.approx(ROWS * (up - down) / (2 * step), abs=2e-3)
    assert abs(found.sum()) < 1e-9
    assert np.abs(found).max() > 0.1


@pytest.mark.parametrize(("task", "outputs", "name"), CASES)
def test_influence_gives_the_variance_of_the_exact_jackknife(rng, task, outputs, name):
    rows = 400
    logits, labels = experiment(rng, task, outputs, rows)
    without = under_weights(name, task, logits, labels, 1.0 - np.eye(rows))
    jackknife = (rows - 1) ** 2 / rows * without.var(ddof=1)
    assert influence.influence(name, task, logits, labels).var(ddof=1) / rows == pytest.approx(jackknife, rel=0.03)


@pytest.mark.parametrize(("task", "outputs", "name"), CASES)
def test_row_values_average_to_the_metric_for_one_seed_and_for_several(rng, task, outputs, name):
    seeds = [experiment(rng, task, outputs)[0] for _ in range(3)]
    _, labels = experiment(rng, task, outputs)
    found = influence.row_values(name, task, np.stack(seeds), labels)
    assert found.shape == (3, ROWS)
    assert found.mean(axis=1) == pytest.approx([compute_metrics(task, s, labels)[name] for s in seeds],
                                               rel=1e-5, abs=1e-7)
    assert found[1] == pytest.approx(influence.row_values(name, task, seeds[1], labels))


@pytest.mark.parametrize(("task", "outputs", "name"), CASES)
def test_constant_answers_have_a_defined_value_and_finite_influence(rng, task, outputs, name):
    logits, labels = experiment(rng, task, outputs)
    constant = np.tile(np.linspace(0.3, -0.4, outputs), (ROWS, 1))  # class 0, never class 1: no positive predicted
    found = influence.row_values(name, task, constant, labels)
    assert np.isfinite(found).all()
    assert found.mean() == pytest.approx(compute_metrics(task, constant, labels)[name], abs=1e-6)
    if name in ("f1", "matthews", "pearson", "spearman"):
        assert found == pytest.approx(0, abs=1e-12)  # undefined, or 0 whatever the rows


@pytest.mark.parametrize("name", ["f1", "f1_macro", "f1_weighted", "matthews"])
@pytest.mark.parametrize("only", [0, 1])
def test_test_rows_of_one_class_only(rng, name, only):
    logits, labels = rng.normal(size=(ROWS, 2)), np.full(ROWS, only)
    found = influence.row_values(name, "classification", logits, labels)
    assert np.isfinite(found).all()
    assert found.mean() == pytest.approx(compute_metrics("classification", logits, labels)[name], abs=1e-9)


def test_a_collapsed_seed_widens_the_interval_and_breaks_nothing(rng):
    logits = np.stack([experiment(rng, "classification", 2)[0] for _ in range(5)])
    labels = rng.integers(2, size=ROWS)
    logits[:, np.arange(ROWS), labels] += 3.0
    sound = stats.split_parts(influence.row_values("f1", "classification", logits, labels))
    logits[2] = [1.0, 0.0]
    one_collapsed = stats.split_parts(influence.row_values("f1", "classification", logits, labels))
    assert one_collapsed.seeds > 10 * sound.seeds
    assert stats.half_width(one_collapsed, 0.975) > stats.half_width(sound, 0.975)


@pytest.mark.parametrize(("task", "outputs", "name"), [("regression", 1, "f1_macro"), ("multilabel", 3, "matthews"),
                                                       ("classification", 3, "pearson")])
def test_a_metric_of_another_task_is_refused(rng, task, outputs, name):
    with pytest.raises(ValueError, match=f"{name} is no metric of {task}"):
        influence.row_values(name, task, *experiment(rng, task, outputs))
