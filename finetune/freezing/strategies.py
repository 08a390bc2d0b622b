"""Which parameters train when: what a training loop needs of a strategy.

    strategy = resolve_strategy(config, backbone.num_layers)
    stack = prepare_backbone(backbone, config, strategy)      # stack.model is the fresh, adapted backbone
    classifier = Classifier(stack.model, head, chosen_pooling(config.pooling, stack))
    stack = stack.bind(classifier)
    moment = Moment(epoch=1, step=0, total_epochs=…, total_steps=…, seed=config.seed)
    phase, plan = strategy.phase(moment), strategy.plan(stack, moment)
    plan.apply(classifier)                                    # again after every classifier.train()
    …
    if (now := strategy.phase(moment)) != phase:              # cheap enough to ask before every step;
        phase, plan = now, strategy.plan(stack, moment)       # only then can the plan differ (plan.trainable says)

A plan is a function of the stack and the moment alone, so that every process makes the same one and a resumed trial
makes it again. What a strategy has to learn from training is in the moment: where `strategy.needs_gradient_norms`,
`gradient_norms` holds one mapping {part: norm} per finished epoch (the sum of `part_gradient_norms` over its steps).

The strategies themselves are in rules.py, how they are written in language.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Problem
from finetune.freezing.language import FORMS, Form, Limits, Moment, parse, spell
from finetune.freezing.plan import FreezePlan

import_module("finetune.freezing.rules")  # registers every strategy

if TYPE_CHECKING:
    from collections.abc import Hashable

    from finetune.models.layers import LayerStack

__all__ = ["Moment", "Strategy", "resolve_strategy"]


@dataclass(frozen=True)
class Strategy:
    """A form of the language with its arguments, ready to make plans."""

    form: Form
    arguments: tuple
    canonical: str  # one spelling per meaning: prefix:0 is full, prefix:L is head_only
    freeze_depth: int | None  # where it is the same as one
    frozen_dropout: bool

    @property
    def needs_gradient_norms(self) -> bool:
        return self.form.needs_gradient_norms

    def phase(self, moment: Moment) -> Hashable:
        """Equal phases have equal plans."""
        return self.form.phase(moment, *self.arguments) if self.form.phase else ()

    @property
    def has_phases(self) -> bool:
        """Whether what trains may change while it trains."""
        return self.form.phase is not None

    @property
    def period(self) -> int | None:
        """Optimizer steps between two plans, where the strategy counts in steps."""
        return self.form.period(*self.arguments) if self.form.period else None

    def plan(self, stack: LayerStack, moment: Moment) -> FreezePlan:
        """What trains from this moment on. Raises ConfigError when the rule finds nothing in this model."""
        trainable = self.form.rule(stack, moment, *self.arguments)
        return FreezePlan.build(stack, trainable, from_epoch=moment.epoch, from_step=moment.step,
                                frozen_dropout=self.frozen_dropout)

    def adapt(self, stack: LayerStack, seed: int) -> LayerStack:
        """Change a fresh model where the strategy works on a changed one (LoRA); returns the stack to use."""
        return self.form.adapt(stack, seed, *self.arguments) if self.form.adapt else stack


def resolve_strategy(config: TrialConfig, num_layers: int) -> Strategy:
    """The strategy that `strategy` or `freeze_depth` names; neither means full.

    Raises ConfigError naming the model's number of layers when a depth is out of range, and showing examples when a
    strategy cannot be read.
    """
    limits = Limits(num_layers, config.num_train_epochs)
    form, arguments = parse(config.strategy or _spelled_depth(config.freeze_depth or 0, limits), limits)
    depth = form.depth(limits, *arguments) if form.depth else None
    canonical = spell(form, arguments) if depth is None else _canonical_depth(depth, limits)
    return Strategy(form, arguments, canonical, depth, config.frozen_dropout)


def _spelled_depth(depth: int, limits: Limits) -> str:
    if not -1 <= depth <= limits.num_layers:
        raise ConfigError([Problem("freeze_depth", depth, f"allowed: -1 to {limits.num_layers}, the model has "
                                                          f"{limits.num_layers} layers")])
    return "embeddings" if depth == -1 else f"prefix:{depth}"


def _canonical_depth(depth: int, limits: Limits) -> str:
    return {0: "full", -1: "embeddings", limits.num_layers: "head_only"}.get(depth, f"prefix:{depth}")


def strategy_table() -> str:
    """The docs' table in Markdown, from the registry."""
    rows = ["| strategy | what trains | source |", "|---|---|---|"]
    rows += [f"| `{form.syntax}` (`{form.example}`) | {form.doc} | {form.source} |" for form in FORMS.values()]
    return "\n".join(rows) + "\n"
