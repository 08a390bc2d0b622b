"""What `finetune layers` shows: computed here as plain data, then drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from finetune.commands.views.datasets import table
from finetune.config import TrialConfig
from finetune.freezing import Moment, resolve_strategy
from finetune.freezing.plan import FreezePlan
from finetune.freezing.prepare import prepare_backbone
from finetune.freezing.strategies import Strategy
from finetune.models.backbone import load_backbone
from finetune.models.head import Classifier, Head
from finetune.models.layers import LayerStack
from finetune.models.poolers import chosen_pooling

ANY_OUTPUTS = 2  # the head's outputs where no data set says how many


def describe_layers(config: TrialConfig, *, audited: bool = False) -> tuple[dict[str, Any], Classifier]:
    """The parts, their parameters and what trains in each epoch, and the classifier as the first epoch trains it.

    `audited` runs one forward and backward on real rows. Raises TrialFailed("leak", …) when a gradient reaches a
    frozen parameter, ConfigError when the model has no stack of layers or the strategy does not fit it.
    """
    classifier, stack, strategy, audit = _audited(config) if audited else _built(config)
    plans = [strategy.plan(stack, moment) for moment in _moments(config, strategy)]
    plans[0].apply(classifier)
    described = {
        "model": config.model_name_or_path, "class": type(stack.model).__name__, "num_layers": stack.num_layers,
        "width": stack.width, "causal": stack.causal, "strategy": strategy.canonical,
        "freeze_depth": strategy.freeze_depth, **_counts(plans[0]),
        "parts": [{"part": share.part, "parameters": share.total, "trainable": share.trainable,
                   "share": share.total / sum(other.total for other in plans[0].parts)} for share in plans[0].parts],
        "phases": [plan.describe() for plan in plans],
        "audit": audit,
    }
    return described, classifier


def _counts(plan: FreezePlan) -> dict[str, Any]:
    return {"parameters": sum(share.total for share in plan.parts), "trainable_parameters": plan.trainable_parameters,
            "prefix_layers": plan.prefix_layers, "deepest_trainable_layer": plan.deepest_trainable_layer}


def _built(config: TrialConfig) -> tuple[Classifier, LayerStack, Strategy, None]:
    backbone = load_backbone(config)
    strategy = resolve_strategy(config, backbone.num_layers)
    stack = prepare_backbone(backbone, config, strategy)
    head = Head(stack.width, config.head_size, ANY_OUTPUTS, config.head_dropout, torch.Generator())
    classifier = Classifier(stack.model, head, chosen_pooling(config.pooling, stack))
    return classifier, stack.bind(classifier), strategy, None


def _audited(config: TrialConfig) -> tuple[Classifier, LayerStack, Strategy, dict[str, Any]]:
    from finetune.trial import audit, build_classifier, encode_splits, resolve_trial

    resolved = resolve_trial(config)
    classifier, stack = build_classifier(resolved)
    plan = resolved.strategy.plan(stack, _moments(config, resolved.strategy)[0])
    plan.apply(classifier)
    report = audit(classifier, plan, stack, encode_splits(resolved)["train"], resolved.data.task)
    return classifier, stack, resolved.strategy, {"dataset": config.dataset_name, **report.describe()}


def _moments(config: TrialConfig, strategy: Strategy) -> list[Moment]:
    """The beginning of every phase that starts with an epoch. What auto learns and where lisa redraws, no one knows."""
    first: dict[Any, Moment] = {}
    for epoch in range(1, config.num_train_epochs + 1):
        moment = Moment(epoch, 0, config.num_train_epochs, 0, config.seed)
        first.setdefault(strategy.phase(moment), moment)
    return list(first.values())


def show_layers(described: Mapping[str, Any]) -> None:
    """The tables for people: the parts, the phases where there are several, and the audit."""
    total, trains = described["parameters"], described["trainable_parameters"]
    depth = "" if described["freeze_depth"] is None else f" (freeze_depth {described['freeze_depth']})"
    print(f"{described['class']}: {described['num_layers']} layers, width {described['width']}, "
          f"{'decoder' if described['causal'] else 'encoder'}; {described['strategy']}{depth} trains {trains:,} of "
          f"{total:,} parameters ({trains / total:.1%})")
    table("parts", ("part", "parameters", "share", "trains"),
          [(row["part"], f"{row['parameters']:,}", f"{row['share']:.1%}", _trains(row)) for row in described["parts"]])
    if len(described["phases"]) > 1:
        table("phases", ("from epoch", "parts that train", "parameters that train"),
              [(phase["from_epoch"], _span(phase["trainable_parts"]), f"{phase['trainable_parameters']:,}")
               for phase in described["phases"]])
    if described["audit"]:
        _show_audit(described["audit"], described["num_layers"])


def _trains(row: Mapping[str, Any]) -> str:
    if row["trainable"] in (0, row["parameters"]):
        return "yes" if row["trainable"] else "frozen" if row["parameters"] else "-"
    return f"{row['trainable']:,}"


def _span(parts: list[str]) -> str:
    """Neighbouring layers as one range: embeddings, layer.0-3, top, head."""
    layers = [int(part.partition(".")[2]) for part in parts if part.startswith("layer.")]
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    named = [f"layer.{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else "") for run in runs]
    before = [part for part in parts if part == "embeddings"]
    after = [part for part in parts if part in ("top", "head")]
    return ", ".join([*before, *named, *after])


def _show_audit(audit: Mapping[str, Any], num_layers: int) -> None:
    deepest = {-1: "the embeddings", num_layers: "no layer"}.get(audit["deepest_trainable_layer"],
                                                                f"layer {audit['deepest_trainable_layer']}")
    print(f"audit on rows of {audit['dataset']}: no gradient reaches a frozen parameter; backpropagation goes down to "
          f"{deepest}; {audit['trainable_with_gradient']} trainable tensors have a gradient, "
          f"{len(audit['trainable_without_gradient'])} have none")
    for name in audit["trainable_without_gradient"]:
        print(f"no gradient: {name}")
