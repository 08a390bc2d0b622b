"""What every family has to pass, and its page: `python tests/support/conformance.py` writes docs/backbones.md."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from families import FAMILIES, REFUSED, build
from torch import nn
from training import train, trainer_for

from finetune.models import LayerStack, UnsupportedBackbone
from finetune.models.discovery import discover_stack

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
INTRODUCTION = """# Backbones

<!-- generated: python tests/support/conformance.py -->

A backbone is one ordered partition `embeddings, layer.0 … layer.L-1, top`; every parameter lies in exactly one part.
It is found by structure (the longest list of equal layers) and verified by hooks in a forward pass (each layer runs
once, in order, and hands on one hidden state), not by a table of names. So a family that is missing below works too,
or is refused with the reason; `finetune layers MODEL` shows which, and `--audit` proves what trains.

Where a parameter belongs, whatever its name: inside a layer and read by no other, that layer; read in one stretch of
the forward pass, that stretch (before layer 0 `embeddings`, between layers i and i + 1 `layer.i`, after the last
`top`); read by several layers, `embeddings`, because every layer above the embeddings would change with it; read by
nothing, where it is registered.

## Families

Each was built with a tiny random configuration of 3 layers and passed, in the real training loop with AdamW and a
weight decay of 0.5: the parts hold every parameter exactly once; at every freeze depth (-1 to 3) each frozen tensor
was bit-identical after training, no frozen parameter had a gradient, and the hidden state below the boundary was
outside the graph; everything that should train had a gradient and moved, but for what the model never reads.

"""
REFUSALS = """
## Refused

| model | reason | what to do |
|---|---|---|
"""


@dataclass(frozen=True)
class Conformance:
    """One family's row of the matrix. The lists are empty where everything holds."""

    stack: LayerStack
    misplaced: list[str]  # parameters that lie in no part or in two
    leaks: dict[int, set[str]]  # depth -> frozen parameters that moved, had a gradient, or were in the optimizer
    idle: dict[int, set[str]]  # depth -> trainable parameters that had no gradient or did not move
    deeper: dict[int, list[int]]  # depth -> layers below the boundary whose input was in the graph

    @property
    def holds(self) -> bool:
        return not (self.misplaced or any(self.leaks.values()) or any(self.idle.values())
                    or any(self.deeper.values()))


@cache
def stack_of(family: str) -> LayerStack:
    return discover_stack(build(family))


@cache
def conformance(family: str) -> Conformance:
    stack = stack_of(family)
    placed = [name for names in stack.parts.values() for name in names]
    misplaced = sorted({name for name, _ in stack.model.named_parameters()} ^ set(placed)
                       | {name for name in placed if placed.count(name) > 1})
    leaks, idle, deeper = {}, {}, {}
    for depth in range(-1, stack.num_layers + 1):
        leaks[depth], idle[depth], deeper[depth] = _train_at(stack, depth)
    return Conformance(stack, misplaced, leaks, idle, deeper)


def _train_at(stack: LayerStack, depth: int) -> tuple[set[str], set[str], list[int]]:
    trainer = trainer_for(copy.deepcopy(stack.model), stack, freeze_depth=depth)
    expected = expected_at_depth(trainer.stack, depth)
    inputs = _watch_inputs(trainer.stack)
    seen = train(trainer)
    leaks = (seen.moved[1] | seen.with_gradient[1] | seen.trained[1]) - expected
    never = {f"backbone.{name}" for name in stack.unread | stack.fixed}
    idle = (expected - (seen.with_gradient[1] & seen.moved[1])) - never
    below = range(depth + 1 if depth > 0 else 1 if depth == -1 else 0)
    return leaks, idle, [layer for layer in below if layer < stack.num_layers and any(inputs[layer])]


def expected_at_depth(stack: LayerStack, depth: int) -> set[str]:
    """What trains, by the design's words and not by the rules' code. Classifier names."""
    order = list(stack.parts)
    frozen = {0: [], -1: order[:1], stack.num_layers: order}.get(depth, order[:depth + 1])
    trains = {f"backbone.{name}" for part in order if part not in frozen for name in stack.parts[part]}
    return (trains - {f"backbone.{name}" for name in stack.fixed}) | {f"head.{name}" for name in stack.head}


def _watch_inputs(stack: LayerStack) -> dict[int, list[bool]]:
    """Per layer, whether its input was in the graph, for each of its training calls."""
    inputs: dict[int, list[bool]] = defaultdict(list)
    for index, layer in enumerate(stack.layers):
        def look(module: nn.Module, args: tuple, kwargs: dict, index: int = index) -> None:
            hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            inputs[index].append(hidden.requires_grad)
        layer.register_forward_pre_hook(look, with_kwargs=True)
    return inputs


def refusal(name: str) -> UnsupportedBackbone | None:
    try:
        discover_stack(build(name))
    except UnsupportedBackbone as error:
        return error
    return None


def moved_by_use(stack: LayerStack) -> dict[str, str]:
    """Parameters whose part is not the one that they are registered in; a number for the layer's."""
    found: dict[str, str] = {}
    layers_seen = False
    for name, _ in stack.model.named_parameters():
        inside = name.startswith(stack.path + ".")
        layers_seen = layers_seen or inside
        registered = f"layer.{name[len(stack.path) + 1:].partition('.')[0]}" if inside else (
            "top" if layers_seen else "embeddings")
        if registered != stack.part_of[name]:
            found[name] = stack.part_of[name]
    return found


def page() -> str:
    rows = ["| family | class | layers at | kind | placed by use | all of the above |", "|---|---|---|---|---|---|"]
    for family in FAMILIES:
        result = conformance(family)
        stack = result.stack
        kind = "decoder" if stack.causal else "encoder"
        placed = "<br>".join(f"`{name}` in `{part}`" for name, part in moved_by_use(stack).items())
        rows.append(f"| {family} | `{type(stack.model).__name__}` | `{stack.path}` | {kind} | {placed} | "
                    f"{'yes' if result.holds else 'NO'} |")
    refused = []
    for name in REFUSED:
        error = refusal(name)
        assert error is not None, name
        advice = str(error).rpartition("; ")[2]
        refused.append(f"| {name} | {error.reason} | {advice} |")
    return INTRODUCTION + "\n".join(rows) + "\n" + REFUSALS + "\n".join(refused) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE, file=sys.stderr)
