"""Metrics of logits against labels, per task. Needs numpy and scikit-learn, not torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.task_data import TAGGED
from finetune.errors import TrialFailed
from finetune.training.tagging import (
    ENTITY_METRICS,
    TAG_METRICS,
    count_metrics,
    kind_table,
    split_counts,
    tagging_baseline,
)

if TYPE_CHECKING:
    from finetune.data.task_data import Split, TaskData

MOST_CONFUSED = 30  # classes up to which a record holds the confusion matrix
LOWER_IS_BETTER = frozenset({"loss", "mse"})


def metric_names(task: str, num_outputs: int, scheme: str | None = None) -> list[str]:
    """What `compute_metrics` returns for a task, the default metric first."""
    if task == TAGGED:
        return list(ENTITY_METRICS if scheme else TAG_METRICS)
    if task == "regression":
        return ["pearson", "spearman", "mse", "loss"]
    if task == "multilabel":
        return ["f1_micro", "f1_macro", "subset_accuracy", "loss"]
    binary = ["f1"] if num_outputs == 2 else []
    return ["accuracy", *binary, "f1_macro", "f1_weighted", "matthews", "loss"]


def default_metric(task: str, num_outputs: int, glue_metric: str | None = None, scheme: str | None = None) -> str:
    """The metric that picks the best epoch unless a knob says otherwise: GLUE's own, or the task's."""
    return glue_metric or metric_names(task, num_outputs, scheme)[0]


def higher_is_better(name: str) -> bool:
    return name.rpartition("/")[2] not in LOWER_IS_BETTER


def compute_metrics(
    task: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str] | None = None
) -> dict[str, float]:
    """Metrics by name, as plain finite floats; `loss` is the mean over examples, computed in float64.

    logits (n, classes | 1 | labels), labels as in `Split`. What is undefined is 0: F1 of a class that is neither
    predicted nor there, a correlation with a constant (the convention of GLUE's and scikit-learn's scorers).
    Raises TrialFailed("non-finite") when a logit is not finite.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise TrialFailed("non-finite", f"{int((~np.isfinite(logits)).any(axis=-1).sum())} rows have logits that are "
                          "not finite numbers")
    compute = {"classification": _classification, "regression": _regression, "multilabel": _multilabel}[task]
    return {name: float(value) for name, value in compute(logits, np.asarray(labels)).items()}


def _classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef, precision_recall_fscore_support

    predicted = logits.argmax(axis=1)
    metrics = {"accuracy": np.mean(predicted == labels)}
    present = np.union1d(labels, predicted)
    # One call for what f1_score computes three times: per class, then averaged.
    _, _, f1, rows = precision_recall_fscore_support(labels, predicted, labels=present, zero_division=0)
    if logits.shape[1] == 2:
        metrics["f1"] = f1[present == 1].sum()
    metrics["f1_macro"] = f1.mean()
    metrics["f1_weighted"] = np.average(f1, weights=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one class only, where the coefficient is 0 by convention
        metrics["matthews"] = matthews_corrcoef(labels, predicted)
    metrics["loss"] = np.mean(_log_sum_exp(logits) - logits[np.arange(len(labels)), labels])
    return metrics


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """(n, classes) -> (n,)"""
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))


def _regression(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from scipy.stats import rankdata

    predicted, target = logits.reshape(len(labels)), labels.astype(np.float64)
    error = np.mean((predicted - target) ** 2)
    return {
        "pearson": _correlation(predicted, target),
        "spearman": _correlation(rankdata(predicted), rankdata(target)),
        "mse": error,
        "loss": error,
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else 0.0


def _multilabel(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score

    truth, predicted = labels.astype(int), (logits > 0).astype(int)
    return {
        "f1_micro": f1_score(truth, predicted, average="micro", zero_division=0),
        "f1_macro": f1_score(truth, predicted, average="macro", zero_division=0),
        "subset_accuracy": np.mean((truth == predicted).all(axis=1)),
        "loss": np.mean(np.maximum(logits, 0) - logits * truth + np.log1p(np.exp(-np.abs(logits)))),
    }


def confusion(logits: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Counts [true class][predicted class] of a classification."""
    table = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
    np.add.at(table, (labels, logits.argmax(axis=1)), 1)
    return table.tolist()


def per_class_table(
    task: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """One entry per class (or label, when multi-label): rows that have it, precision, recall and F1."""
    from sklearn.metrics import precision_recall_fscore_support

    if task == "multilabel":
        truth, predicted = labels.astype(int), (logits > 0).astype(int)
    else:
        truth, predicted = labels, logits.argmax(axis=1)
    columns = precision_recall_fscore_support(truth, predicted, labels=range(logits.shape[1]), zero_division=0)
    return [
        {"label": name, "rows": int(rows), "precision": float(precision), "recall": float(recall), "f1": float(f1)}
        for name, precision, recall, f1, rows in zip(label_names, *columns, strict=True)
    ]


def split_metrics(data: TaskData, logits: np.ndarray, split: str) -> dict[str, float]:
    """The task's metrics of logits (rows, outputs), or (words, tags), on a split."""
    if data.task == TAGGED:
        return count_metrics(split_counts(data, logits, split), data.scheme)
    return compute_metrics(data.task, logits, data.splits[split].labels)


def class_details(data: TaskData, predictions: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """A record's `details` per split that was predicted: {"per_class": …, "confusion": …}; none for a regression.

    The matrix is left out beyond 30 classes, where it would be most of the record; `confusion` makes it from the
    predictions.
    """
    splits = [name for name in ("validation", "test") if f"{name}_logits" in predictions]
    if data.task == TAGGED:
        return {name: {"per_class": kind_table(predictions[f"{name}_counts"], data.label_names, data.scheme)}
                for name in splits}
    return {name: _details(data, predictions[f"{name}_logits"], predictions[f"{name}_labels"]) for name in splits}


def _details(data: TaskData, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    if data.label_names is None:
        return {}
    details: dict[str, Any] = {"per_class": per_class_table(data.task, logits, labels, data.label_names)}
    if data.task == "classification" and data.num_outputs <= MOST_CONFUSED:
        details["confusion"] = confusion(logits, labels)
    return details


def baseline(data: TaskData) -> dict[str, Any]:
    """What a model that ignores the text reaches: {"kind", "validation": {metrics}, "test": {metrics}}.

    "majority": the training rows' class frequencies as probabilities (add-one smoothed, so that the loss is finite),
    per label when multi-label. "mean": the mean training target.
    """
    if data.task == TAGGED:
        return tagging_baseline(data)
    logits = _constant_logits(data)
    splits = {name: data.splits[name] for name in ("validation", "test")}
    kind = "mean" if data.task == "regression" else "majority"
    return {"kind": kind, **{name: _constant_metrics(data.task, logits, split) for name, split in splits.items()}}


def _constant_logits(data: TaskData) -> np.ndarray:
    """(outputs,)"""
    labels = data.splits["train"].labels
    if data.task == "regression":
        return labels.mean(axis=0, dtype=np.float64, keepdims=True)
    if data.task == "multilabel":
        ones = labels.sum(axis=0, dtype=np.float64)
        return np.log((ones + 1) / (len(labels) - ones + 1))
    counts = np.bincount(labels, minlength=data.num_outputs)
    return np.log((counts + 1) / (len(labels) + data.num_outputs))


def _constant_metrics(task: str, logits: np.ndarray, split: Split) -> dict[str, float]:
    return compute_metrics(task, np.tile(logits, (len(split), 1)), split.labels)
