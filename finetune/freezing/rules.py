"""Every strategy: one function that says what trains. The head always trains and needs no mention.

`stack.names(...)`, `stack.layer_names(...)` and `stack.part_of` give parameter names; `moment` says where training
stands. A rule is a function of these alone, so that every process and every resumed trial makes the same plan.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from finetune.errors import ConfigError, Problem
from finetune.freezing.language import (
    Moment,
    reads_draw,
    reads_epochs,
    reads_epochs_before_the_last,
    reads_layer_range,
    reads_layers,
    reads_pattern,
    reads_percentile,
    reads_rank,
    strategy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finetune.models.layers import LayerStack

LISA_STREAM = 0x115A  # keeps the draw of layers apart from the seed's other uses


def above_depth(stack: LayerStack, depth: int) -> frozenset[str]:
    """What trains at a freeze_depth."""
    if depth == stack.num_layers:
        return frozenset()
    above = stack.layer_names(range(max(depth, 0), stack.num_layers)) | stack.names("top")
    return above | stack.names("embeddings") if depth == 0 else above


@strategy("full", "full", "everything trains", "", depth=lambda limits: 0)
def full(stack: LayerStack, moment: Moment) -> frozenset[str]:
    return above_depth(stack, 0)


@strategy("prefix:k", "prefix:4", "embeddings and the first k layers are frozen; the same as `freeze_depth: k`",
          "Lee et al. 2019, arXiv:1911.03090", reads=reads_layers(0), depth=lambda limits, k: k)
def prefix(stack: LayerStack, moment: Moment, k: int) -> frozenset[str]:
    return above_depth(stack, k)


@strategy("embeddings", "embeddings", "only the embeddings are frozen; the same as `freeze_depth: -1`",
          "Lee et al. 2019, arXiv:1911.03090", depth=lambda limits: -1)
def embeddings(stack: LayerStack, moment: Moment) -> frozenset[str]:
    return above_depth(stack, -1)


@strategy("head_only", "head_only", "the whole backbone is frozen (a linear probe where head_size is 0); the same as "
          "`freeze_depth: L`", "Alain & Bengio 2016, arXiv:1610.01644", depth=lambda limits: limits.num_layers)
def head_only(stack: LayerStack, moment: Moment) -> frozenset[str]:
    return frozenset()


@strategy("suffix:k", "suffix:2", "the last k layers and what follows them are frozen; the rest trains",
          "Lee et al. 2023, arXiv:2210.11466 (the mirror image, as a control)", reads=reads_layers(1))
def suffix(stack: LayerStack, moment: Moment, k: int) -> frozenset[str]:
    return stack.names("embeddings") | stack.layer_names(range(stack.num_layers - k))


@strategy("train:a-b", "train:3-5", "only layers a to b (counted from 0) and the head train",
          "surgical fine-tuning, Lee et al. 2023, arXiv:2210.11466", reads=reads_layer_range)
def train(stack: LayerStack, moment: Moment, first: int, last: int) -> frozenset[str]:
    return stack.layer_names(range(first, last + 1))


@strategy("freeze:PATTERN", "freeze:*attention*", "parameters whose name or part (embeddings, layer.3, top) matches "
          "the pattern are frozen; *, ? and [ ] as in file names, several patterns with commas", "",
          reads=reads_pattern)
def freeze(stack: LayerStack, moment: Moment, pattern: str) -> frozenset[str]:
    patterns = [one.strip() for one in pattern.split(",")]
    matched = {one: {name for name, part in stack.part_of.items() if fnmatchcase(name, one) or fnmatchcase(part, one)}
               for one in patterns}
    for one, names in matched.items():
        if not names:
            raise ConfigError([Problem("strategy", f"freeze:{pattern}", f"{one} matches no parameter and no part; "
                                       f"names look like {next(iter(stack.part_of))}, parts like layer.0")])
    return frozenset(stack.part_of) - frozenset().union(*matched.values())


@strategy("bitfit", "bitfit", "only the biases train", "Ben Zaken et al. 2022, arXiv:2106.10199")
def bitfit(stack: LayerStack, moment: Moment) -> frozenset[str]:
    from finetune.models.kinds import bias_names

    return _some(bias_names(stack.model), "bitfit", "biases")


@strategy("norm_only", "norm_only", "only the normalisation layers (LayerNorm, RMSNorm) train",
          "Qi et al. 2022, arXiv:2211.08682; Zhao et al. 2023, arXiv:2312.11420")
def norm_only(stack: LayerStack, moment: Moment) -> frozenset[str]:
    from finetune.models.kinds import norm_names

    return _some(norm_names(stack.model), "norm_only", "normalisation layers")


def _some(names: frozenset[str], text: str, what: str) -> frozenset[str]:
    if not names:
        raise ConfigError([Problem("strategy", text, f"this model has no {what}")])
    return names


@strategy("lp_ft:n", "lp_ft:1", "the head alone for n epochs, then everything", "Kumar et al. 2022, arXiv:2202.10054",
          reads=reads_epochs_before_the_last, phase=lambda moment, n: moment.epoch > n)
def lp_ft(stack: LayerStack, moment: Moment, n: int) -> frozenset[str]:
    return above_depth(stack, 0 if moment.epoch > n else stack.num_layers)


@strategy("gradual:n", "gradual:1", "the head alone for n epochs, then one more layer from the top every n epochs, the "
          "embeddings last", "ULMFiT, Howard & Ruder 2018, arXiv:1801.06146", reads=reads_epochs,
          phase=lambda moment, n: (moment.epoch - 1) // n)
def gradual(stack: LayerStack, moment: Moment, n: int) -> frozenset[str]:
    thawed = (moment.epoch - 1) // n
    if thawed > stack.num_layers:
        return above_depth(stack, 0)
    return above_depth(stack, stack.num_layers - thawed or -1)


@strategy("lisa:m/p", "lisa:2/20", "m layers drawn at random train, redrawn every p optimizer steps; embeddings and "
          "top always train", "Pan et al. 2024, arXiv:2403.17919", reads=reads_draw,
          phase=lambda moment, m, p: moment.step // p, period=lambda m, p: p)
def lisa(stack: LayerStack, moment: Moment, m: int, p: int) -> frozenset[str]:
    rng = np.random.default_rng((moment.seed, LISA_STREAM, moment.step // p))
    drawn = rng.choice(stack.num_layers, size=m, replace=False)
    return stack.names("embeddings", "top") | stack.layer_names(drawn)


@strategy("auto:q", "auto:50", "after each epoch, freeze from the bottom while a layer's gradient norm has changed no "
          "more than the q-th percentile of all that still train", "AutoFreeze, Liu et al. 2021, arXiv:2102.01386",
          reads=reads_percentile, phase=lambda moment, q: len(moment.gradient_norms), needs_gradient_norms=True)
def auto(stack: LayerStack, moment: Moment, q: int) -> frozenset[str]:
    order = [part for part in stack.parts if part != "top"]
    settled = settled_parts(moment.gradient_norms, order, q)
    return above_depth(stack, settled - 1 if settled > 1 else -settled)


def settled_parts(history: Sequence[Mapping[str, float]], order: Sequence[str], percentile: float) -> int:
    """How many of `order`, from its beginning, have settled; the last one never does, and what is frozen stays so.

    `history`: {part: gradient norm} per epoch, for the parts that trained in it.
    """
    settled = 0
    for before, now in pairwise(history):
        active = order[settled:]
        changes = [abs(before[part] - now[part]) / (before[part] or 1.0) for part in active]
        limit = np.percentile(changes, percentile)
        quiet = next((index for index, change in enumerate(changes) if change > limit), len(changes))
        settled = min(settled + quiet, len(order) - 1)
    return settled


def _add_lora(stack: LayerStack, seed: int, r: int) -> LayerStack:
    from finetune.freezing.lora import add_lora

    return add_lora(stack, r, seed)


@strategy("lora:r", "lora:8", "low-rank adapters of rank r on every linear layer inside the layers; all else is frozen",
          "Hu et al. 2021, arXiv:2106.09685", reads=reads_rank, adapt=_add_lora)
def lora(stack: LayerStack, moment: Moment, r: int) -> frozenset[str]:
    return frozenset(name for name in stack.part_of if ".lora_" in name)
