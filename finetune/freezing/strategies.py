"""The strategies' language: one flat W&B parameter says which parameters train in which epoch.

What a training loop does with it, and nothing else is needed:

    strategy = resolve_strategy(config, backbone.num_layers)
    moment = Moment(epoch=1, step=0, total_epochs=…, total_steps=…, seed=config.seed)
    phase = strategy.phase(moment)                 # a small hashable value, cheap enough to ask before every step
    plan = strategy.plan(stack, moment)            # `stack` is bound to the classifier
    …
    if (now := strategy.phase(moment)) != phase:   # only then can the plan differ
        phase, plan = now, strategy.plan(stack, moment)
        plan.apply(classifier)                     # fresh optimizer state for plan.trainable - old.trainable

A plan is a function of the stack and the moment alone, so that every process makes the same one and a resumed trial
makes it again. What a strategy has to learn from training is in the moment: `gradient_norms`, one mapping
{part: norm} per finished epoch, is filled where `strategy.needs_gradient_norms`.

Adding a strategy: one function that returns the names to train, `@strategy(...)` above it, one test.
The head always trains and needs no mention.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Problem
from finetune.freezing.plan import FreezePlan

if TYPE_CHECKING:
    from finetune.models.layers import LayerStack


@dataclass(frozen=True)
class Moment:
    """Where training stands. `step` optimizer steps are done; `epoch` (from 1) is under way or about to begin."""

    epoch: int
    step: int
    total_epochs: int
    total_steps: int
    seed: int
    gradient_norms: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Strategy:
    """A rule, ready to make plans."""

    canonical: str  # one spelling per meaning: prefix:0 is full, prefix:L is head_only
    freeze_depth: int | None  # where it is the same as one
    rule: Callable[[LayerStack, Moment], frozenset[str]]
    phase_of: Callable[[Moment], Hashable]
    frozen_dropout: bool = False
    needs_gradient_norms: bool = False

    def phase(self, moment: Moment) -> Hashable:
        """Equal phases have equal plans."""
        return self.phase_of(moment)

    def plan(self, stack: LayerStack, moment: Moment) -> FreezePlan:
        return FreezePlan.build(stack, self.rule(stack, moment), from_epoch=moment.epoch,
                                frozen_dropout=self.frozen_dropout)


def depth_names(stack: LayerStack, depth: int) -> frozenset[str]:
    """What trains at a freeze_depth."""
    if depth == stack.num_layers:
        return frozenset()
    above = stack.layer_names(range(max(depth, 0), stack.num_layers)) | stack.names("top")
    return above | stack.names("embeddings") if depth == 0 else above


def resolve_strategy(config: TrialConfig, num_layers: int) -> Strategy:
    """The strategy that `strategy` or `freeze_depth` names; neither means full.

    Raises ConfigError naming the model's number of layers when a depth is out of range, and showing examples when a
    strategy cannot be read.
    """
    depth = _depth(config, num_layers)
    canonical = {0: "full", -1: "embeddings", num_layers: "head_only"}.get(depth, f"prefix:{depth}")
    return Strategy(canonical, depth, lambda stack, moment: depth_names(stack, depth), lambda moment: (),
                    config.frozen_dropout)


def _depth(config: TrialConfig, num_layers: int) -> int:
    text = config.strategy
    if text is None:
        depth, field, value = config.freeze_depth or 0, "freeze_depth", config.freeze_depth
    else:
        named: dict[str, Any] = {"full": 0, "embeddings": -1, "head_only": num_layers}
        head, _, argument = text.partition(":")
        if head == "prefix" and argument.isdigit():
            named[text] = int(argument)
        if text not in named:
            raise ConfigError([Problem("strategy", text, "allowed: full, prefix:k, head_only, embeddings")])
        depth, field, value = named[text], "strategy", text
    if not -1 <= depth <= num_layers:
        raise ConfigError([Problem(field, value, f"allowed: -1 to {num_layers}, the model has {num_layers} layers")])
    return depth
