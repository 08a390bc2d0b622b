"""Influence values: what each test row adds to a metric, so that metrics that are no means over rows get rows.

As a function of row weights w, every metric T of the project is unchanged when all weights are scaled alike. The
influence of row i is the derivative N · ∂T/∂w_i at w = 1 (von Mises 1947; the infinitesimal jackknife, Jaeckel 1972;
Efron 1982, ch. 6): the values sum to 0, and their variance over rows divided by N is the variance of T over draws of
the rows. `row_values` adds them to the metric: rows whose mean is T and which vary as T does, ready for
`stats.split_parts`. What is undefined is 0, and so are its influence values.

All seeds are computed at once: below, arrays begin with the seeds, `labels` are those of the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.statistics import metrics

KNOWN = {  # besides means over rows
    "classification": ("f1", "f1_macro", "f1_weighted", "matthews"), "multilabel": ("f1_micro", "f1_macro"),
    "regression": ("pearson", "spearman"),
    metrics.TAGGED: ("f1", "f1_macro", "precision", "recall", "accuracy", "loss"),
}


class Derived(NamedTuple):
    """A metric (seeds,) and its derivative by the weight of each row, times the rows: (seeds, rows)."""

    value: np.ndarray
    by_row: np.ndarray


def row_values(metric: str, task: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores per row whose mean is the metric: exact ones for a mean over rows, else metric + influence.

    logits (rows, outputs) of one seed -> (rows,); (seeds, rows, outputs) -> (seeds, rows). labels as in
    `finetune.data.Split`. Raises ValueError for a metric that the task does not have.
    """
    seeds, single = _with_seeds(task, logits)
    if metrics.is_mean_over_rows(metric, task):
        found = np.stack([metrics.per_row(metric, task, one, labels) for one in seeds])
    else:
        value, by_row = _derived(metric, task, seeds, np.asarray(labels))
        found = value[:, None] + by_row
    return found[0] if single else found


