"""The loss of a task, per row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from finetune.data.encoding.words import IGNORED
from finetune.data.task_data import TAGGED


def per_example_loss(task: str, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """logits (batch, outputs), labels as in Split -> (batch,): cross-entropy, squared error or mean binary CE."""
    logits = logits.float()
    if task == TAGGED:  # summed over the words of each row; the mean over words is taken by whoever counts them
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weights, reduction="none",
                                        ignore_index=IGNORED).view(labels.shape).sum(1)
    if task == "classification":
        return functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    if task == "regression":
        return (logits.squeeze(-1) - labels) ** 2
    return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none").mean(1)
