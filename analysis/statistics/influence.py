"""Influence values: what each test row adds to a metric, so that metrics that are no means over rows get rows.

As a function of row weights w, every metric T of the project is unchanged when all weights are scaled alike. The
influence of row i is the derivative N · ∂T/∂w_i at w = 1 (von Mises 1947; the infinitesimal jackknife, Jaeckel 1972;
Efron 1982, ch. 6): the values sum to 0, and their variance over rows divided by N is the variance of T over draws of
the rows. `row_values` adds them to the metric: rows whose mean is T and which vary as T does, ready for
`stats.split_parts`. What is undefined is 0, and so are its influence values.
"""

from __future__ import annotations

import numpy as np

from analysis.statistics import metrics


def row_values(metric: str, task: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores per row whose mean is the metric: exact ones for a mean over rows, else metric + influence.

    logits (rows, outputs) of one seed -> (rows,); (seeds, rows, outputs) -> (seeds, rows). labels as in
    `finetune.data.Split`.
    """
    logits = np.asarray(logits)
    if logits.ndim == (4 if task == metrics.TAGGED else 3):
        return np.stack([row_values(metric, task, one, labels) for one in logits])
    if metrics.is_mean_over_rows(metric, task):
        return metrics.per_row(metric, task, logits, labels)
    value = float(metrics.weighted(metric, task, logits, labels, np.ones((1, len(labels))))[0])
    return value + influence(metric, task, logits, labels)


def influence(metric: str, task: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(rows,) influence values, which sum to 0; logits (rows, outputs), labels as in `finetune.data.Split`."""
    if task == metrics.TAGGED:
        values = _of_counts(metric, logits)
    elif metrics.is_mean_over_rows(metric):
        values = metrics.per_row(metric, task, logits, labels)
    elif task == "regression":
        values = _correlation(metric, np.asarray(logits, np.float64).reshape(len(labels)), labels.astype(np.float64))
    elif task == "multilabel":
        values = _f1(metric, labels > 0, logits > 0)
    else:
        classes = np.arange(logits.shape[1])
        truth, said = labels[:, None] == classes, logits.argmax(axis=1)[:, None] == classes
        if metric == "f1_macro":  # scikit-learn averages over the classes that occur in the labels or the predictions
            seen = (truth | said).any(axis=0)
            truth, said = truth[:, seen], said[:, seen]
        values = _matthews(truth, said) if metric == "matthews" else _f1(metric, truth, said)
    # What is left of a derivative along the simplex of weights that sum to one; exact sums of 0 for the others too.
    return values - values.mean()


def _f1(metric: str, truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """F1 = 2·hits / (true + said) per class: derivative (2·hit_i − F1·(true_i + said_i)) / (true + said), times rows.

    truth and said (rows, classes), booleans.
    """
    hit, either = (truth & said).astype(np.float64), truth.astype(np.float64) + said
    if metric == "f1_micro":
        hit, either = hit.sum(axis=1, keepdims=True), either.sum(axis=1, keepdims=True)
    by_class = _ratio(2 * hit.mean(axis=0), either.mean(axis=0))
    derivative = _ratio(2 * hit - by_class * either, np.broadcast_to(either.mean(axis=0), hit.shape))
    if metric == "f1":
        return derivative[:, 1]
    if metric == "f1_weighted":
        share = truth.mean(axis=0)
        return derivative @ share + truth @ by_class - truth.sum(axis=1) * (by_class @ share)
    return derivative.mean(axis=1)


def _of_counts(metric: str, counts: np.ndarray) -> np.ndarray:
    """Sentences with tags: ratios of sums, a / b, with the derivative (a_i - a/b·b_i) / mean(b).

    counts (sentences, kinds + 1, 3) as `finetune.training.tagging.sentence_counts` has them.
    """
    if metric in ("accuracy", "loss"):
        top, below = counts[:, -1, 0 if metric == "accuracy" else 2][:, None], counts[:, -1, 1][:, None]
    else:
        hits, said, true = (counts[:, :-1, column] for column in range(3))
        if metric == "f1_macro":
            seen = (said + true).any(axis=0)
            hits, said, true = hits[:, seen], said[:, seen], true[:, seen]
        else:
            hits, said, true = (column.sum(axis=1, keepdims=True) for column in (hits, said, true))
        top, below = (hits, said) if metric == "precision" else (hits, true) if metric == "recall" else (
            2 * hits, said + true)
    ratio = _ratio(top.mean(axis=0), below.mean(axis=0))
    each = _ratio(top - ratio * below, np.broadcast_to(below.mean(axis=0), top.shape))
    return each.mean(axis=1) if each.shape[1] else np.zeros(len(counts))


def _matthews(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Matthews is covariance / sqrt(spread of the answers · spread of the labels), from shares of rows per class."""
    true, answered = truth.mean(axis=0), said.mean(axis=0)
    hit = (truth & said).sum(axis=1)
    of_covariance = hit - truth @ answered - said @ true
    return _quotient(hit.mean() - true @ answered, 1 - answered @ answered, 1 - true @ true,
                     of_covariance, -2 * said @ answered, -2 * truth @ true)


def _correlation(metric: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's, and Spearman's as Pearson's of the mid-ranks, which move with the weights themselves."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # minus its rounded mean a constant is not exactly 0
        return np.zeros(len(x))
    ranked = metric == "spearman"
    if ranked:
        (x, x_level), (y, y_level) = _mid_ranks(x), _mid_ranks(y)
    else:
        x, y = x - x.mean(), y - y.mean()
    of_xy, of_xx, of_yy = x * y, x * x, y * y
    if ranked:
        of_xy = of_xy + _mean_above(y, x_level) + _mean_above(x, y_level)
        of_xx, of_yy = of_xx + 2 * _mean_above(x, x_level), of_yy + 2 * _mean_above(y, y_level)
    return _quotient((x * y).mean(), (x * x).mean(), (y * y).mean(), of_xy, of_xx, of_yy)


def _quotient(top: float, left: float, right: float, of_top: np.ndarray, of_left: np.ndarray,
              of_right: np.ndarray) -> np.ndarray:
    """The derivative of top / sqrt(left · right) from those of its parts; 0 where the quotient is undefined."""
    if left <= 0 or right <= 0:
        return np.zeros(len(of_top))
    value = top / np.sqrt(left * right)
    return of_top / np.sqrt(left * right) - value / 2 * (of_left / left + of_right / right)


def _mid_ranks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share of rows below + half the share of equal rows − ½, the place of each row's value), each (rows,)."""
    _, level, counts = np.unique(x, return_inverse=True, return_counts=True)
    return ((np.cumsum(counts) - counts / 2) / len(x) - 0.5)[level], level


def _mean_above(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Per row k the mean over rows i of values_i · (1 where i's level is above k's, ½ where equal): O(rows).

    How the mid-rank of every row moves when row k gains weight, times `values`.
    """
    at = np.bincount(level, weights=values)
    return ((at.sum() - np.cumsum(at) + at / 2) / len(values))[level]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
