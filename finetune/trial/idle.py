"""Models of finished trials that wait for the next trial of their kind, with the steps that were recorded for them.

A copy of a backbone, its way to a GPU and the recording of its steps take longer than many a trial trains there. The
next trial of the same kind takes all of it over: pretrained weights, its own head, and moments of zero are written
where the last trial's lay, which is where recorded steps look for them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.targets import target_units
from finetune.models import Backbone, LayerStack
from finetune.models.head import Classifier
from finetune.training.graphs import StepGraphs
from finetune.trial.resolve import ResolvedTrial
from finetune.trial.state import TrialRun

MOST_HEADS = 4  # classifiers without recorded steps: they share the backbone's bytes and hold a head each
NEW_EACH_TIME = frozenset({"seed", "learning_rate", "head_learning_rate"})  # knobs that no recorded step has in it


@dataclass
class Idle:
    """`frozen`: digests of what was frozen, as they were found at the end. `graphs` and what they read besides the
    model, where steps were recorded."""

    backbone: Backbone
    classifier: Classifier
    stack: LayerStack
    frozen: dict[str, str]
    graphs: StepGraphs | None = None
    class_weights: Tensor | None = None


_idle: dict[Hashable, Idle] = {}


def lay_aside(run: TrialRun) -> None:
    """Keep the model of a trial that has just ended well, where the next one can take it over: a head from a stack,
    whose backbone was found as it was loaded (audit.py), or a plain freeze depth whose steps were recorded."""
    trainer, resolved = run.trainer, run.resolved
    graphs = trainer.graphs if _recorded(run) else None
    if trainer.stacked is None and graphs is None:
        return
    run.accelerator.unwrap_model(trainer.classifier, keep_fp32_wrapper=False)
    if trainer.prefix is not None:
        trainer.prefix.remove()
    kept = Idle(resolved.backbone, trainer.classifier, trainer.stack, trainer.frozen)
    if graphs is not None:
        trainer.graphs = None  # it is not the trial's to close any more
        graphs.hand_over(None)
        kept.graphs, kept.class_weights = graphs, trainer.class_weights
    _idle[_kind(resolved, run.accelerator.device, recorded=graphs is not None)] = kept
    heads = [kind for kind, idle in _idle.items() if idle.graphs is None]
    for kind in heads[:-MOST_HEADS]:
        del _idle[kind]


def take(resolved: ResolvedTrial, device: torch.device) -> Idle | None:
    """What waits for a trial like this one, as pretrained but for its head. Recorded steps of another kind go: a
    worker's trials come sorted, and their memory is this trial's."""
    if not _idle:
        return None
    idle = None
    for recorded in (True, False):
        idle = idle or _idle.pop(_kind(resolved, device, recorded=recorded), None)
    for kind in [kind for kind, other in _idle.items() if other.graphs is not None]:
        _idle.pop(kind).graphs.close()
    if idle is None or idle.backbone is not resolved.backbone:  # its files have been read anew
        return None
    resolved.backbone.put_back(idle.classifier.backbone, device)
    return idle


def forget_idle() -> None:
    """Let go of every model that waits."""
    for idle in _idle.values():
        if idle.graphs is not None:
            idle.graphs.close()
    _idle.clear()


def _recorded(run: TrialRun) -> bool:
    graphs, config = run.trainer.graphs, run.resolved.config
    return (graphs is not None and graphs.refused is None and graphs.replays > 0 and not run.state.resumes
            and run.resolved.strategy.freeze_depth is not None and not config.reinit_layers)


def _kind(resolved: ResolvedTrial, device: torch.device, *, recorded: bool) -> Hashable:
    """Equal for trials that differ in weights and rates alone: everything else may be part of a recorded step."""
    config, data = resolved.config, resolved.data
    common = (recorded, resolved.backbone.digest, resolved.strategy.canonical, config.pooling, config.head_size,
              config.reinit_layers, config.gradient_checkpointing, config.frozen_dropout, data.task, data.num_outputs,
              target_units(data), device)
    if not recorded:
        return common
    knobs = config.model_dump(mode="json", exclude=set(NEW_EACH_TIME))
    return *common, repr(sorted(knobs.items())), data.fingerprint if config.class_weights != "none" else None
