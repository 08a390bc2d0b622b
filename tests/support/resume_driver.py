"""Two ranks: a whole trial, one that a signal to one rank stops after a step, and its continuation."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch

from finetune import trial
from finetune.config import TrialConfig
from finetune.errors import Interrupted
from finetune.results import RecordStore
from finetune.training import signals
from finetune.trial import progress
from finetune.trial.events import Observer


class Stop(Observer):
    def __init__(self, step):
        self.step = step

    def stepped(self, step, total_steps, loss):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(knobs, folder, step=None):
    signals.listen()
    outcome = trial.run_trial(TrialConfig.from_mapping(knobs), observer=Stop(step), output_dir=folder)
    if int(os.environ["RANK"]) == 0:
        RecordStore(folder).publish(outcome.record, outcome.predictions)


def main(folder: Path, knobs: dict, step: int) -> None:
    """What each rank runs: publishes folder/whole and folder/stopped."""
    torch.set_num_threads(1)
    progress.REPORT_EVERY_SECONDS = -1
    run(knobs, folder / "whole")
    try:
        run(knobs, folder / "stopped", step)
    except Interrupted:  # on both ranks
        Path(folder / f"interrupted.{os.environ['RANK']}").touch()
    run(knobs, folder / "stopped")

