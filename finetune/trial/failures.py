"""A trial that ran and failed: its record, and what is said of it."""

from __future__ import annotations

from finetune.errors import TrialFailed
from finetune.models import forget_backbones
from finetune.training.memory import asked_for, is_out_of_memory
from finetune.trial.record import fill_record, peak_memory
from finetune.trial.state import TrialOutcome, TrialRun

REPEATS_ITSELF = ("non-finite", "leak")  # failures that a checkpoint would only lead to again


def failed_outcome(run: TrialRun, error: Exception) -> TrialOutcome:
    """The outcome with state "failed". Raises `error` itself where it is no failure of the trial."""
    if isinstance(error, TrialFailed):
        if error.kind == "leak":
            forget_backbones()
        return _failed(run, error.kind, str(error))
    if not is_out_of_memory(error):
        raise error
    return _failed(run, "out-of-memory", _out_of_memory(run, error))


def _failed(run: TrialRun, kind: str, message: str) -> TrialOutcome:
    run.background.close()
    if kind in REPEATS_ITSELF and run.checkpoints is not None and run.accelerator.is_main_process:
        run.checkpoints.remove()
    record = fill_record(run, "failed").model_copy(update={"error": {"kind": kind, "message": message}})
    return TrialOutcome(record, {})


def _out_of_memory(run: TrialRun, error: BaseException) -> str:
    """With the figure and the knobs to change."""
    config, device = run.resolved.config, run.accelerator.device
    training = run.trainer is not None and run.trainer.classifier.training
    knob = "per_device_train_batch_size" if training else "per_device_eval_batch_size"
    advice = (f"use a smaller {knob} (it is {config.get(knob)})" + (
        " with more gradient_accumulation_steps, or gradient_checkpointing" if training else ""))
    if training and not config.auto_micro_batch:
        advice += ", or auto_micro_batch: true"
    return (f"out of memory on {device}: {asked_for(error)} could not be had while {peak_memory(run):,} bytes "
            f"were in use; {advice}")
