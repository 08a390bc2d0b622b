"""One trial's processes: how many, which one is the main one, how they meet. Imports no torch by itself."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet_others() -> None:
    """Join the processes that a launcher started. Left to itself, Accelerate does so under torchrun only on GPUs."""
    import torch
    from accelerate import PartialState

    if process_count() > 1:
        PartialState(cpu=not torch.accelerator.is_available())