def influence(metric: str, task: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Influence values, which sum to 0 over rows; shapes as for `row_values`."""
    found = row_values(metric, task, logits, labels)
    return found - found.mean(axis=-1, keepdims=True)


def _with_seeds(task: str, logits: np.ndarray) -> tuple[np.ndarray, bool]:
    """logits with a first axis for seeds, and whether they came without one."""
    logits = np.asarray(logits)
    single = logits.ndim < (4 if task == metrics.TAGGED else 3)
    return (logits[None] if single else logits), single


def _derived(metric: str, task: str, logits: np.ndarray, labels: np.ndarray) -> Derived:
    if metric not in KNOWN[task]:
        raise ValueError(f"{metric} is no metric of {task}: {', '.join(KNOWN[task])}")
    if task == metrics.TAGGED:
        found = _of_counts(metric, logits)
    elif task == "regression":
        x = np.asarray(logits, np.float64).reshape(len(logits), len(labels))
        found = _correlation(metric, x, labels.astype(np.float64)[None])
    elif task == "multilabel":
        found = _of_labels(metric, labels > 0, logits > 0)
    else:
        said, classes = logits.argmax(axis=-1), logits.shape[-1]
        found = _matthews(said, labels, classes) if metric == "matthews" else _f1(metric, said, labels, classes)
    # What is left of a derivative along the simplex of weights that sum to one; exact sums of 0 for the others too.
    return Derived(found.value, found.by_row - found.by_row.mean(axis=-1, keepdims=True))


# -- shares of counts --------------------------------------------------------------------------------------------------

def _f1(metric: str, said: np.ndarray, labels: np.ndarray, classes: int) -> Derived:
    """F1 = 2·hits / (true + said) per class, all as shares of the rows: its derivative by a row of label t that was
    answered s is 2·[t = s = class] / both − F1·([t = class] + [s = class]) / both, with both = true + said."""
    hit = said == labels
    hits, answered = _shares(said, hit, classes), _shares(said, None, classes)
    true = _shares(labels[None], None, classes)
    both = answered + true
    by_class = _ratio(2 * hits, both)
    if metric == "f1_weighted":
        weight = np.broadcast_to(true, both.shape)
    elif metric == "f1":
        weight = np.broadcast_to(np.arange(classes) == 1, both.shape).astype(np.float64)
    else:  # scikit-learn averages over the classes that occur in the labels or the predictions
        weight = (both > 0) / (both > 0).sum(axis=1, keepdims=True)
    value = (weight * by_class).sum(axis=1)
    of_hit, of_each = _ratio(2 * weight, both), _ratio(weight * by_class, both)
    by_row = hit * of_hit[:, labels] - of_each[:, labels] - np.take_along_axis(of_each, said, axis=1)
    if metric == "f1_weighted":  # the classes' shares move too
        by_row += by_class[:, labels] - value[:, None]
    return Derived(value, by_row)


def _matthews(said: np.ndarray, labels: np.ndarray, classes: int) -> Derived:
    """Matthews is covariance / sqrt(spread of the answers · spread of the labels), from shares of rows per class."""
    answered, true = _shares(said, None, classes), _shares(labels[None], None, classes)
    hit = (said == labels).astype(np.float64)
    answered_of_label, answered_of_answer = answered[:, labels], np.take_along_axis(answered, said, axis=1)
    true_of_label, true_of_answer = true[:, labels], true[0][said]
    return _quotient(hit.mean(axis=1) - (answered * true).sum(axis=1), 1 - (answered**2).sum(axis=1),
                     1 - (true**2).sum(axis=1), hit - answered_of_label - true_of_answer,
                     -2 * answered_of_answer, -2 * true_of_label)


def _shares(classes_of: np.ndarray, counted: np.ndarray | None, classes: int) -> np.ndarray:
    """Per class the share of the rows that are of it (and `counted`): (seeds, rows) of classes -> (seeds, classes)."""
    seeds, rows = classes_of.shape
    cell = classes_of + classes * np.arange(seeds)[:, None]
    cell = cell.ravel() if counted is None else cell[counted]
    return np.bincount(cell, minlength=seeds * classes).reshape(seeds, classes) / rows


def _of_labels(metric: str, truth: np.ndarray, said: np.ndarray) -> Derived:
    """The F1 of several labels per row; truth (rows, labels), said (seeds, rows, labels), booleans."""
    hits, both = (truth & said).astype(np.float64), truth.astype(np.float64) + said
    if metric == "f1_micro":
        hits, both = hits.sum(axis=2, keepdims=True), both.sum(axis=2, keepdims=True)
    return _mean_of_ratios(2 * hits, both)


def _of_counts(metric: str, counts: np.ndarray) -> Derived:
    """Sentences with tags: ratios of sums.

    counts (seeds, sentences, kinds + 1, 3) as `finetune.training.tagging.sentence_counts` has them.
    """
    if metric in ("accuracy", "loss"):
        last = counts[:, :, -1:]
        return _mean_of_ratios(last[..., 0 if metric == "accuracy" else 2], last[..., 1])
    hits, said, true = np.moveaxis(counts[:, :, :-1], -1, 0)
    if metric != "f1_macro":
        hits, said, true = (column.sum(axis=2, keepdims=True) for column in (hits, said, true))
    if metric in ("precision", "recall"):
        return _mean_of_ratios(hits, said if metric == "precision" else true)
    return _mean_of_ratios(2 * hits, said + true, only_seen=True)


def _mean_of_ratios(top: np.ndarray, below: np.ndarray, *, only_seen: bool = False) -> Derived:
    """The mean over kinds (those with anything below, if `only_seen`) of mean(top) / mean(below), whose derivative is
    (top_i − ratio · below_i) / mean(below); both (seeds, rows, kinds)."""
    level = below.mean(axis=1)
    ratio = _ratio(top.mean(axis=1), level)
    kinds = (level > 0).sum(axis=1) if only_seen else np.full(len(level), level.shape[1])
    weight = _ratio(np.ones_like(level), level * np.maximum(kinds, 1)[:, None])
    by_row = np.einsum("srk,sk->sr", top, weight) - np.einsum("srk,sk->sr", below, weight * ratio)
    return Derived(ratio.sum(axis=1) / np.maximum(kinds, 1), by_row)


# -- correlations ------------------------------------------------------------------------------------------------------

def _correlation(metric: str, x: np.ndarray, y: np.ndarray) -> Derived:
    """Pearson's, and Spearman's as Pearson's of the mid-ranks, which move with the weights themselves.

    x (seeds, rows), y (1, rows).
    """
    # Minus its rounded mean a constant is not exactly 0.
    varies = (np.ptp(x, axis=1) > 0) & (np.ptp(y) > 0)
    ranked = metric == "spearman"
    if ranked:
        (x, x_level), (y, y_level) = _mid_ranks(x), _mid_ranks(y)
    else:
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean()
    of_xy, of_xx, of_yy = x * y, x * x, y * y
    xy, xx, yy = (part.mean(axis=1) for part in (of_xy, of_xx, of_yy))
    if ranked:
        of_xy += _mean_above(y, x_level) + _mean_above(x, y_level)
        of_xx += 2 * _mean_above(x, x_level)
        of_yy += 2 * _mean_above(y, y_level)
    return _quotient(xy, np.where(varies, xx, 0.0), yy, of_xy, of_xx, of_yy)


def _quotient(top: np.ndarray, left: np.ndarray, right: np.ndarray, of_top: np.ndarray, of_left: np.ndarray,
              of_right: np.ndarray) -> Derived:
    """top / sqrt(left · right), (seeds,) each, from the derivatives of its parts; 0 where it is undefined."""
    defined = (left > 0) & (right > 0)
    left, right = (np.where(defined, part, 1.0)[:, None] for part in (left, right))
    value = top[:, None] / np.sqrt(left * right)
    by_row = of_top / np.sqrt(left * right) - value / 2 * (of_left / left + of_right / right)
    return Derived(np.where(defined, np.clip(value[:, 0], -1, 1), 0.0), np.where(defined[:, None], by_row, 0.0))


def _mid_ranks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share of rows below + half the share of equal rows − ½, the place of each row's value); x (seeds, rows), and so
    are both."""
    ranks, levels = np.empty(x.shape), np.empty(x.shape, np.int64)
    for seed, one in enumerate(x):
        _, level, counts = np.unique(one, return_inverse=True, return_counts=True)
        levels[seed] = level
        ranks[seed] = ((np.cumsum(counts) - counts / 2) / len(one) - 0.5)[level]
    return ranks, levels


def _mean_above(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Per row k the mean over rows i of values_i · (1 where i's level is above k's, ½ where equal): O(rows).

    How the mid-rank of every row moves when row k gains weight, times `values`. Both (seeds, rows), or one for all.
    """
    values, level = np.broadcast_arrays(values, level)
    found = np.empty(values.shape)
    for seed, (one, place) in enumerate(zip(values, level, strict=True)):
        at = np.bincount(place, weights=one)
        found[seed] = ((at.sum() - np.cumsum(at) + at / 2) / len(one))[place]
    return found


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator > 0)
