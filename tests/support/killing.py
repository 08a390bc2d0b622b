"""Trials in processes of their own, which tests kill: forked from a server that has imported everything once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path

import psutil

from finetune.config import TrialConfig
from finetune.errors import FinetuneError
from finetune.results import RecordStore
from finetune.trial.events import Observer

HERE = Path(__file__).parent
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["killing", "killing_preload"])

TIMING = ("train_seconds", "evaluation_seconds", "step_seconds", "peak_memory_bytes")


class At(Observer):
    """Sends this process a signal after optimizer step `step`, or in the evaluation of `epoch`."""

    def __init__(self, step=None, number=signal.SIGKILL):
        self.step, self.number = step, number

    def said(self, message):
        print(message, file=sys.stderr)

    def resumed(self, history, step):
        print(f"resumed at {step} after {len(history)} epochs", file=sys.stderr)

    def stepped(self, step, total_steps, loss):
        if step == self.step:
            os.kill(os.getpid(), self.number)


class Twice(At):
    """Sends Ctrl-C twice."""

    def stepped(self, step, total_steps, loss):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)


class WhileEvaluating(At):
    """Sends the signal when a batch of validation is padded after optimizer step `step`."""

    def stepped(self, step, total_steps, loss):
        if step == self.step:
            from finetune.data.encoding.batches import Collator

            original, number = Collator.__call__, self.number

            def signalling(collator, rows):
                os.kill(os.getpid(), number)
                Collator.__call__ = original
                return original(collator, rows)

            Collator.__call__ = signalling


class FillsUp(At):
    """Leaves no byte on a disk after a step."""

    def __init__(self, step, filler):
        super().__init__(step)
        self.filler = filler

    def stepped(self, step, total_steps, loss):
        if step == self.step:
            with contextlib.suppress(OSError), open(self.filler, "wb", buffering=0) as file:
                while file.write(b"\0" * 512):
                    pass


class LittleMemory(At):
    """Leaves this process `free` bytes of address space more than it has before its first step."""

    def __init__(self, free):
        super().__init__()
        self.free = free

    def started(self, resolved):
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + self.free, resource.RLIM_INFINITY))


def _serve():
    """Python 3.11's server does not know this process's sys.path, and is silent about what it cannot import."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in [*map(str, (HERE, HERE.parents[1])), before] if path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _child(knobs, folder, observer, log, threads):
    import torch

    from finetune import trial
    from finetune.training import signals
    from finetune.trial import progress

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 2)
    progress.REPORT_EVERY_SECONDS = -1
    torch.set_num_threads(threads)
    signals.listen()
    try:
        outcome = trial.run_trial(TrialConfig.from_mapping(knobs), observer=observer, output_dir=folder)
        RecordStore(folder).publish(outcome.record, outcome.predictions)
    except FinetuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(error.exit_code)


def run(knobs, folder, observer=None, threads=1):
    """(exit code, what was said); negative exit codes are signals."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")  # not inside: that disk may be full
    log.write_text("")
    _serve()
    process = _server.Process(target=_child, args=(knobs, folder, observer or At(), log, threads))
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def ranks(count, folder, target, *arguments):
    """What the last of `count` ranks to fail has said, or "": each runs target(*arguments), forked like a trial.

    They find each other by the variables that torchrun sets; alone, none is set. torchrun itself and its import of
    torch in each rank are what test_distributed.py has.
    """
    _serve()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [folder.with_name(f"{folder.name}.rank{rank}.log") for rank in range(count)]
    processes = [_server.Process(target=_rank, args=(rank, count, port, log, target, arguments), daemon=True)
                 for rank, log in enumerate(logs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return "\n".join(log.read_text() for process, log in zip(processes, logs, strict=True) if process.exitcode)


def _rank(rank, count, port, log, target, arguments):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 2)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                       "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        target(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def records(folder):
    return list(RecordStore(folder))


def result(folder):
    """What must not depend on interruptions, of the only record."""
    (record,) = records(folder)
    return content(record)


def content(record):
    """Everything in a record but times, memory and where it was."""
    content = record.as_json()
    for name in ("checksum", "cost", "environment", "prefix", "resumes"):
        content.pop(name)
    content["history"] = [{name: value for name, value in entry.items() if name not in TIMING}
                          for entry in content["history"]]
    return content  # its `files` hold the digest of the predictions
