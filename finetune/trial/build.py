"""What a trial trains, built from its parts: classifier, encoded rows, and the proof that what is frozen stays out."""

from __future__ import annotations

import numpy as np
import torch

from finetune.config import TrialConfig
from finetune.data import EncodedSplit, Split, encode_split, padding_id
from finetune.data.encoding.batches import Collator, to_device
from finetune.data.targets import balanced_weights, target_units
from finetune.freezing import AuditReport, FreezePlan, audit_loss
from finetune.freezing.prepare import checkpoint_layers, prepare_backbone
from finetune.models import LayerStack
from finetune.models.head import Classifier, Head
from finetune.models.poolers import pooling_of
from finetune.models.tokenizers import embedding_count, require_known
from finetune.prefix.reuse import PrefixReuse
from finetune.randomness import stream_seed
from finetune.training.device import bucket_tokens
from finetune.training.loop import Trainer, per_example_loss
from finetune.trial.idle import take
from finetune.trial.memo import Memo
from finetune.trial.resolve import ResolvedTrial, resolve_trial
from finetune.trial.state import TrialRun

AUDIT_ROWS = 4
# With what trains, this decides where a backward pass goes. Not the seed, not the rates.
AUDITED_BY = ("strategy", "freeze_depth", "pooling", "head_size", "reinit_layers", "gradient_checkpointing",
              "mixed_precision", "max_length", "attn_implementation")
_encodings_memo, _audits_memo = Memo(12), Memo(32)


def prepare_trial(config: TrialConfig) -> None:
    """Load what a trial of this model on these rows reads: a process keeps weights, rows and token ids."""
    encode_splits(resolve_trial(config))


def build_trainer(run: TrialRun) -> Trainer:
    """The model and its training, before the first step; on the accelerator's device."""
    resolved, config, accelerator = run.resolved, run.resolved.config, run.accelerator
    idle = take(resolved, accelerator.device)
    classifier, stack = (idle.classifier, idle.stack) if idle else build_classifier(resolved)
    if idle:
        classifier.head.load_state_dict(fresh_head(resolved).state_dict())
        classifier.head.dropout.p = config.head_dropout
    else:
        resolved.backbone.move(classifier, accelerator.device)
    prefix = PrefixReuse(classifier, stack, resolved.prefix, list(run.splits.values()), accelerator.autocast,
                         enabled=config.prefix_cache, recomputes=config.gradient_checkpointing,
                         progress=run.progress.filling)
    weights = idle.class_weights if idle and idle.graphs else _class_weights(resolved, accelerator.device)
    trainer = Trainer(config, accelerator, classifier, stack, resolved.strategy, run.splits["train"],
                      resolved.data.task, weights, prefix, said=run.observer.said)
    if idle:
        trainer.frozen_before = idle.frozen
    if idle and idle.graphs:
        idle.graphs.hand_over(trainer)
        trainer.graphs = idle.graphs
    return trainer


def _class_weights(resolved: ResolvedTrial, device: torch.device) -> torch.Tensor | None:
    if resolved.config.class_weights == "none":
        return None
    return torch.tensor(balanced_weights(resolved.data), dtype=torch.float32, device=device)


def fresh_head(resolved: ResolvedTrial, config: TrialConfig | None = None) -> Head:
    """The head with which the trial begins; with `config` that of another trial on the same rows and backbone."""
    config = config or resolved.config
    generator = torch.Generator().manual_seed(stream_seed(config.seed, "head"))
    return Head(resolved.backbone.width, config.head_size, resolved.data.num_outputs, config.head_dropout, generator,
                target_units(resolved.data))


def build_classifier(resolved: ResolvedTrial) -> tuple[Classifier, LayerStack]:
    """A fresh backbone, changed as the configuration asks, with its head; and its parts, bound to it."""
    config = resolved.config
    stack = prepare_backbone(resolved.backbone, config, resolved.strategy)
    if config.gradient_checkpointing:
        checkpoint_layers(stack.model)
    classifier = Classifier(stack.model, fresh_head(resolved), pooling_of(config.pooling, stack, resolved.data.task))
    if not config.gradient_checkpointing:  # there layers run again, when nobody says which token is read
        classifier.read_one_token(resolved.backbone)
    return classifier, stack.bind(classifier)


def encode_splits(resolved: ResolvedTrial, device_type: str = "cpu") -> dict[str, Collator]:
    """Token ids of every split, padded on a GPU to lengths of which few occur."""
    tokenizer, backbone = resolved.backbone.tokenizer, resolved.backbone

    def encoded(split: Split) -> EncodedSplit:
        found = _encodings_memo.get((split, tokenizer), resolved.max_length,
                                    lambda: encode_split(split, tokenizer, resolved.max_length))
        require_known(found.largest_id, tokenizer, embedding_count(backbone.pristine), backbone.name)
        return found

    side = backbone.padding_side
    return {name: Collator(encoded(split), padding_id(tokenizer), side, bucket_tokens(device_type, side),
                           backbone.max_tokens)
            for name, split in resolved.data.splits.items()}


def audit(classifier: Classifier, plan: FreezePlan, stack: LayerStack, train: Collator, task: str) -> AuditReport:
    """One forward and backward on real rows. Raises TrialFailed("leak", …) when a gradient reaches a frozen parameter.

    In eval mode: nothing random is drawn, so that training starts from the same state with and without it.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    rows = np.arange(min(AUDIT_ROWS, len(train.encoded)))
    logits = classifier(**to_device(train(rows), device))
    loss = per_example_loss(task, logits, train.labels(rows).to(device)).mean()
    return audit_loss(loss, classifier, plan, stack)


def audited(run: TrialRun) -> AuditReport:
    """Once per process for what decides where gradients go; the first training step of every trial is audited too."""
    resolved, trainer, data = run.resolved, run.trainer, run.resolved.data
    deciding = (resolved.backbone.digest, trainer.plan.trainable, data.task, data.num_outputs,
                *(resolved.config.get(name) for name in AUDITED_BY))
    # By the model's digest: keeping the backbone itself would hold every model of a sweep over many.
    return _audits_memo.get((), deciding, lambda: audit(
        trainer.classifier, trainer.plan, trainer.stack, run.splits["train"], data.task))
