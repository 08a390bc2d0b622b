"""What training needs to know about the labels of the training rows: the targets' units, the classes' weights."""

from __future__ import annotations

import numpy as np

from finetune.data.tagged import tag_counts
from finetune.data.task_data import TAGGED, TaskData


def target_units(data: TaskData) -> tuple[float, float]:
    """(mean, standard deviation) of the training targets of a regression; (0, 1) for any other task.

    The head predicts in these units and hands out the source's, so that a rating of 1..5 and a price of 1e5 train
    alike at one learning rate, while metrics, losses and predictions stay in the source's own units.
    """
    if data.task != "regression":
        return 0.0, 1.0
    targets = data.splits["train"].labels.astype(np.float64)
    return float(targets.mean()), float(targets.std()) or 1.0


def balanced_weights(data: TaskData) -> np.ndarray:
    """(classes,) rows / (classes · rows of the class), as scikit-learn has "balanced"; a class's mean weight is 1.

    Multi-label: (labels,) rows without the label per row with it, the weight of a positive in its binary loss.
    """
    labels = data.splits["train"].labels
    if data.task == "multilabel":
        positive = labels.sum(axis=0)
        return (len(labels) - positive) / np.maximum(positive, 1)
    counts = tag_counts(labels, data.num_outputs) if data.task == TAGGED else np.bincount(
        labels, minlength=data.num_outputs)
    return counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
