"""Trials in processes of their own, which tests kill: forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys

from finetune.config import TrialConfig
from finetune.errors import FinetuneError
from finetune.observer import Observer
from finetune.results import RecordStore

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["finetune.trial", "killing"])

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


def _child(knobs, folder, observer, log):
    from finetune import interrupt, trial

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 2)
    trial.REPORT_EVERY_SECONDS = -1
    interrupt.listen()
    try:
        outcome = trial.run_trial(TrialConfig.from_mapping(knobs), observer=observer, output_dir=folder)
        RecordStore(folder).publish(outcome.record, outcome.predictions)
    except FinetuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(error.exit_code)


def run(knobs, folder, observer=None):
    """(exit code, what was said); negative exit codes are signals."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "said.log"
    log.write_text("")
    process = _server.Process(target=_child, args=(knobs, folder, observer or At(), log))
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def result(folder):
    """What must not depend on interruptions: everything in the record but times, memory and where it was."""
    (record,) = RecordStore(folder)
    content = record.as_json()
    for name in ("checksum", "cost", "environment", "prefix", "resumes"):
        content.pop(name)
    content["history"] = [{name: value for name, value in entry.items() if name not in TIMING}
                          for entry in content["history"]]
    return content  # its `files` hold the digest of the predictions
