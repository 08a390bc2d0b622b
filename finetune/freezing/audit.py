"""Proof that frozen means frozen: gradients after one backward pass, and a digest before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor, nn

from finetune.errors import TrialFailed
from finetune.freezing.checksum import checksums
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


def audit_loss(loss: Tensor, classifier: nn.Module, plan: FreezePlan, stack: LayerStack) -> AuditReport:
    """`audit_gradients` after a backward pass of its own from `loss` (a scalar); leaves no gradient behind."""
    try:
        loss.backward()
        return audit_gradients(classifier, plan, stack)
    finally:
        classifier.zero_grad(set_to_none=True)


def frozen_digests(classifier: nn.Module, plan: FreezePlan) -> dict[str, str]:
    """xxh3 of the bytes of every frozen parameter: twice per trial, and ten times as fast as sha256.

    On a GPU a checksum that is computed there: the weights need not come to the host.
    """
    frozen = {name: parameter for name, parameter in classifier.named_parameters() if name in plan.frozen}
    if any(parameter.device.type == "cuda" for parameter in frozen.values()):
        return dict(zip(frozen, checksums(frozen.values()), strict=True))
    return {name: xxhash.xxh3_128_hexdigest(_bytes(parameter)) for name, parameter in frozen.items()}


def digest_kind(device: torch.device) -> str:
    """Digests of two kinds can not be compared."""
    return "bits" if device.type == "cuda" else "xxh3"


def _bytes(parameter: Tensor) -> memoryview:
    return parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def check_frozen(classifier: nn.Module, plan: FreezePlan, before: Mapping[str, str]) -> None:
    """Raises TrialFailed("leak", …) with the names when a frozen parameter is not what `frozen_digests` gave before."""
    now = frozen_digests(classifier, plan)
    moved = sorted(name for name in before if now[name] != before[name])
    if moved:
        raise TrialFailed("leak", f"{moved[0]} is frozen and changed during training (and {len(moved) - 1} more)")


def part_gradient_norms(stack: LayerStack) -> dict[str, float]:
    """L2 norm of the gradient per part, for parts that have one; call it after backward, before clipping."""
    norms = {}
    for part, names in stack.parts.items():
        gradients = [stack.parameters[name].grad for name in names if stack.parameters[name].grad is not None]
        if gradients:
            norms[part] = float(torch.nn.utils.get_total_norm(gradients))
    return norms
