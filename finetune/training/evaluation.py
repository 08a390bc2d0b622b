"""Metrics of logits against labels, per task. Needs numpy and scikit-learn, not torch."""

from __future__ import annotations

import math
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
    """From the confusion matrix, as scikit-learn defines them: its own checks of the input take 20 times as long, and
    with reuse they were a quarter of a trial."""
    right, rows, guessed = _counts("classification", logits, labels)
    present = rows + guessed > 0
    f1 = 2 * right[present] / (rows + guessed)[present]
    metrics = {"accuracy": right.sum() / len(labels)}
    if logits.shape[1] == 2:
        metrics["f1"] = f1[-1] if present[1] else 0.0
    metrics["f1_macro"] = f1.mean()
    metrics["f1_weighted"] = np.average(f1, weights=rows[present])
    metrics["matthews"] = _matthews(right.sum(), rows, guessed)
    metrics["loss"] = np.mean(_log_sum_exp(logits) - logits[np.arange(len(labels)), labels])
    return metrics


def _matthews(right: float, rows: np.ndarray, guessed: np.ndarray) -> float:
    """Gorodkin 2004: the correlation of truth and prediction; 0 by convention where one of them is constant."""
    total, rows, guessed = float(rows.sum()), rows.astype(np.float64), guessed.astype(np.float64)
    spread = (total**2 - rows @ rows) * (total**2 - guessed @ guessed)
    return (right * total - rows @ guessed) / math.sqrt(spread) if spread > 0 else 0.0


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
    right, rows, guessed = _counts("multilabel", logits, labels)
    either = rows + guessed
    return {
        "f1_micro": 2 * right.sum() / max(1, either.sum()),
        "f1_macro": np.mean(2 * right / np.maximum(either, 1)),
        "subset_accuracy": np.mean((labels.astype(bool) == (logits > 0)).all(axis=1)),
        "loss": np.mean(np.maximum(logits, 0) - logits * labels.astype(bool) + np.log1p(np.exp(-np.abs(logits)))),
    }


def confusion(logits: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Counts [true class][predicted class] of a classification."""
    return _confusion(logits, labels).tolist()


def _confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = logits.shape[1]
    places = np.asarray(labels, np.int64) * classes + logits.argmax(axis=1)
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def _counts(task: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(classes,) each: rows that are a class and are said to be, that are it, that are said to be it."""
    if task == "multilabel":
        truth, guesses = labels.astype(bool), logits > 0
        return (truth & guesses).sum(0), truth.sum(0), guesses.sum(0)
    table = _confusion(logits, labels)
    return table.diagonal(), table.sum(1), table.sum(0)


def per_class_table(
    task: str, logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """One entry per class (or label, when multi-label): rows that have it, precision, recall and F1."""
    right, rows, guessed = _counts(task, logits, labels)
    columns = right / np.maximum(guessed, 1), right / np.maximum(rows, 1), 2 * right / np.maximum(rows + guessed, 1)
    return [
        {"label": name, "rows": int(count), "precision": float(precision), "recall": float(recall), "f1": float(f1)}
        for name, precision, recall, f1, count in zip(label_names, *columns, rows, strict=True)
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
