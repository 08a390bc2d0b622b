"""How a TrialRecord is filled in: configuration, freeze plan, costs, data, environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.data.recorded import recorded
from finetune.freezing import FreezePlan
from finetune.results import TrialRecord
from finetune.training.evaluation import baseline, split_metrics
from finetune.training.memory import peak_memory_bytes
from finetune.training.tagging import flat_labels, split_counts
from finetune.trial.environment import environment
from finetune.trial.memo import Memo
from finetune.trial.resolve import ResolvedTrial
from finetune.trial.state import TrialRun

_baselines_memo = Memo(4)


def metrics_of(run: TrialRun, logits: np.ndarray, split: str) -> dict[str, float]:
    """The task's metrics of logits (rows, outputs) on a split."""
    return split_metrics(run.resolved.data, logits, split)


def truth(run: TrialRun, split: str, logits: np.ndarray) -> dict[str, np.ndarray]:
    """What predictions.npz holds beside a split's logits."""
    rows = run.resolved.data.splits[split]
    if rows.tagged:
        labels, offsets = flat_labels(rows.labels)
        return {f"{split}_labels": labels, f"{split}_ids": rows.ids, f"{split}_offsets": offsets,
                f"{split}_counts": split_counts(run.resolved.data, logits, split)}
    return {f"{split}_labels": rows.labels, f"{split}_ids": rows.ids}


def trained_parts(plans: list[FreezePlan]) -> dict[str, Any]:
    """What trained in one epoch; where it changed within the epoch, the parts of all plans and the largest count."""
    parts = {part for plan in plans for part in plan.trainable_parts}
    return {"trainable_parameters": max(plan.trainable_parameters for plan in plans),
            "trainable_parts": [share.part for share in plans[0].parts if share.part in parts]}


def frozen_and_trained(run: TrialRun) -> dict[str, Any]:
    """The record's freeze_plan and parameters; trainable is the most that trained in any phase."""
    trainer, audit = run.trainer, run.state.audit
    phases = [plan.describe() for plan in trainer.phases] if trainer else []
    if not phases or audit is None:
        return {"freeze_plan": [], "parameters": {}}
    trainable = max(phase["trainable_parameters"] for phase in phases)
    return {"freeze_plan": phases, "audit": audit.describe(),
            "deepest_trainable_layer": min(report.deepest_trainable_layer for report in [audit, *trainer.reached]),
            "parameters": {"total": phases[0]["total_parameters"], "trainable": trainable}}


def peak_memory(run: TrialRun) -> int:
    """The most of all epochs and of what came after the last."""
    epochs = [entry["peak_memory_bytes"] for entry in run.state.history]
    return max([peak_memory_bytes(run.accelerator.device), *epochs])


def fill_record(run: TrialRun, state: str) -> TrialRecord:
    """The record of a trial that is over, without what only a complete one has. state: complete | failed | pruned."""
    resolved, data, trainer = run.resolved, run.resolved.data, run.trainer
    encoded = {name: split.encoded for name, split in run.splits.items()}
    return TrialRecord(
        trial_id=resolved.trial_id, setting_id=resolved.setting_id, state=state, config=_recorded_config(resolved),
        effective=resolved.effective, task=data.task, metric=resolved.metric,
        num_layers=resolved.backbone.num_layers, **frozen_and_trained(run),
        prefix=_prefix(run),
        baseline=_baselines_memo.get((data,), None, lambda: baseline(data)), history=run.state.history,
        cost=_cost(run), data=recorded(data, encoded, resolved.max_length),
        environment=environment(run.accelerator), resumes=run.state.resumes,
        micro_batch=trainer.micro_batch if trainer else None,
    )


def _prefix(run: TrialRun) -> dict[str, Any]:
    """`head_slots`: of the stack in which the head trained, where it did."""
    if run.trainer is None:
        return {"used": False, "saved_seconds": 0.0}
    stacked = run.trainer.stacked
    return run.trainer.prefix.describe() | ({"head_slots": stacked.slots} if stacked is not None else {})


def _cost(run: TrialRun) -> dict[str, float | None]:
    cost, history = run.state.cost, run.state.history
    if run.trainer is not None:
        cost["prefix_seconds"] = run.trainer.prefix.prefix_seconds(*run.splits.values())
        cost["prefix_train_seconds"] = run.trainer.prefix.prefix_seconds(run.splits["train"])
    seen = len(run.resolved.data.splits["train"]) * len(history)
    return cost | {"peak_memory_bytes": peak_memory(run),
                   "examples_per_second": seen / cost["train_seconds"] if history else None}


def _recorded_config(resolved: ResolvedTrial) -> dict[str, Any]:
    return resolved.config.model_dump() | {"model_revision": resolved.backbone.revision}
