"""Where a trial ran: versions, device, threads, commit. Recorded, not hashed."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from finetune import __version__
from finetune.config import TrialConfig
from finetune.training.device import device_facts, prepare_device
from finetune.training.processes import meet_others


def make_accelerator(config: TrialConfig) -> Accelerator:
    meet_others()
    if AcceleratorState._shared_state:  # Accelerate keeps the first trial's precision for the life of the process
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    prepare_device(accelerator.device)
    return accelerator


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, device, threads, commit: recorded, not hashed."""
    device = accelerator.device
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "finetune": __version__,
                     "transformers": transformers.__version__, "accelerate": accelerate.__version__,
                     "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "device_type": device.type, "threads": torch.get_num_threads(), "processes": accelerator.num_processes,
        "commit": _commit(), "host_cores": os.cpu_count(), **device_facts(device),
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
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
