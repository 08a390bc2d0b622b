"""What `mixed_precision: auto` becomes on this machine."""

from __future__ import annotations

import torch

from finetune.config import TrialConfig

FIRST_CAPABILITY = (8, 0)  # CUDA: Ampere's tensor cores are the first with bf16


def decided(config: TrialConfig) -> TrialConfig:
    """`auto` is bf16 where the device multiplies it fast, else no; anything else stays."""
    if config.mixed_precision != "auto":
        return config
    return config.model_copy(update={"mixed_precision": "bf16" if has_fast_bf16() else "no"})


def has_fast_bf16() -> bool:
    """By what PyTorch says of the device that Accelerate would choose: CUDA from Ampere on, CPUs with AMX.

    Elsewhere bf16 is emulated, or gains less than autocast's casts cost (docs/speed.md).
    """
    from accelerate import PartialState

    device = PartialState().device
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY and torch.cuda.is_bf16_supported()
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported()
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return device.type == "cpu" and asked is not None and bool(asked())
