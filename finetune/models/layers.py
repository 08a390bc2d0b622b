"""LayerStack: a backbone as one ordered partition, embeddings, layer.0 … layer.L-1, top.

Found by structure and verified by hooks, not by a table of names. The rule for every parameter, whatever its name:

- inside a layer, and read by no other: that layer;
- outside the layers, and read in one stretch of the forward pass only: that stretch. Before layer 0 it is
  `embeddings` (ELECTRA's projection, GPT-2's `wpe`), between layers i and i + 1 it is `layer.i` (DeBERTa's
  convolution), after the last layer `top`;
- read by several layers (DeBERTa's `rel_embeddings`, MPNet's and T5's `relative_attention_bias`): `embeddings`,
  wherever it is stored. If it trained, every layer above the embeddings would change with it;
- read by nothing in a forward pass: where it is registered, before the layers `embeddings`, after them `top`.

So a part's result depends on its own parameters and on those of parts before it, never on a later part's: freezing
the first parts freezes what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from torch import nn

from finetune.errors import ConfigError

EMBEDDINGS, TOP, HEAD = "embeddings", "top", "head"
Layout = Literal["rows_first", "tokens_first", "other"]


class UnsupportedBackbone(ConfigError):
    """The model has no stack of layers that could be frozen one by one; says why and what to do."""

    def __init__(self, model: object, reason: str, advice: str = "choose an encoder or decoder whose layers differ"):
        self.reason = reason
        super().__init__(f"{type(model).__name__} cannot be frozen layer by layer: {reason}; {advice}")


def layer_part(index: int) -> str:
    return f"layer.{index}"


@dataclass(frozen=True)
class LayerStack:
    """The parts of one model instance. Names are the backbone's own, `head` names the classifier's (after `bind`)."""

    model: nn.Module
    path: str  # of the layers' ModuleList inside the model, e.g. encoder.layer
    parts: Mapping[str, tuple[str, ...]]  # part -> parameter names; every backbone parameter exactly once
    width: int  # of the final hidden state
    causal: bool  # the first token does not see later ones
    layout: Layout  # axes of the hidden state between layers; (rows, tokens, width) where rows_first
    returns_tuple: bool  # layers return a tuple whose first element is the hidden state
    carries_state: bool  # layers hand on more than the hidden state (T5's position bias): a prefix cannot be skipped
    module_parts: Mapping[str, str]  # module name -> part, for modules that lie in one part as a whole
    fixed: frozenset[str] = frozenset()  # parameters that the model itself never trains (RoFormer's sinusoids)
    unread: frozenset[str] = frozenset()  # parameters that a forward pass does not read (XLNet's mask_emb)
    head: Mapping[str, nn.Parameter] = field(default_factory=dict)

    @cached_property
    def layers(self) -> list[nn.Module]:
        return list(self.model.get_submodule(self.path))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The backbone's parameters by name."""
        return dict(self.model.named_parameters())

    @cached_property
    def modules(self) -> dict[str, list[nn.Module]]:
        """Per part the outermost modules that lie in it as a whole, e.g. the layer itself."""
        found: dict[str, list[nn.Module]] = {part: [] for part in self.parts}
        for name, part in self.module_parts.items():
            parent = name.rpartition(".")[0]
            if self.module_parts.get(parent) != part:
                found[part].append(self.model.get_submodule(name))
        return found

    @cached_property
    def parts_below(self) -> dict[str, set[str]]:
        """The parts that a module's mode concerns, for every module: its own part, or all those that it contains."""
        below: dict[str, set[str]] = {}
        for name, part in self.module_parts.items():
            outer = name
            while outer:
                outer = outer.rpartition(".")[0]
                below.setdefault(outer, set()).add(part)
        below |= {name: {part} for name, part in self.module_parts.items()}
        return {name: below[name] for name, _ in self.model.named_modules() if name in below}

    def names(self, *parts: str) -> frozenset[str]:
        """The parameter names of these parts."""
        return frozenset(name for part in parts for name in self.parts[part])

    def layer_names(self, layers: Iterable[int]) -> frozenset[str]:
        return self.names(*map(layer_part, layers))

    @cached_property
    def part_of(self) -> dict[str, str]:
        return {name: part for part, names in self.parts.items() for name in names}

    def bind(self, classifier: nn.Module) -> LayerStack:
        """The same partition for a Classifier built on this backbone or on a copy of it (`.backbone`, `.head`)."""
        bound = self.rebind(classifier.backbone)
        return replace(bound, head=dict(classifier.head.named_parameters()))

    def rebind(self, model: nn.Module) -> LayerStack:
        """The same partition for a copy of the model, which may have lost its pooler since.

        Raises ValueError when the copy has parameters that this stack does not know.
        """
        present = {name for name, _ in model.named_parameters()}
        if unknown := present - self.part_of.keys():
            raise ValueError(f"not a copy of the probed model: {sorted(unknown)[0]} is new")
        parts = {part: tuple(name for name in names if name in present) for part, names in self.parts.items()}
        modules = {name for name, _ in model.named_modules()}
        module_parts = {name: part for name, part in self.module_parts.items() if name in modules}
        return replace(self, model=model, parts=parts, module_parts=module_parts)
