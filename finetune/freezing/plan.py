"""FreezePlan: what trains from some epoch on. Total (every parameter is on one side) and idempotent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from finetune.models.layers import LayerStack

BACKBONE_PREFIX, HEAD_PREFIX = "backbone.", "head."


@dataclass(frozen=True)
class PartShare:
    """One part's parameter counts."""

    part: str
    total: int
    trainable: int


@dataclass(frozen=True)
class FreezePlan:
    """Names are the Classifier's: backbone.*, head.*."""

    trainable: frozenset[str]
    frozen: frozenset[str]
    eval_modules: frozenset[str]  # modules that lie in parts in which nothing trains
    parts: tuple[PartShare, ...]  # embeddings, layer.0 … layer.L-1, top, head
    prefix_layers: int | None
    """The boundary for reuse: embeddings and layers 0 … k-1 are frozen and quiet. 0: the embeddings only; L: the whole
    backbone with top; None: not even the embeddings."""
    from_epoch: int = 1
    from_step: int = 0  # optimizer steps that were done when it was made

    @classmethod
    def build(cls, stack: LayerStack, trainable: Iterable[str], *, from_epoch: int = 1, from_step: int = 0,
              frozen_dropout: bool = False) -> FreezePlan:
        """`trainable`: backbone parameter names; the head always trains. Raises ValueError for an unknown name."""
        if unknown := set(trainable) - stack.part_of.keys():
            raise ValueError(f"no such parameter: {sorted(unknown)[0]}")
        trainable = frozenset(trainable) - stack.fixed
        parts = _shares(stack, trainable)
        quiet = set() if frozen_dropout else {share.part for share in parts if not share.trainable}
        return cls(
            trainable=_prefixed(BACKBONE_PREFIX, trainable) | _prefixed(HEAD_PREFIX, stack.head),
            frozen=_prefixed(BACKBONE_PREFIX, stack.part_of.keys() - trainable),
            eval_modules=frozenset((BACKBONE_PREFIX + name).rstrip(".")
                                   for name, module_parts in stack.parts_below.items() if module_parts <= quiet),
            parts=parts, prefix_layers=None if frozen_dropout else _prefix_layers(parts),
            from_epoch=from_epoch, from_step=from_step,
        )

    def apply(self, classifier: nn.Module) -> None:
        """Set `requires_grad` of every parameter, and eval mode of everything frozen; the rest keeps its mode.

        Call it after each `model.train()`: that puts frozen modules back into train mode. Raises ValueError when the
        plan does not cover exactly this classifier's parameters.
        """
        parameters = dict(classifier.named_parameters())
        if parameters.keys() != self.trainable | self.frozen:
            stray = sorted(parameters.keys() ^ (self.trainable | self.frozen))
            raise ValueError(f"this plan is for another model: {stray[0]} is only in one of the two")
        for name, parameter in parameters.items():
            trains = name in self.trainable
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None
        for name, module in classifier.named_modules():
            if module.training and name in self.eval_modules:
                module.training = False

    @property
    def trainable_parts(self) -> list[str]:
        return [share.part for share in self.parts if share.trainable]

    @property
    def trainable_parameters(self) -> int:
        return sum(share.trainable for share in self.parts)

    @property
    def deepest_trainable_layer(self) -> int:
        """What backpropagation has to reach: -1 the embeddings, a layer, or L for top or head only."""
        return next(index for index, share in enumerate(self.parts, start=-1) if share.trainable or share.part == "top")

    def describe(self) -> dict[str, Any]:
        """For the record's `freeze_plan`."""
        return {
            "from_epoch": self.from_epoch,
            "from_step": self.from_step,
            "trainable_parts": self.trainable_parts,
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": sum(share.total for share in self.parts),
            "prefix_layers": self.prefix_layers,
            "deepest_trainable_layer": self.deepest_trainable_layer,
        }


def _prefixed(prefix: str, names: Iterable[str]) -> frozenset[str]:
    return frozenset(prefix + name for name in names)


def _shares(stack: LayerStack, trainable: frozenset[str]) -> tuple[PartShare, ...]:
    sizes = {name: parameter.numel() for name, parameter in stack.parameters.items()}
    shares = [
        PartShare(part, sum(sizes[name] for name in names), sum(sizes[name] for name in names if name in trainable))
        for part, names in stack.parts.items()
    ]
    head = sum(parameter.numel() for parameter in stack.head.values())
    return (*shares, PartShare("head", head, head))


def _prefix_layers(parts: tuple[PartShare, ...]) -> int | None:
    """Sound for any plan, because a part's result depends on no later part. `parts`: embeddings, layers, top, head."""
    frozen = [not share.trainable for share in parts[:-1]]
    num_layers = len(frozen) - 2
    if all(frozen):
        return num_layers
    # With every layer frozen and top training the last layer still runs: L would promise that top is frozen too.
    leading = frozen.index(False)
    return min(leading - 1, num_layers - 1) if leading else None
