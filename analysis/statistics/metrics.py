"""A metric as a number per test row, or, where it is no mean over rows, under given weightings of the rows.

The values are those of `finetune.training.evaluation.compute_metrics` (tested); this is how they vary with the rows.
"""

from __future__ import annotations

import numpy as np

EXACT = {"accuracy", "subset_accuracy", "loss", "mse"}  # means over rows
TAGGED = "token_classification"  # a row is a sentence; its counts stand in place of logits
BY_WORD = "most frequent tag of each word"  # a baseline's kind: it reads the words, and does well in every metric


def is_mean_over_rows(metric: str, task: str = "classification") -> bool:
    """Sentences have different numbers of words: there even accuracy is a ratio of sums."""
    return metric in EXACT and task != TAGGED


def per_row(metric: str, task: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(rows,) scores whose mean is the metric. logits (rows, outputs), labels as in `finetune.data.Split`."""
    logits = np.asarray(logits, dtype=np.float64)
    if task == TAGGED:  # mean over the words of each sentence
        return logits[:, -1, 0 if metric == "accuracy" else 2] / logits[:, -1, 1]
    if metric == "accuracy":
        return (logits.argmax(axis=1) == labels).astype(np.float64)
    if metric == "subset_accuracy":
        return ((logits > 0) == (labels > 0)).all(axis=1).astype(np.float64)
    if task == "regression":
        return (logits.reshape(len(labels)) - labels.astype(np.float64)) ** 2
    if task == "multilabel":
        return (np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))).mean(axis=1)
    highest = logits.max(axis=1)
    log_sum = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return log_sum - logits[np.arange(len(labels)), labels]


def weighted(metric: str, task: str, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The metric with each row counted `weights` times: weights (draws, rows) -> (draws,).

    What is undefined is 0, as in `finetune.training.evaluation`.
    """
    if task == "regression":
        return _weighted_correlation(metric, logits.reshape(len(labels)), labels, weights)
    if task == TAGGED:
        return of_counts(metric, np.einsum("dr,rkc->dkc", weights, logits))
    if task == "multilabel":
        return _f1(metric, *_label_counts(logits, labels, weights))
    table = _confusion(logits, labels, weights)
    if metric == "matthews":
        return _matthews(table)
    hits, predicted, true = np.einsum("dcc->dc", table), table.sum(axis=1), table.sum(axis=2)
    if metric == "f1_macro":
        # scikit-learn averages over the classes that occur in the labels or the predictions.
        seen = (predicted + true) > 0
        return _ratio((_ratio(2 * hits, predicted + true) * seen).sum(axis=1), seen.sum(axis=1))
    return _f1(metric, hits, predicted, true)


def of_counts(metric: str, total: np.ndarray) -> np.ndarray:
    """Sums (draws, kinds + 1, 3) of `finetune.training.tagging.sentence_counts` -> (draws,) of a metric."""
    hits, said, true = (total[:, :-1, column] for column in range(3))
    right, words, loss = total[:, -1].T
    if metric in ("accuracy", "loss"):
        return _ratio(right if metric == "accuracy" else loss, words)
    if metric == "f1_macro":
        seen = (said + true) > 0
        return _ratio((_ratio(2 * hits, said + true) * seen).sum(axis=1), seen.sum(axis=1))
    hits, said, true = (column.sum(axis=1) for column in (hits, said, true))
    return {"f1": _ratio(2 * hits, said + true), "precision": _ratio(hits, said), "recall": _ratio(hits, true)}[metric]


def _confusion(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted counts (draws, true class, predicted class)."""
    classes = logits.shape[1]
    cell = labels * classes + logits.argmax(axis=1)
    used, column = np.unique(cell, return_inverse=True)
    table = np.zeros((len(weights), classes * classes))
    table[:, used] = _sum_by(weights, column, len(used))
    return table.reshape(-1, classes, classes)


def _sum_by(weights: np.ndarray, column: np.ndarray, columns: int) -> np.ndarray:
    """Sum the weights of the rows of each column: (draws, rows) -> (draws, columns)."""
    order = np.argsort(column, kind="stable")
    starts = np.searchsorted(column[order], np.arange(columns))
    return np.add.reduceat(weights[:, order], starts, axis=1)


def _label_counts(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted hits, predicted and true per label, each (draws, labels)."""
    truth, predicted = labels > 0, logits > 0
    hits, said, true = ((weights @ x.astype(np.float32)).astype(np.float64)
                        for x in (truth & predicted, predicted, truth))
    return hits, said, true


def _f1(metric: str, hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 of counts per class (draws, classes), averaged as the metric's name says."""
    if metric == "f1_micro":
        hits, predicted, true = (x.sum(axis=1, keepdims=True) for x in (hits, predicted, true))
    by_class = _ratio(2 * hits, predicted + true)
    if metric == "f1":
        return by_class[:, 1]
    if metric == "f1_weighted":
        return _ratio((by_class * true).sum(axis=1), true.sum(axis=1))
    return by_class.mean(axis=1)


def _matthews(table: np.ndarray) -> np.ndarray:
    total, hits = table.sum(axis=(1, 2)), np.einsum("dcc->d", table)
    true, predicted = table.sum(axis=2), table.sum(axis=1)
    covariance = hits * total - (true * predicted).sum(axis=1)
    scale = np.sqrt((total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1)))
    return _ratio(covariance, scale)


def _weighted_correlation(metric: str, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if metric == "pearson":
        return _pearson(x[None, :], y[None, :], weights)
    return _pearson(_weighted_ranks(x, weights), _weighted_ranks(y, weights), weights)


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x and y (draws | 1, rows)."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    covariance = (weights * x * y).sum(axis=1)
    return np.clip(_ratio(covariance, np.sqrt((weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1))), -1, 1)


def _weighted_ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of the rows when each stands there `weights` times: (rows,), (draws, rows) -> (draws, rows)."""
    _, level = np.unique(x, return_inverse=True)
    at_level = _sum_by(weights, level, int(level.max()) + 1)
    middle = np.cumsum(at_level, axis=1) - at_level / 2 + 0.5
    return middle[:, level]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is 0."""
    numerator = np.asarray(numerator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=np.asarray(denominator) > 0)
