"""A classifier of a family, a random split, and their reuse at a depth."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import torch
from families import build

from finetune.data.encoding.batches import Collator
from finetune.data.encoding.encoding import EncodedSplit
from finetune.freezing import FreezePlan
from finetune.freezing.rules import above_depth
from finetune.models import LayerStack
from finetune.models.discovery import discover_stack
from finetune.models.head import Classifier, Head
from finetune.prefix.reuse import PrefixReuse, PrefixSource

ROWS = np.arange(10)


def random_split(rows: int = 10, side: str = "right", seed: int = 0) -> Collator:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 28, rows)
    ids = [rng.integers(5, 60, n).astype(np.int32) for n in lengths]
    encoded = EncodedSplit(ids, None, rng.integers(0, 2, rows), np.arange(rows), lengths, 0.0, f"split {seed} {rows}")
    return Collator(encoded, 0, side)


def classifier_of(family: str, pooling: str = "mean") -> tuple[Classifier, LayerStack]:
    model = build(family)
    model.config.use_cache = False
    stack = discover_stack(model)
    classifier = Classifier(model, Head(stack.width, 8, 2, 0.0, torch.Generator().manual_seed(0)), pooling)
    return classifier, stack.bind(classifier)


def reuse_of(classifier: Classifier, stack: LayerStack, *splits: Collator, depth: int, model: str = "m") -> PrefixReuse:
    source = PrefixSource(model, None, "no", classifier.pooling, stack.num_layers, "p")
    plan = FreezePlan.build(stack, above_depth(stack, depth))
    reuse = PrefixReuse(classifier, stack, source, splits, contextlib.nullcontext)
    classifier.train()
    plan.apply(classifier)
    reuse.enter([plan])
    return reuse


def loss_and_gradients(classifier, logits):
    classifier.zero_grad(set_to_none=True)
    loss = (logits * torch.arange(1, logits.numel() + 1).view_as(logits)).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in classifier.named_parameters() if p.grad is not None}


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def mixed_reuse_of(classifier, stack, split, depth):
    reuse = reuse_of(classifier, stack, split, depth=depth)
    reuse.source, reuse.autocast = dataclasses.replace(reuse.source, mixed_precision="bf16"), bf16
    return reuse
