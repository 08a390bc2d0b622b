"""One trial, from configuration to record: the method, readable top to bottom."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import TrialConfig
from finetune.errors import Interrupted, TrialFailed
from finetune.training import signals
from finetune.training.evaluation import class_details
from finetune.training.memory import peak_memory_bytes, reset_peak_memory
from finetune.training.precision import decided
from finetune.training.processes import is_main_process
from finetune.training.random_state import own_randomness
from finetune.training.stopwatch import Stopwatch
from finetune.trial.attempts import attempts
from finetune.trial.build import audited, build_trainer, encode_splits
from finetune.trial.checkpoints import keep_for_later, resume, save_checkpoint, save_unless_over
from finetune.trial.environment import make_accelerator
from finetune.trial.events import Observer
from finetune.trial.failures import failed_outcome
from finetune.trial.head_stacks import head_from_stack
from finetune.trial.idle import lay_aside
from finetune.trial.record import fill_record, frozen_and_trained, metrics_of, trained_parts, truth
from finetune.trial.resolve import resolve_trial
from finetune.trial.save_model import with_weights
from finetune.trial.state import TrialOutcome, TrialRun


def run_trial(config: TrialConfig, *, observer: Observer | None = None, output_dir: Path | str | None = None
              ) -> TrialOutcome:
    """Train, keep the best epoch on validation, test it once; goes on from a checkpoint where there is one.

    Checkpoints and what `save_model` keeps lie in `output_dir`, by default config.output_dir; none are written where
    neither is given. RecordStore.publish removes checkpoints. A trial that ran and failed (non-finite, leak, out of
    memory) has a record with state "failed"; a wrong configuration, wrong data or a wrong environment raises.
    """
    observer = observer if observer is not None and is_main_process() else Observer()
    outcome = attempts(decided(config), observer, partial(_attempt, observer, output_dir or config.output_dir))
    observer.finished(outcome.record, outcome.predictions)
    return outcome


def _attempt(observer: Observer, output_dir: Path | str | None, config: TrialConfig, asked: str | None) -> TrialOutcome:
    started = time.monotonic()
    accelerator = make_accelerator(config)
    reset_peak_memory(accelerator.device)
    resolved = replace(resolve_trial(config, accelerator.num_processes), asked_precision=asked)
    run = TrialRun(resolved, accelerator, observer, output_dir)
    with own_randomness(config.seed):
        try:
            outcome = _train_and_test(run, started)
            lay_aside(run)
            return outcome
        except (TrialFailed, RuntimeError, MemoryError) as error:
            return failed_outcome(run, error)
        finally:
            run.release()


def _train_and_test(run: TrialRun, started: float) -> TrialOutcome:
    """The method of the experiment."""
    run.splits = encode_splits(run.resolved, run.accelerator.device.type)  # data
    run.trainer = build_trainer(run)  # a fresh backbone with a head on top
    resumed = resume(run)
    if not resumed:
        _freeze_and_audit(run)
    run.state.cost["setup_seconds"] += time.monotonic() - started
    run.observer.started(run.resolved.describe() | frozen_and_trained(run))
    if resumed:
        run.observer.resumed(run.state.history, run.trainer.step)
    with signals.deferred():
        ended = _train(run)
    run.trainer.check_frozen()  # what was frozen is what was loaded, bit for bit
    try:
        return _test(run, ended)
    except Interrupted:
        if run.left_out:
            save_checkpoint(run)
        raise
    finally:
        run.background.wait()


def _freeze_and_audit(run: TrialRun) -> None:
    """Freeze as the strategy says, prove that no gradient reaches what is frozen, and compute that part once."""
    run.trainer.enter(epoch=1)
    run.state.audit = audited(run)
    run.trainer.prefix.fill_ahead(*run.splits.values())


def _train(run: TrialRun) -> str:
    """Every epoch that is left, the best one kept; returns whether the trial is complete or was pruned."""
    trainer, state = run.trainer, run.state
    try:
        trainer.stacked = head_from_stack(run)
        for epoch in range(len(state.history) + 1, run.resolved.config.num_train_epochs + 1):
            entry, logits = _epoch(run, epoch)
            trainer.end_epoch()
            if state.add(entry, logits, run.resolved.metric):
                trainer.best = trainer.weights()
            verdict = run.progress.verdict(epoch, entry)
            save_unless_over(run, verdict != "continue" or epoch == run.resolved.config.num_train_epochs)
            if verdict != "continue":
                return "pruned"
            trainer.heed_signals()
        return "complete"
    except Interrupted as interruption:
        return keep_for_later(run, interruption)


def _epoch(run: TrialRun, epoch: int) -> tuple[dict[str, Any], np.ndarray]:
    """Train one epoch and validate it: its line of the history, and the logits on validation (rows, outputs)."""
    trainer, splits, state, evaluation = run.trainer, run.splits, run.state, Stopwatch()
    if trainer.windows_done < trainer.windows_per_epoch:  # not where only the evaluation was cut short
        trainer.enter(epoch)
    trainer.prefix.fill(splits["train"], splits["validation"])
    reset_peak_memory(run.accelerator.device)
    with state.clock:
        train = trainer.train_epoch(epoch, lambda: _stepped(run))
    with evaluation:
        logits = trainer.logits(splits["validation"])
        metrics = metrics_of(run, logits, "validation")
    timed = state.clock.reset()
    trained = timed if trainer.stacked is None else trainer.stacked.epoch_seconds
    state.cost["train_seconds"] += trained
    state.cost["evaluation_seconds"] += evaluation.seconds
    return {"epoch": epoch, "train": train, "validation": metrics, "train_seconds": trained,
            "evaluation_seconds": evaluation.seconds, "step_seconds": trained / trainer.windows_done,
            "peak_memory_bytes": peak_memory_bytes(run.accelerator.device),
            **trained_parts(trainer.plans_in(epoch))}, logits


def _stepped(run: TrialRun) -> None:
    """After every optimizer step."""
    every = run.resolved.config.checkpointing_steps
    run.progress.stepped(run.trainer)
    if every and run.trainer.step % every == 0:
        save_checkpoint(run)
    run.trainer.heed_signals()


def _test(run: TrialRun, ended: str) -> TrialOutcome:
    """Test the best epoch once, and the last for comparison; a pruned trial is not tested. Then the record."""
    trainer, state, watch = run.trainer, run.state, Stopwatch()
    best, last_entry = state.best, state.history[-1]
    metrics, last = {"validation": best["validation"]}, {"validation": last_entry["validation"]}
    predictions = {"validation_logits": best["logits"]} | truth(run, "validation", best["logits"])
    if ended == "complete":
        trainer.prefix.fill(run.splits["test"])
        with watch:
            logits = trainer.logits(run.splits["test"])
            metrics["test"] = last["test"] = metrics_of(run, logits, "test")
            if best["epoch"] != last_entry["epoch"]:
                run.left_out = False  # from here on the weights are another epoch's
                trainer.classifier.load_state_dict(trainer.best, strict=False)
                logits = trainer.logits(run.splits["test"])
                metrics["test"] = metrics_of(run, logits, "test")
        predictions |= {"test_logits": logits} | truth(run, "test", logits)
        state.cost["evaluation_seconds"] += watch.seconds
    record = fill_record(run, ended).model_copy(update={
        "metrics": metrics, "last_epoch_metrics": last, "best_epoch": best["epoch"],
        "details": class_details(run.resolved.data, predictions)})
    return TrialOutcome(with_weights(run, record), predictions)
