"""Which trials train as a stack of heads, with which others, and what was found of those that are still to come.

A worker that is asked for one head trains with it the next ones that the sweep has planned. Their trials find it done:
each is still a trial of its own, with its evaluation, best epoch, record and kept model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune.config import TrialConfig
from finetune.data.targets import target_units
from finetune.data.task_data import TAGGED
from finetune.randomness import stream_seed
from finetune.training import signals
from finetune.training.graphs import worth_recording
from finetune.training.head_stack import Common, HeadStack, Member, TrainedHead, common_width
from finetune.training.memory import is_out_of_memory
from finetune.training.precision import decided
from finetune.training.random_state import generator_state, same_generator_afterwards
from finetune.training.recorders import CudaRecorder, EagerTwin
from finetune.trial.build import fresh_head
from finetune.trial.state import TrialRun

STACKED_ON = {"cuda"}  # kinds of device; on a CPU a stack gains nothing (measured)
KEPT_BYTES = 2 * 2**30  # of heads whose trials have not come yet; the oldest go first
OWN = ("seed", "learning_rate", "head_learning_rate", "weight_decay", "head_dropout", "head_size")  # of each head

_planned: dict[Hashable, dict[Hashable, TrialConfig]] = {}  # by group, then by key, in the order of the sweep
_trained: OrderedDict[Hashable, TrainedHead] = OrderedDict()


def configure(knobs: Sequence[Mapping[str, Any]]) -> None:
    """Tell this process which heads its sweep has planned. It decides what trains together, never what comes of it."""
    _planned.clear()
    for each in knobs:
        config = decided(TrialConfig.from_mapping(dict(each)))
        key = _key(config)
        _planned.setdefault(_group_of(key), {})[key] = config


def head_from_stack(run: TrialRun) -> TrainedHead | None:
    """The trial's head, trained; None where it trains like any other trial."""
    config = run.resolved.config
    if run.trainer.step or not _can_stack(run):  # a checkpoint says how it began
        return None
    common = _common(run)
    if common.slots < 2:
        return None
    key = _key(config)
    if key not in _trained:
        try:
            _train(run, common, key)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            run.observer.said("no memory is left for a stack of heads; this one trains alone")
            torch.cuda.empty_cache()
            return None
    _planned.get(_group_of(key), {}).pop(key, None)  # no other stack need train it again
    return _trained.pop(key)


def _can_stack(run: TrialRun) -> bool:
    config, trainer, accelerator = run.resolved.config, run.trainer, run.accelerator
    return (accelerator.device.type in STACKED_ON and accelerator.num_processes == 1 and accelerator.scaler is None
            and run.resolved.data.task != TAGGED and not config.checkpointing_steps
            and config.gradient_accumulation_steps == 1 and not config.auto_micro_batch
            and run.resolved.strategy.freeze_depth == run.resolved.backbone.num_layers
            and all(name.startswith("head.") for name in trainer.plan.trainable)
            and trainer.prefix.serves_pooled(trainer.train))


def _common(run: TrialRun) -> Common:
    config, data = run.resolved.config, run.resolved.data
    return Common(data.task, len(run.trainer.train.encoded), run.resolved.backbone.width,
                  common_width(config.head_size), data.num_outputs, config.per_device_train_batch_size,
                  config.num_train_epochs, config, target_units(data))


def _train(run: TrialRun, common: Common, key: tuple[Hashable, str]) -> None:
    """Train the head of this trial and of as many planned ones as there are slots; they are kept until asked for."""
    trainer = run.trainer
    together = {key: run.resolved.config} | _planned_beside(key, common.slots - 1)
    labels = trainer.train.labels(np.arange(common.rows)).to(run.accelerator.device)
    stack = HeadStack(common, [_member(run, config) for config in together.values()],
                      lambda rows: trainer.prefix.pooled(trainer.train, rows), labels, trainer.train.encoded.lengths,
                      run.accelerator.autocast, trainer.class_weights, _recorder(run, common))
    _trained.update(zip(together, stack.train(signals.check), strict=True))
    _trained.move_to_end(key)
    while len(_trained) > 1 and sum(head.nbytes for head in _trained.values()) > KEPT_BYTES:
        _trained.popitem(last=False)


def _recorder(run: TrialRun, common: Common) -> EagerTwin | CudaRecorder:
    device, asked = run.accelerator.device, run.resolved.config.cuda_graphs
    recorded = device.type == "cuda" and worth_recording(asked, common.total_steps)
    return CudaRecorder(device) if recorded else EagerTwin()


def _planned_beside(key: tuple[Hashable, str], most: int) -> dict[Hashable, TrialConfig]:
    """Heads that can share the stack of `key`: those planned after it, then those before it, if not trained yet."""
    alike = _planned.get(_group_of(key), {})
    keys = list(alike)
    start = keys.index(key) if key in alike else 0
    others = [other for other in keys[start:] + keys[:start] if other != key and other not in _trained]
    return {other: alike[other] for other in others[:most]}


def _member(run: TrialRun, config: TrialConfig) -> Member:
    """As `own_randomness` and `fresh_head` begin a trial: on a CPU the head's own construction draws, too."""
    device = run.accelerator.device
    with same_generator_afterwards(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "dropout"))
        head = fresh_head(run.resolved, config)
        stream = generator_state(device)
    return Member(config.seed, config.head_learning_rate, config.weight_decay, config.head_dropout, head, stream)


def _group(config: TrialConfig) -> Hashable:
    """Equal for heads that can share a stack."""
    rows_of = config.seed if config.train_size is not None and config.subset_seed is None else None
    shared = config.model_dump(mode="json", exclude=set(OWN))
    return repr(sorted(shared.items())), common_width(config.head_size), rows_of


def _group_of(key: tuple[Hashable, str]) -> Hashable:
    return key[0]


def _key(config: TrialConfig) -> tuple[Hashable, str]:
    own = config.model_dump(mode="json", include=set(OWN) - {"learning_rate"})
    return _group(config), repr(sorted(own.items()))
