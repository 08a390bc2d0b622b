"""Proof that frozen means frozen: gradients after one backward pass, and a digest before and after training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune.errors import TrialFailed
from finetune.freezing.plan import BACKBONE_PREFIX, HEAD_PREFIX, FreezePlan

if TYPE_CHECKING:
    from finetune.models.layers import LayerStack


@dataclass(frozen=True)
class AuditReport:
    """What one backward pass reached."""

    leaks: tuple[str, ...]  # frozen parameters that got a gradient
    deepest_trainable_layer: int  # -1 embeddings, L top or head only
    trainable_with_gradient: int  # counts of tensors
    trainable_without_gradient: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        return {
            "leaks": list(self.leaks), "deepest_trainable_layer": self.deepest_trainable_layer,
            "trainable_with_gradient": self.trainable_with_gradient,
            "trainable_without_gradient": list(self.trainable_without_gradient),
        }


def audit_gradients(classifier: nn.Module, plan: FreezePlan, stack: LayerStack) -> AuditReport:
    """Read the gradients that a backward pass over real rows has just left behind.

    Raises TrialFailed("leak", …) with the parameter's name when a gradient reached a frozen one.
    """
    reached = {name for name, parameter in classifier.named_parameters() if parameter.grad is not None}
    leaks = tuple(sorted(reached & plan.frozen))
    if leaks:
        raise TrialFailed("leak", f"a gradient reached {leaks[0]}, which is frozen (and {len(leaks) - 1} more)")
    order = {part: index for index, part in enumerate(stack.parts, start=-1)}
    depths = [order[stack.part_of[name.removeprefix(BACKBONE_PREFIX)]]
              for name in reached if not name.startswith(HEAD_PREFIX)]
    return AuditReport(
        leaks=(), deepest_trainable_layer=min(depths, default=stack.num_layers),
        trainable_with_gradient=len(reached), trainable_without_gradient=tuple(sorted(plan.trainable - reached)),
    )


def frozen_digest(classifier: nn.Module, plan: FreezePlan) -> str:
    """sha256 over the bytes of every frozen parameter, in name order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(classifier.named_parameters()):
        if name in plan.frozen:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def part_gradient_norms(stack: LayerStack) -> dict[str, float]:
    """L2 norm of the gradient per part, for parts that have one; call it after backward, before clipping."""
    norms = {}
    for part, names in stack.parts.items():
        gradients = [stack.parameters[name].grad for name in names if stack.parameters[name].grad is not None]
        if gradients:
            norms[part] = float(torch.nn.utils.get_total_norm(gradients))
    return norms
