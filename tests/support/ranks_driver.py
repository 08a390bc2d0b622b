"""What each rank ends every epoch with, for test_freezing_ranks.py: run by each of two ranks, or alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune.config import TrialConfig
from finetune.training import loop
from finetune.trial import run_trial


def main(folder: Path, trials: dict[str, dict]) -> None:
    """Writes folder/<name>.rank<r>.safetensors and <name>.json. It changes the loop: for a process of its own."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    train_epoch = loop.Trainer.train_epoch
    weights: dict[str, torch.Tensor] = {}

    def watched(self, epoch, report):
        trained = train_epoch(self, epoch, report)
        weights.update({f"{epoch}/{name}": p.detach().clone() for name, p in self.classifier.named_parameters()})
        return trained

    loop.Trainer.train_epoch = watched
    for name, knobs in trials.items():
        weights.clear()
        record = run_trial(TrialConfig.from_mapping(knobs)).record
        save_file(weights, folder / f"{name}.rank{rank}.safetensors")
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(record.as_json()))

