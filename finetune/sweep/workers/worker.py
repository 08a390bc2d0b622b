"""The child process that trains: it imports torch once, keeps data and backbone warm, and answers its coordinator.

coordinator -> worker    ("begin", WorkerOptions), first of all    ("warm", knobs)    ("prefix", PrefixHint)
                         ("heads", (shared knobs, [own knobs, …]) of trials that train a head alone)
                         ("resolve", [(key, knobs), …])    ("run", (knobs, {"sweep", "protocol"} or None))
                         ("verdict", verdict)    ("probe", folder)    ("quit", None)
worker -> coordinator    ("ready", None)    ("resolved", (key, description))    ("refused", (key, error))
                         ("resolving_done", None)    ("started", description)    ("stepped", (step, total, loss))
                         ("said", sentence)    ("noted", sentence about W&B)    ("epoch", entry)
                         ("finished", (record, predictions))    ("failed", error)    ("probed", (text, reason why not))
An error is {"type": class name, "problems": [line, …]}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from finetune.config import TrialConfig
from finetune.errors import ConfigError, FinetuneError, Interrupted
from finetune.prefix.budget import configure
from finetune.results import TrialRecord
from finetune.saving.folder import keep_up
from finetune.sweep.workers.birth import WorkerOptions
from finetune.tracking import speak_through, trackers
from finetune.training import signals
from finetune.trial.events import Observer, Observers, Verdict

WORTH_COLLECTING = 3.0  # seconds of a trial; collecting takes a tenth of that


def serve(connection: Connection, options: WorkerOptions) -> None:
    """What a worker does from "begin" to its end; returns when the coordinator says so or is gone."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True)
    signals.listen()
    try:
        task = _load(options)
        connection.send(("ready", None))
        _serve(connection, task, options)
        _leave()
    except Interrupted as interruption:
        sys.exit(interruption.exit_code)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the coordinator is gone


def _leave() -> None:
    """All is said and written: taking torch and the models down in order would take the better part of a second.

    Not where wandb is loaded, which ends its own processes on the way out.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keep_up()
    if "wandb" not in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _serve(connection: Connection, task: Any, options: WorkerOptions) -> None:
    while True:
        kind, content = connection.recv()
        if kind == "quit":
            return
        if kind == "resolve":
            for key, knobs in content:
                connection.send(_resolve(task, key, knobs))
            connection.send(("resolving_done", None))
        elif kind == "warm":
            _prepare(task, content)
        elif kind == "prefix":
            configure(content)
        elif kind == "heads":
            _plan_heads(*content)
        elif kind == "probe":
            connection.send(("probed", _probe(content)))
        elif kind == "run":
            began = time.monotonic()
            if not gc.isenabled():  # libraries and pretrained weights stay: the collector need not look through them
                gc.freeze()
                gc.enable()
            connection.send(_run(connection, task, *content, options))
            if time.monotonic() - began > WORTH_COLLECTING:
                gc.collect()  # models refer to themselves; the next one shall not be built beside the last


def _plan_heads(shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> None:
    if not own and "torch" not in sys.modules:  # a task without torch has no use for it
        return
    from finetune.trial.head_stacks import configure as plan_heads

    plan_heads([{**shared, **each} for each in own])


def _resolve(task: Any, key: Any, knobs: Mapping[str, Any]) -> tuple[str, Any]:
    try:
        return "resolved", (key, dict(task.resolve_trial(TrialConfig.from_mapping(knobs)).describe()))
    except Interrupted:
        raise
    except Exception as error:
        return "refused", (key, _describe(error))


def _prepare(task: Any, knobs: Mapping[str, Any]) -> None:
    """Load what this trial and its likes will ask for, until the coordinator has one to run. What is wrong with it, the
    worker that resolves it says."""
    prepare = getattr(task, "prepare_trial", task.resolve_trial)  # a task need not offer it
    try:
        prepare(TrialConfig.from_mapping(knobs))
    except Interrupted:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("not prepared: %s", error)


def _run(connection: Connection, task: Any, knobs: Mapping[str, Any], origin: Mapping[str, Any] | None,
         options: WorkerOptions) -> tuple[str, Any]:
    try:
        config = TrialConfig.from_mapping(knobs)
        reporter = Reporter(connection, options.ask_verdicts)
        with _tracked(config, origin, connection) as trackers:
            outcome = task.run_trial(config, observer=Observers([reporter, *trackers]))
        return "finished", (outcome.record.as_json(), dict(outcome.predictions or {}))
    except (Interrupted, EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        return "failed", _describe(error)


def _probe(folder: Path) -> tuple[str | None, str | None]:
    """What probe.json shall hold, or why there is no layer probe."""
    from finetune.sweep.probe import probe_text

    try:
        return probe_text(folder), None
    except Interrupted:
        raise
    except Exception as error:
        return None, _describe(error)["problems"][0]


@contextlib.contextmanager
def _tracked(config: TrialConfig, origin: Mapping[str, Any] | None, connection: Connection) -> Iterator[list[Observer]]:
    """`origin` says which sweep asks for the trial, and what for; None is a trial that nobody keeps (a dry run)."""
    if origin is None:
        yield []
        return
    speak_through(lambda text: connection.send(("noted", text)))
    with trackers(config, **origin) as (tracker, others):
        yield [tracker, *others]


class Reporter(Observer):
    """Tells the coordinator what the trial does, and brings back its verdict where one is given."""

    def __init__(self, connection: Connection, ask_verdicts: bool):
        self._connection, self._ask_verdicts = connection, ask_verdicts

    def started(self, resolved: Mapping[str, Any]) -> None:
        self._connection.send(("started", dict(resolved)))

    def resumed(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        """A trial that another Optuna trial stands for now: its pruner needs what was reported before."""
        self.said(f"goes on from a checkpoint at step {step}")
        for entry in history:
            self.epoch_ended(entry["epoch"], entry)

    def said(self, message: str) -> None:
        print(message, file=sys.stderr)
        self._connection.send(("said", message))

    def stepped(self, step: int, total_steps: int, loss: float | None) -> None:
        self._connection.send(("stepped", (step, total_steps, loss)))

    def epoch_ended(self, epoch: int, entry: Mapping[str, Any]) -> Verdict:
        self._connection.send(("epoch", {**entry, "epoch": epoch}))
        if not self._ask_verdicts:
            return "continue"
        kind, verdict = self._connection.recv()
        assert kind == "verdict", f"expected a verdict, got {kind}"
        return verdict

    def finished(self, record: TrialRecord, predictions: Mapping[str, Any]) -> None:
        """The return value of run_trial carries the record."""


def _describe(error: Exception) -> dict[str, Any]:
    """An exception as it crosses the pipe; an unexpected one leaves its traceback in the log."""
    if isinstance(error, ConfigError):
        return {"type": "ConfigError", "problems": [str(problem) for problem in error.problems]}
    if isinstance(error, FinetuneError):
        return {"type": type(error).__name__, "problems": [str(error)]}
    traceback.print_exc()
    return {"type": type(error).__name__, "problems": [str(error) or "no message; see the worker's log"]}


def _load(options: WorkerOptions) -> Any:
    """The task with all that it imports: a worker that is ready has torch."""
    task = importlib.import_module(options.task)
    for name in ("resolve_trial", "run_trial"):  # a package that imports on first use does it now
        getattr(task, name)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(options.threads)
    return task
