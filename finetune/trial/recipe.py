"""One trial, from configuration to record: the recipe, readable top to bottom."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetune import __version__

from finetune.training import signals
from finetune.training.checkpoint import Checkpoint, Checkpoints, DamagedCheckpoint
from finetune.config import KNOBS, RESULT, TrialConfig
from finetune.data import (
    EncodedSplit,
    Split,
    TaskData,
    encode_split,
    limit_evaluation,
    load_task_data,
    padding_id,
    subset_train,
)
from finetune.data.encoding.batches import Collator, to_device
from finetune.data.recorded import recorded
from finetune.data.targets import balanced_weights, target_units
from finetune.errors import ConfigError, Interrupted, Problem, TrialFailed, did_you_mean
from finetune.training.evaluation import (
    baseline,
    class_details,
    compute_metrics,
    default_metric,
    higher_is_better,
    metric_names,
)
from finetune.files import digest_of
from finetune.freezing import AuditReport, FreezePlan, audit_loss, resolve_strategy
from finetune.trial.memo import Kept
from finetune.tracking.launch import meet_others
from finetune.training.loop import Trainer, per_example_loss
from finetune.training.memory import asked_for, is_out_of_memory, peak_memory_bytes, reset_peak_memory
from finetune.models import (
    Backbone,
    LayerStack,
    check_pooling,
    checkpoint_layers,
    chosen_pooling,
    forget_backbones,
    load_backbone,
    prepare_backbone,
)
from finetune.models.head import Classifier, Head
from finetune.trial.events import Observer
from finetune.prefix.reuse import PrefixReuse, PrefixSource
from finetune.randomness import stream_seed
from finetune.results import SCHEMA, RecordStore, TrialRecord
from finetune.training.resume import audit_report, digest_of_tensors, own_randomness, restore_trainer, trainer_state
from finetune.saving.save import keep_model
from finetune.saving.manifest import MODEL_FOLDER
from finetune.training.stopwatch import Stopwatch

REPORT_EVERY_SECONDS = 0.5
REPEATS_ITSELF = ("non-finite", "leak")  # failures that a checkpoint would only lead to again

AUDIT_ROWS = 4
# With what trains, this decides where a backward pass goes. Not the seed, not the rates.
AUDITED_BY = ("strategy", "freeze_depth", "pooling", "head_size", "reinit_layers", "gradient_checkpointing",
              "mixed_precision", "max_length", "attn_implementation")
FILLING_EVERY_SECONDS = 10.0
# Trials of one sweep, in one worker, see the same rows again and again.
_kept_rows, _kept_encodings, _kept_baselines, _kept_audits = Kept(4), Kept(12), Kept(4), Kept(32)


@dataclass(frozen=True)
class ResolvedTrial:
    """A configuration checked against its data and its backbone, with its ids."""

    config: TrialConfig
    data: TaskData
    backbone: Backbone
    strategy: Any
    metric: str
    processes: int = 1

    @property
    def max_length(self) -> int:
        """The model's own limit where max_length is beyond it, as run_glue_no_trainer's tokenizer has it."""
        return min(self.config.max_length, self.backbone.max_tokens or self.config.max_length)

    @cached_property
    def effective(self) -> dict[str, Any]:
        """What decides the result: knobs that act on nothing are None, names are replaced by digests."""
        knobs = {name: self.config.get(name) for name, knob in KNOBS.items() if knob.in_trial_id == RESULT}
        knobs |= {"strategy": self.strategy.canonical, "freeze_depth": self.strategy.freeze_depth,
                  "metric_for_best_model": self.metric, "max_length": self.max_length,
                  "pooling": chosen_pooling(self.config.pooling, self.backbone.stack)}
        knobs.pop("split_seed")  # the fingerprint holds the rows that it chose
        if self.config.train_size is None:
            knobs["subset_seed"] = None
        if self.strategy.freeze_depth == self.backbone.num_layers:
            knobs |= {"learning_rate": None, "layer_decay": None}
        return {**knobs, "data": self.data.fingerprint, "model": self.backbone.digest, "processes": self.processes,
                "schema": SCHEMA}

    @property
    def trial_id(self) -> str:
        return digest_of(self.effective)

    @property
    def setting_id(self) -> str:
        return digest_of({name: value for name, value in self.effective.items() if name != "seed"})

    def describe(self) -> dict[str, Any]:
        config, rows = self.config, {name: len(split) for name, split in self.data.splits.items()}
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * self.processes
        return {
            "trial_id": self.trial_id, "setting_id": self.setting_id, "effective": self.effective,
            "strategy": self.strategy.canonical, "freeze_depth": self.strategy.freeze_depth,
            "num_layers": self.backbone.num_layers, "metric": self.metric, "task": self.data.task,
            "metrics": metric_names(self.data.task, self.data.num_outputs), "rows": rows,
            "notes": list(self.data.notes), "rejected": len(self.data.rejected),
            "total_epochs": config.num_train_epochs,
            "total_steps": config.num_train_epochs * -(-rows["train"] // per_step),
            "prefix_id": self.prefix.prefix_id, "prefix_boundaries": self.prefix_boundaries,
        }

    @cached_property
    def prefix(self) -> PrefixSource:
        """What decides the activations of a frozen prefix, besides the texts."""
        config, layers = self.config, self.backbone.num_layers
        deciding = [self.backbone.digest, config.attn_implementation, config.mixed_precision,
                    chosen_pooling(config.pooling, self.backbone.stack)]
        rows = [self.effective[name] for name in ("data", "train_size", "subset_seed", "evaluation_size")]
        if config.train_size is not None and config.subset_seed is None:
            rows.append(config.seed)
        return PrefixSource(*deciding, pristine_layers=layers - config.reinit_layers,
                            prefix_id=digest_of([*deciding, *rows, self.max_length]))

    @property
    def prefix_boundaries(self) -> list[int]:
        """The boundary at which this trial will reuse activations, where that is known beforehand."""
        depth, config = self.strategy.freeze_depth or 0, self.config
        reused = min(depth, self.prefix.pristine_layers)
        return [reused] if config.prefix_cache and not config.frozen_dropout and reused >= 1 else []


@dataclass(frozen=True)
class TrialOutcome:
    record: TrialRecord  # without checksum: whoever publishes it seals it
    predictions: dict[str, np.ndarray]


def resolve_trial(config: TrialConfig, processes: int = 1) -> ResolvedTrial:
    """Load data and backbone and check the configuration against them. Raises ConfigError with every problem."""
    data = _rows(config)
    backbone = load_backbone(config)
    problems: list[Problem | str] = []
    try:
        strategy = resolve_strategy(config, backbone.num_layers)
    except ConfigError as error:
        strategy, problems = None, list(error.problems)
    names = metric_names(data.task, data.num_outputs)
    metric = config.metric_for_best_model or default_metric(data.task, data.num_outputs, data.glue_metric)
    if metric not in names:
        problems.append(Problem("metric_for_best_model", metric,
                                f"allowed for this task: {', '.join(names)}{did_you_mean(metric, names)}"))
    problems += check_pooling(config.pooling, backbone)
    if config.class_weights != "none" and data.task == "regression":
        problems.append(Problem("class_weights", config.class_weights, "a regression has no classes; allowed: none"))
    if config.reinit_layers > backbone.num_layers:
        problems.append(Problem("reinit_layers", config.reinit_layers, f"the model has {backbone.num_layers} layers"))
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        problems.append(Problem("mixed_precision", "fp16", "needs a GPU (on a CPU Accelerate trains in float32 and "
                                                           "does not say so); allowed on a CPU: no, bf16"))
    if config.gradient_checkpointing and not backbone.pristine.supports_gradient_checkpointing:
        problems.append(Problem("gradient_checkpointing", True,
                                f"{type(backbone.pristine).__name__} does not offer it"))
    if problems:
        raise ConfigError(problems)
    return ResolvedTrial(config, data, backbone, strategy, metric, processes)


def run_trial(config: TrialConfig, *, observer: Observer | None = None, output_dir: Path | str | None = None
              ) -> TrialOutcome:
    """Train, keep the best epoch on validation, test it once; goes on from a checkpoint where there is one.

    Checkpoints and what `save_model` keeps lie in `output_dir`, by default config.output_dir; where neither is given
    none are written. Checkpoints are RecordStore.publish's to remove.

    A trial that ran and failed (non-finite, leak, out of memory) has a record with state "failed"; a wrong
    configuration, wrong data or a wrong environment raises.
    """
    started = time.monotonic()
    accelerator = _accelerator(config)
    reset_peak_memory(accelerator.device)
    resolved = resolve_trial(config, accelerator.num_processes)
    observer = observer if observer is not None and accelerator.is_main_process else Observer()
    output_dir = output_dir or config.output_dir
    run = _Run(resolved, accelerator, observer, started, output_dir)
    with own_randomness(config.seed):
        try:
            outcome = run.train_and_test()
        except TrialFailed as failure:
            if failure.kind == "leak":
                forget_backbones()
            outcome = run.failed(failure.kind, str(failure))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            outcome = run.failed("out-of-memory", run.out_of_memory(error))
        finally:
            run.release()
    observer.finished(outcome.record, outcome.predictions)
    return outcome


def build_classifier(resolved: ResolvedTrial) -> tuple[Classifier, LayerStack]:
    """A fresh backbone, changed as the configuration asks, with its head; and its parts, bound to it."""
    config = resolved.config
    stack = prepare_backbone(resolved.backbone, config, resolved.strategy)
    generator = torch.Generator().manual_seed(stream_seed(config.seed, "head"))
    head = Head(stack.width, config.head_size, resolved.data.num_outputs, config.head_dropout, generator,
                target_units(resolved.data))
    if config.gradient_checkpointing:
        checkpoint_layers(stack.model)
    classifier = Classifier(stack.model, head, chosen_pooling(config.pooling, stack))
    if not config.gradient_checkpointing:  # there layers run again, when nobody says which token is read
        classifier.read_one_token(resolved.backbone)
    return classifier, stack.bind(classifier)


def encode_splits(resolved: ResolvedTrial) -> dict[str, Collator]:
    tokenizer = resolved.backbone.tokenizer

    def encoded(split: Split) -> EncodedSplit:
        return _kept_encodings.get((split, tokenizer), resolved.max_length,
                                   lambda: encode_split(split, tokenizer, resolved.max_length))

    return {name: Collator(encoded(split), padding_id(tokenizer), resolved.backbone.padding_side)
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


class _Run:
    """The state of one trial while it trains."""

    def __init__(self, resolved: ResolvedTrial, accelerator: Accelerator, observer: Observer, started: float,
                 output_dir: Path | str | None):
        self.resolved, self.accelerator, self.observer, self.started = resolved, accelerator, observer, started
        self.output_dir = output_dir
        self.checkpoints = Checkpoints(output_dir, resolved.trial_id) if output_dir else None
        self.config, self.data = resolved.config, resolved.data
        self.history: list[dict[str, Any]] = []
        self.splits: dict[str, Collator] = {}
        self.best: dict[str, Any] = {}  # the best epoch's entry of the history, and its logits
        self.trainer: Trainer | None = None
        self.prefix: PrefixReuse | None = None
        self.filling_since = 0.0
        self.cost: dict[str, float | None] = {"setup_seconds": 0.0, "prefix_seconds": 0.0,
                                              "prefix_train_seconds": 0.0, "train_seconds": 0.0,
                                              "evaluation_seconds": 0.0, "checkpoint_seconds": 0.0}
        self.audit: AuditReport | None = None
        self.resumes: list[dict[str, Any]] = []
        self.clock = Stopwatch()  # training seconds of the running epoch
        self.reported = 0.0

    def train_and_test(self) -> TrialOutcome:
        splits = self.splits = encode_splits(self.resolved)
        trainer = self._begin(splits)
        self.cost["setup_seconds"] += time.monotonic() - self.started
        self.observer.started(self.resolved.describe() | self._frozen_and_trained())
        if self.resumes:
            self.observer.resumed(self.history, trainer.step)
        with signals.deferred():
            state = self._epochs(trainer, splits)
        trainer.check_frozen()
        return self._outcome(state, splits, trainer)

    def _begin(self, splits: dict[str, Collator]) -> Trainer:
        """At the newest intact checkpoint, or at the beginning."""
        trainer = self.trainer = self._fresh_trainer(splits)
        checkpoint = self._newest_checkpoint()
        if checkpoint is not None:
            try:
                self._go_on_from(checkpoint, trainer)
                return trainer
            except DamagedCheckpoint as error:
                self.observer.said(f"checkpoint {checkpoint.name} is not used: {error}; the trial starts again")
                trainer = self.trainer = self._fresh_trainer(splits)
        trainer.enter(epoch=1)
        self.audit = self._audited(trainer)
        self.prefix.fill_ahead(*splits.values())
        return trainer

    def _audited(self, trainer: Trainer) -> AuditReport:
        """Once per process for what decides where gradients go; the first training step of every trial is audited too.
        """
        config, plan = self.config, trainer.plan
        deciding = (self.resolved.backbone.digest, plan.trainable, self.data.task, self.data.num_outputs,
                    *(config.get(name) for name in AUDITED_BY))
        # By the model's digest: keeping the backbone itself would hold every model of a sweep over many.
        return _kept_audits.get((), deciding, lambda: audit(
            trainer.classifier, plan, trainer.stack, self.splits["train"], self.data.task))

    def _fresh_trainer(self, splits: dict[str, Collator]) -> Trainer:
        classifier, stack = build_classifier(self.resolved)
        classifier.to(self.accelerator.device)
        self.prefix = PrefixReuse(classifier, stack, self.resolved.prefix, list(splits.values()),
                                  self.accelerator.autocast, enabled=self.config.prefix_cache,
                                  recomputes=self.config.gradient_checkpointing, progress=self._filling)
        return Trainer(self.config, self.accelerator, classifier, stack, self.resolved.strategy, splits["train"],
                       self.data.task, self._class_weights(), self.prefix, said=self.observer.said)

    def _epochs(self, trainer: Trainer, splits: dict[str, Collator]) -> str:
        """Train every epoch that is left; returns whether the trial is complete or was pruned."""
        try:
            for epoch in range(len(self.history) + 1, self.config.num_train_epochs + 1):
                entry, logits = self._epoch(trainer, splits, epoch)
                trainer.end_epoch()
                self.history.append(entry)
                if not self.best or self._better(entry, self.best):
                    self.best = {**entry, "logits": logits}
                    trainer.best = trainer.weights()
                verdict = self._verdict(epoch)
                self._checkpoint()
                if verdict != "continue":
                    return "pruned"
                trainer.heed_signals()
            return "complete"
        except Interrupted as interruption:
            return self._interrupted(interruption)

    def _epoch(self, trainer: Trainer, splits: dict[str, Collator], epoch: int) -> tuple[dict[str, Any], np.ndarray]:
        """One line of the history, and the logits on validation."""
        if trainer.windows_done < trainer.windows_per_epoch:  # not where only the evaluation was cut short
            trainer.enter(epoch)
        self.prefix.fill(splits["train"], splits["validation"])
        reset_peak_memory(self.accelerator.device)
        with self.clock:
            train = trainer.train_epoch(epoch, self._stepped)
        evaluation = Stopwatch()
        with evaluation:
            logits = trainer.logits(splits["validation"])
            metrics = self._metrics(logits, "validation")
        trained = self.clock.reset()
        self.cost["train_seconds"] += trained
        self.cost["evaluation_seconds"] += evaluation.seconds
        return {"epoch": epoch, "train": train, "validation": metrics, "train_seconds": trained,
                "evaluation_seconds": evaluation.seconds,
                "step_seconds": trained / trainer.windows_done,
                "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
                **_trained(trainer.plans_in(epoch))}, logits

    def _filling(self, done: int, total: int) -> None:
        """While activations are computed, before training: batch `done` of `total` is there."""
        now = time.monotonic()
        if done == 1:
            self.filling_since = self.reported = now
        if now - self.reported > FILLING_EVERY_SECONDS and 1 < done < total:
            self.reported = now
            left = (now - self.filling_since) / (done - 1) * (total - done)
            self.observer.said(f"computing the frozen layers once, to be reused: {done / total:.0%}, "
                               f"about {left:.0f} s left")
        if self.accelerator.num_processes == 1:  # it may take minutes; of several processes one fills, the others wait
            signals.check()

    def _stepped(self) -> None:
        """After every optimizer step."""
        trainer, every = self.trainer, self.config.checkpointing_steps
        if time.monotonic() - self.reported > REPORT_EVERY_SECONDS:
            self.reported = time.monotonic()
            self.observer.stepped(trainer.step, trainer.total_steps, trainer.loss_so_far)
        if every and trainer.step % every == 0:
            self._checkpoint()
        trainer.heed_signals()

    def _better(self, entry: dict[str, Any], best: dict[str, Any]) -> bool:
        new, old = entry["validation"][self.resolved.metric], best["validation"][self.resolved.metric]
        return new > old if higher_is_better(self.resolved.metric) else new < old

    def _verdict(self, epoch: int) -> str:
        verdict = [self.observer.epoch_ended(epoch, self.history[-1])]
        if self.accelerator.num_processes > 1:
            accelerate.utils.broadcast_object_list(verdict)
        return verdict[0]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Between two steps. Every process takes part, the main one writes; what it costs is no training time."""
        if self.checkpoints is None:
            return
        watch = Stopwatch()
        with watch:
            trainer_part, tensors = trainer_state(self.trainer)
            if self.accelerator.is_main_process:
                self.checkpoints.save(self._as_checkpoint(trainer_part, tensors))
        self.cost["checkpoint_seconds"] += watch.seconds
        self.clock.leave_out(watch.seconds)

    def _as_checkpoint(self, trainer_part: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Checkpoint:
        best = {name: value for name, value in self.best.items() if name != "logits"}
        state = {"trainer": trainer_part, "history": self.history, "best": best, "cost": self.cost,
                 "audit": asdict(self.audit), "resumes": self.resumes, "environment": environment(self.accelerator),
                 "epoch_seconds": self.clock.seconds}
        if self.best:
            tensors = tensors | {"best_logits": torch.from_numpy(self.best["logits"])}
        return Checkpoint(self.trainer.step, len(self.history), state, tensors)

    def _newest_checkpoint(self) -> Checkpoint | None:
        """The same one on every process; damaged ones are skipped, and that is said."""
        if self.checkpoints is None:
            return None
        checkpoint = None
        if self.accelerator.is_main_process:
            checkpoint, skipped = self.checkpoints.newest()
            for sentence in skipped:
                self.observer.said(sentence)
        if self.accelerator.num_processes > 1:
            name = accelerate.utils.broadcast_object_list([checkpoint and checkpoint.name])[0]
            checkpoint = checkpoint or (self.checkpoints.read(name) if name else None)
        return checkpoint

    def _go_on_from(self, checkpoint: Checkpoint, trainer: Trainer) -> None:
        """Raises DamagedCheckpoint when it does not fit this trial."""
        state, tensors = checkpoint.state, checkpoint.tensors
        restore_trainer(trainer, state["trainer"], tensors)
        self.history, self.audit = list(state["history"]), audit_report(state["audit"])
        self.best = {**state["best"], "logits": tensors["best_logits"].numpy()} if state["best"] else {}
        self.cost |= state["cost"]
        self.clock.seconds = state["epoch_seconds"]
        changed = differences(state["environment"], environment(self.accelerator))
        self.resumes = [*state["resumes"], {"step": checkpoint.step, "changed": changed}]
        if changed:
            told = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
            self.observer.said(f"resumed with {told}: the result may differ in the last digits from an "
                               "uninterrupted run's")

    def _interrupted(self, interruption: Interrupted) -> str:
        """Keep what is done. Returns "pruned" where the signal means that the trial shall end with a record."""
        self._checkpoint()
        verdict = [self.observer.interrupted(interruption.signum)]
        if self.accelerator.num_processes > 1:
            accelerate.utils.broadcast_object_list(verdict)
        if verdict[0] == "prune" and self.history:
            signals.forget()
            return "pruned"
        note = "" if self.checkpoints is None else (f"a checkpoint is kept at step {self.trainer.step} of "
                                                    f"{self.trainer.total_steps}, the same command goes on from there")
        raise Interrupted(interruption.signum, note)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _metrics(self, logits: np.ndarray, split: str) -> dict[str, float]:
        return compute_metrics(self.data.task, logits, self.data.splits[split].labels)

    def _frozen_and_trained(self) -> dict[str, Any]:
        """The record's freeze_plan and parameters; trainable is the most that trained in any phase."""
        phases = [plan.describe() for plan in self.trainer.phases] if self.trainer else []
        if not phases or self.audit is None:
            return {"freeze_plan": [], "parameters": {}}
        trainable = max(phase["trainable_parameters"] for phase in phases)
        return {"freeze_plan": phases, "audit": self.audit.describe(),
                "deepest_trainable_layer": min(report.deepest_trainable_layer
                                               for report in [self.audit, *self.trainer.reached]),
                "parameters": {"total": phases[0]["total_parameters"], "trainable": trainable}}

    def _class_weights(self) -> torch.Tensor | None:
        if self.config.class_weights == "none":
            return None
        return torch.tensor(balanced_weights(self.data), dtype=torch.float32, device=self.accelerator.device)

    def _outcome(self, state: str, splits: dict[str, Collator], trainer: Trainer) -> TrialOutcome:
        """Test the best epoch once, and the last for comparison; a pruned trial is not tested."""
        best, last_entry = self.best, self.history[-1]
        metrics, last = {"validation": best["validation"]}, {"validation": last_entry["validation"]}
        predictions = {"validation_logits": best["logits"]} | self._truth("validation")
        if state == "complete":
            self.prefix.fill(splits["test"])
            watch = Stopwatch()
            with watch:
                logits = trainer.logits(splits["test"])
                metrics["test"] = last["test"] = self._metrics(logits, "test")
                if best["epoch"] != last_entry["epoch"]:
                    trainer.classifier.load_state_dict(trainer.best, strict=False)
                    logits = trainer.logits(splits["test"])
                    metrics["test"] = self._metrics(logits, "test")
            predictions |= {"test_logits": logits} | self._truth("test")
            self.cost["evaluation_seconds"] += watch.seconds
        record = self._record(state).model_copy(update={
            "metrics": metrics, "last_epoch_metrics": last, "best_epoch": best["epoch"],
            "details": class_details(self.data, predictions), "weights": digest_of_tensors(trainer.best)})
        if state == "complete" and self.output_dir and self.accelerator.is_main_process:
            target = RecordStore(self.output_dir).folder(record.trial_id) / MODEL_FOLDER
            record = record.model_copy(update={"model": keep_model(self.resolved, trainer.classifier, record, target)})
        return TrialOutcome(record, predictions)

    def release(self) -> None:
        """Model and optimizer refer back to this object: without this they wait for the garbage collector, and the
        next trial of a warm worker is built beside them."""
        self.trainer = self.prefix = None

    def _truth(self, split: str) -> dict[str, np.ndarray]:
        rows = self.data.splits[split]
        return {f"{split}_labels": rows.labels, f"{split}_ids": rows.ids}

    def out_of_memory(self, error: BaseException) -> str:
        """With the figure and the knobs to change."""
        config, device = self.config, self.accelerator.device
        training = self.trainer is not None and self.trainer.classifier.training
        knob = "per_device_train_batch_size" if training else "per_device_eval_batch_size"
        advice = (f"use a smaller {knob} (it is {config.get(knob)})" + (
            " with more gradient_accumulation_steps, or gradient_checkpointing" if training else ""))
        if training and not config.auto_micro_batch:
            advice += ", or auto_micro_batch: true"
        return (f"out of memory on {device}: {asked_for(error)} could not be had while {self._peak_memory():,} bytes "
                f"were in use; {advice}")

    def failed(self, kind: str, message: str) -> TrialOutcome:
        if kind in REPEATS_ITSELF and self.checkpoints is not None and self.accelerator.is_main_process:
            self.checkpoints.remove()
        return TrialOutcome(self._record("failed").model_copy(update={"error": {"kind": kind, "message": message}}), {})

    def _peak_memory(self) -> int:
        """The most of all epochs and of what came after the last."""
        epochs = [entry["peak_memory_bytes"] for entry in self.history]
        return max([peak_memory_bytes(self.accelerator.device), *epochs])

    def _record(self, state: str) -> TrialRecord:
        resolved, data = self.resolved, self.data
        seen = len(data.splits["train"]) * len(self.history)
        if self.prefix is not None:
            self.cost["prefix_seconds"] = self.prefix.prefix_seconds(*self.splits.values())
            self.cost["prefix_train_seconds"] = self.prefix.prefix_seconds(self.splits["train"])
        self.cost |= {"peak_memory_bytes": self._peak_memory(),
                      "examples_per_second": seen / self.cost["train_seconds"] if self.history else None}
        return TrialRecord(
            trial_id=resolved.trial_id, setting_id=resolved.setting_id, state=state, config=_recorded_config(resolved),
            effective=resolved.effective, task=data.task, metric=resolved.metric,
            num_layers=resolved.backbone.num_layers, **self._frozen_and_trained(),
            prefix=self.prefix.describe() if self.prefix else {"used": False, "saved_seconds": 0.0},
            baseline=_kept_baselines.get((data,), None, lambda: baseline(data)), history=self.history, cost=self.cost,
            data=recorded(data, {name: split.encoded for name, split in self.splits.items()}, resolved.max_length),
            environment=environment(self.accelerator), resumes=self.resumes,
            micro_batch=self.trainer.micro_batch if self.trainer else None,
        )


def _recorded_config(resolved: ResolvedTrial) -> dict[str, Any]:
    return resolved.config.model_dump() | {"model_revision": resolved.backbone.revision}


def _rows(config: TrialConfig) -> TaskData:
    subset_seed = config.seed if config.subset_seed is None else config.subset_seed
    whole = load_task_data(config)

    def chosen() -> TaskData:
        data = whole if config.train_size is None else subset_train(whole, config.train_size, subset_seed)
        return limit_evaluation(data, config.evaluation_size)

    return _kept_rows.get((whole,), (config.train_size, subset_seed, config.evaluation_size), chosen)


def _accelerator(config: TrialConfig) -> Accelerator:
    meet_others()
    if AcceleratorState._shared_state:  # Accelerate keeps the first trial's precision for the life of the process
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=config.mixed_precision)


def _trained(plans: list[FreezePlan]) -> dict[str, Any]:
    """What trained in one epoch; where it changed within the epoch, the parts of all plans and the largest count."""
    parts = {part for plan in plans for part in plan.trainable_parts}
    return {"trainable_parameters": max(plan.trainable_parameters for plan in plans),
            "trainable_parts": [share.part for share in plans[0].parts if share.part in parts]}




def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, device, threads, commit: recorded, not hashed."""
    device = accelerator.device
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "finetune": __version__,
                     "transformers": transformers.__version__, "accelerate": accelerate.__version__,
                     "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "device_type": device.type, "threads": torch.get_num_threads(), "processes": accelerator.num_processes,
        "commit": _commit(), "host_cores": os.cpu_count(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """What of versions, device and threads is not as it was: {"torch": ["2.6.0", "2.7.0"], …}."""
    def flat(facts: dict[str, Any]) -> dict[str, Any]:
        return facts["versions"] | {name: facts[name] for name in ("device", "threads", "commit")}

    old, new = flat(before), flat(now)
    return {name: [old.get(name), new[name]] for name in new if old.get(name) != new[name]}


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """The commit of this checkout, where it is one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
