"""One trial: what `accelerate launch -m finetune.train`, `wandb agent` and `finetune train` run."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.commands.train import help_text, parse_argv
from finetune.config import TrialConfig
from finetune.display import plain
from finetune.errors import ConfigError, EnvironmentProblem, FinetuneError
from finetune.files import FileLock, require_writable
from finetune.results import RecordStore, TrialRecord
from finetune.tracking import Tracker, check_mode, in_sweep, refuse, trackers
from finetune.tracking.client import output_folder
from finetune.tracking.launch import agreed, agreed_knobs, end_with_launcher
from finetune.training import signals
from finetune.training.processes import is_main_process, process_count
from finetune.trial.events import Observer, Observers


def run(argv: Sequence[str]) -> int:
    """Exit code of a trial: 0 done, 1 failed (its record is published)."""
    if any(token in {"-h", "--help"} for token in argv):
        print(help_text())
        return 0
    knobs, flags = parse_argv(argv)
    check_mode()
    if handles_signals():
        signals.listen()
        end_with_launcher()
    knobs = agreed_knobs(knobs)
    try:
        config = TrialConfig.from_mapping(knobs)
    except ConfigError as error:
        refuse(knobs, error)
        raise
    record = train(config, force="--force" in flags)
    if record is None:  # not the main process
        return 0
    if "--json" in flags:
        print(json.dumps(record.as_json(), ensure_ascii=False))
    else:
        print(summary(record), file=sys.stderr)
    return 1 if record.state == "failed" else 0


def train(config: TrialConfig, *, force: bool = False, view: Observer | None = None) -> TrialRecord | None:
    """Run the trial, publish its record and mirror it to W&B; a complete one is returned instead of trained again.

    `view` shows its progress; default: lines on stderr. Returns None on every process but the main one.
    """
    store = RecordStore(output_folder(config.output_dir))
    with trackers(config) as (tracker, others):
        return _train(config, store, tracker, others, force, view or ProgressLines())


def _train(config: TrialConfig, store: RecordStore, tracker: Tracker, others: Sequence[Observer], force: bool,
           view: Observer) -> TrialRecord | None:
    from finetune.trial import resolve_trial, run_trial

    if is_main_process():
        require_writable(store.root)
    resolved = resolve_trial(config, process_count())
    lock = FileLock(store.root / "locks" / f"{resolved.trial_id}.lock")

    def finished_before() -> TrialRecord | None:
        # Two points of a sweep can be one trial, asked for by two agents: the second waits for the first's record.
        if not lock.acquire(wait=in_sweep()):
            raise EnvironmentProblem(f"trial {resolved.trial_id[:12]} in {store.root} is being trained by "
                                     f"{lock.holder()}")
        done = None if force else store.load_complete(resolved.trial_id)
        return done if done is not None and done.state == "complete" else None

    try:
        done = agreed(finished_before)
        if is_main_process() and (done is not None or force):
            store.forget_checkpoints(resolved.trial_id)  # a kill right after the record has left them
        if done is None:
            ending = Ending(store, tracker)
            run_trial(config, observer=Observers([view, ending, *others]), output_dir=store.root)
            return ending.record
        if is_main_process() and in_sweep():
            tracker.replay(done, store.predictions(done))
        return done if is_main_process() else None
    finally:
        lock.release()


class Ending(Observer):
    """Publishes the record before W&B is told of it: an upload may take long, and may be cut short."""

    def __init__(self, store: RecordStore, tracker: Tracker):
        self.store, self.tracker = store, tracker
        self.record: TrialRecord | None = None
        self.started, self.resumed, self.epoch_ended = tracker.started, tracker.resumed, tracker.epoch_ended
        self.interrupted, self.retried = tracker.interrupted, tracker.retried

    def finished(self, record: TrialRecord, predictions: Mapping[str, np.ndarray]) -> None:
        with without_sigterm():  # the work is done: a late stop must not lose it
            self.tracker.sign(record)
            self.record = self.store.publish(record, predictions)
            self.tracker.finished(record, predictions)
            if record.wandb_run != self.record.wandb_run:  # W&B was lost at the very end: `finetune sync` has to know
                self.record = self.store.publish(record, predictions)


class ProgressLines(Observer):
    """Plain lines on stderr: one when the trial starts, one per epoch."""

    def started(self, resolved: Any) -> None:
        trainable, total = resolved["parameters"]["trainable"], resolved["parameters"]["total"]
        print(f"trial {resolved['trial_id'][:12]}: {resolved['strategy']}, {trainable:,} of {total:,} parameters "
              f"train, {resolved['total_steps']} steps", file=sys.stderr)
        for note in resolved["notes"]:
            print(f"note: {plain(note)}", file=sys.stderr)
        if resolved["rejected"]:
            print(f"note: {resolved['rejected']} rows of the data cannot be used; `finetune data` lists them with "
                  "their lines", file=sys.stderr)

    def resumed(self, history: Any, step: int) -> None:
        print(f"goes on from a checkpoint at step {step}, {len(history)} epochs are done", file=sys.stderr)

    def said(self, message: str) -> None:
        print(message, file=sys.stderr)

    def epoch_ended(self, epoch: int, entry: Any) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in entry["validation"].items())
        print(f"epoch {epoch}: train loss {entry['train']['loss']:.4f}; validation {values}; "
              f"{entry['train_seconds'] + entry['evaluation_seconds']:.1f} s", file=sys.stderr)
        return "continue"


def summary(record: TrialRecord) -> str:
    if record.state == "failed":
        return f"failed ({record.error['kind']}): {record.error['message']}"
    test = record.metrics.get("test", {})
    values = ", ".join(f"{name} {value:.4f}" for name, value in test.items() if isinstance(value, float))
    return f"{record.state}; best epoch {record.best_epoch}; test {values}{_baseline(record)}"


def _baseline(record: TrialRecord) -> str:
    """What a model that ignores the text reaches, for comparison; nothing for a trial without test figures."""
    value = record.baseline.get("test", {}).get(record.metric)
    if value is None or "test" not in record.metrics:
        return ""
    return f" ({record.baseline['kind']} baseline: {record.metric} {value:.4f})"


def handles_signals() -> bool:
    """Only the main thread does; a function of wandb.agent runs in another one."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def without_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN) if handles_signals() else None
    try:
        yield
    finally:
        if handles_signals():
            signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except FinetuneError as error:
        print(f"finetune.train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
