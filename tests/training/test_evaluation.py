"""Metrics against independent computations, their conventions at the edges, and the baselines."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from finetune.data.task_data import Split, TaskData
from finetune.errors import TrialFailed
from finetune.training.evaluation import (
    baseline,
    compute_metrics,
    confusion,
    default_metric,
    higher_is_better,
    metric_names,
    per_class_table,
)


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_classification_agrees_with_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(50, classes)).astype(np.float32) * 5, rng.integers(classes, size=50)
    computed, predicted = compute_metrics("classification", logits, labels), logits.argmax(axis=1)
    assert list(computed) == metric_names("classification", classes)
    assert computed["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert computed["f1_macro"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    assert computed["matthews"] == pytest.approx(reference.matthews_corrcoef(labels, predicted))
    assert computed["loss"] == pytest.approx(
        reference.log_loss(labels, softmax(logits.astype(np.float64)), labels=range(classes)), rel=1e-6)
    if classes == 2:
        assert computed["f1"] == pytest.approx(reference.f1_score(labels, predicted, pos_label=1))
    else:
        assert "f1" not in computed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_regression_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 6, size=40).astype(np.float32)
    logits = (target + rng.normal(size=40))[:, None]
    computed = compute_metrics("regression", logits, target)
    assert computed["pearson"] == pytest.approx(stats.pearsonr(logits[:, 0], target).statistic, rel=1e-6)
    assert computed["spearman"] == pytest.approx(stats.spearmanr(logits[:, 0], target).statistic, rel=1e-6)
    assert computed["mse"] == computed["loss"] == pytest.approx(reference.mean_squared_error(target, logits[:, 0]))
    assert compute_metrics("regression", logits[:, 0], target) == computed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_multilabel_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(40, 5)) * 3, (rng.random((40, 5)) < 0.3).astype(np.float32)
    computed, predicted = compute_metrics("multilabel", logits, labels), logits > 0
    assert list(computed) == metric_names("multilabel", 5)
    assert computed["f1_micro"] == pytest.approx(reference.f1_score(labels, predicted, average="micro"))
    macro = reference.f1_score(labels, predicted, average="macro", zero_division=0)
    assert computed["f1_macro"] == pytest.approx(macro)
    assert computed["subset_accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    p = 1 / (1 + np.exp(-logits))
    assert computed["loss"] == pytest.approx(np.mean(-labels * np.log(p) - (1 - labels) * np.log(1 - p)))


def test_the_loss_is_exact_for_logits_that_overflow_a_naive_softmax():
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32)
    assert compute_metrics("classification", logits, np.array([0, 0]))["loss"] == pytest.approx(5000.0)
    multi = compute_metrics("multilabel", logits, np.array([[1, 0], [1, 0]]))["loss"]
    assert multi == pytest.approx((1e4 + 2 * math.log(2)) / 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("task", "logits", "labels"), [
    ("regression", np.ones((5, 1)), np.arange(5.0)), ("regression", np.arange(5.0), np.ones(5)),
    ("regression", np.array([[3.0]]), np.array([3.0])),
    ("classification", np.array([[2.0, 1.0]] * 4), np.zeros(4, int)),
    ("classification", np.array([[2.0, 1.0, 0]] * 4), np.array([1, 1, 2, 2])),
    ("multilabel", -np.ones((4, 3)), np.zeros((4, 3))),
])
def test_what_is_undefined_is_zero_and_never_nan(task, logits, labels):
    computed = compute_metrics(task, logits, labels)
    assert all(type(value) is float and math.isfinite(value) for value in computed.values())
    name = {"regression": "pearson", "classification": "matthews", "multilabel": "f1_micro"}[task]
    assert computed[name] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail_the_trial(bad):
    with pytest.raises(TrialFailed, match="1 rows") as caught:
        compute_metrics("classification", np.array([[0.0, bad], [0.0, 1.0]]), np.array([0, 1]))
    assert caught.value.kind == "non-finite"


def test_default_metrics_and_directions():
    assert default_metric("classification", 2) == default_metric("classification", 77) == "accuracy"
    assert default_metric("regression", 1) == "pearson"
    assert default_metric("multilabel", 5) == "f1_micro"
    assert default_metric("classification", 2, "matthews") == "matthews"
    assert [higher_is_better(name) for name in ("accuracy", "validation/loss", "mse", "validation/f1")] == [
        True, False, False, True]


def test_confusion_and_the_table_per_class():
    logits = np.eye(3)[[0, 0, 1, 2, 2, 2]]
    labels = np.array([0, 1, 1, 2, 2, 0])
    assert confusion(logits, labels) == [[1, 0, 1], [1, 1, 0], [0, 0, 2]]
    table = per_class_table("classification", logits, labels, ["a", "b", "c"])
    assert table[1] == {"label": "b", "rows": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    multi = per_class_table("multilabel", np.array([[1, -1], [1, 1]]), np.array([[1, 0], [0, 1]]), ["x", "y"])
    assert multi[0] == {"label": "x", "rows": 1, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}


def data_of(task, train, test, outputs):
    def split(labels):
        return Split([("t",)] * len(labels), np.asarray(labels), np.array([str(i) for i in range(len(labels))]))

    splits = {"train": split(train), "validation": split(test), "test": split(test)}
    return TaskData("x", None, task, None, outputs, splits, "f")


def test_the_majority_is_that_of_train_not_of_test():
    found = baseline(data_of("classification", np.array([0] * 7 + [1] * 3), np.array([1] * 8 + [0] * 2), 2))
    assert found["kind"] == "majority"
    assert found["test"]["accuracy"] == pytest.approx(0.2)
    p = np.array([8 / 12, 4 / 12])
    assert found["test"]["loss"] == pytest.approx(-(2 * np.log(p[0]) + 8 * np.log(p[1])) / 10)


def test_the_mean_baseline_of_a_regression():
    found = baseline(data_of("regression", np.array([1.0, 3.0], np.float32), np.array([2.0, 4.0], np.float32), 1))
    assert (found["kind"], found["test"]["mse"], found["test"]["pearson"]) == ("mean", 2.0, 0.0)


def test_the_majority_per_label_of_a_multilabel_task():
    train = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float32)
    found = baseline(data_of("multilabel", train, np.array([[1, 0], [1, 1]], np.float32), 2))
    assert found["test"]["subset_accuracy"] == 0.5
    assert found["test"]["f1_micro"] == pytest.approx(0.8)


def test_neither_metrics_nor_data_import_torch():
    code = ("import sys, finetune.training.evaluation, finetune.data; "
            "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
