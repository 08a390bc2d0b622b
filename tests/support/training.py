"""The real training loop around any model, on a few random rows, watched at every step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from finetune.config import TrialConfig
from finetune.data.encoding.batches import Collator
from finetune.data.encoding.encoding import EncodedSplit
from finetune.freezing import resolve_strategy
from finetune.freezing.prepare import checkpoint_layers
from finetune.models import LayerStack, chosen_pooling, strip_unused_pooler
from finetune.models.discovery import discover_stack
from finetune.models.head import Classifier, Head
from finetune.training.loop import Trainer


def rows(count: int, vocabulary: int, seed: int = 0) -> Collator:
    """Random token ids with random labels, 3 to 9 tokens per row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 10, count)
    ids = [rng.integers(5, vocabulary, length).astype(np.int32) for length in lengths]
    labels = rng.integers(0, 2, count)
    return Collator(EncodedSplit(ids, None, labels, np.arange(count), lengths, 0.0, "random"), pad_token_id=1)


def trainer_for(model: nn.Module, stack: LayerStack | None = None, *, count: int = 8, **knobs) -> Trainer:
    """A Trainer on `model` itself (not a copy); `stack`: of a model that it is a copy of."""
    config = TrialConfig.from_mapping({
        "num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "head_learning_rate": 1e-2,
        "weight_decay": 0.5, "warmup_ratio": 0.0, "prefix_cache": False, **knobs})
    strip_unused_pooler(model, config.pooling or "mean")
    stack = discover_stack(model) if stack is None else stack.rebind(model)
    strategy = resolve_strategy(config, stack.num_layers)
    stack = strategy.adapt(stack, config.seed)
    head = Head(stack.width, 0, 2, config.head_dropout, torch.Generator().manual_seed(config.seed))
    classifier = Classifier(stack.model, head, chosen_pooling(config.pooling, stack))
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 60)
    model.config.use_cache = False  # as load_backbone has it
    if config.gradient_checkpointing:
        checkpoint_layers(model)
    if AcceleratorState._shared_state:  # Accelerate would go on with the precision of another test's trial
        AcceleratorState._reset_state(reset_partial_state=True)  # and with its device
    accelerator = Accelerator(cpu=True, mixed_precision=config.mixed_precision)
    return Trainer(config, accelerator, classifier, stack.bind(classifier), strategy,
                   rows(count, vocabulary), "classification")


@dataclass
class Seen:
    """What a watched training showed. Names are the Classifier's."""

    trained: dict[int, set[str]] = field(default_factory=dict)  # epoch -> parameters that took part in some step
    with_gradient: dict[int, set[str]] = field(default_factory=dict)  # epoch -> parameters that had a gradient
    moved: dict[int, set[str]] = field(default_factory=dict)  # epoch -> parameters that changed
    steps: list[set[str]] = field(default_factory=list)  # per optimizer step, what it trained
    states: list[set[str]] = field(default_factory=list)  # per optimizer step, whose optimizer state was there
    rates: list[dict[str, float]] = field(default_factory=list)  # per optimizer step, the learning rates


def train(trainer: Trainer) -> Seen:
    """Every epoch of a trial through `train_epoch`, watching the optimizer."""
    seen, classifier = Seen(), trainer.classifier
    name_of = {parameter: name for name, parameter in classifier.named_parameters()}
    for epoch in range(1, trainer.config.num_train_epochs + 1):
        before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
        seen.trained[epoch], seen.with_gradient[epoch] = set(), set()

        def look(optimizer, args, kwargs, epoch=epoch):
            groups = {name_of[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
            seen.trained[epoch] |= groups.keys()
            seen.with_gradient[epoch] |= {name for p, name in name_of.items() if p.grad is not None}
            seen.steps.append(set(groups))
            seen.states.append({name_of[p] for p in optimizer.state if optimizer.state[p]})
            seen.rates.append(groups)

        hook = register_optimizer_step_pre_hook(look)
        try:
            trainer.train_epoch(epoch, lambda *_: None)
        finally:
            hook.remove()
        trainer.end_epoch()
        seen.moved[epoch] = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    trainer.check_frozen()
    return seen
