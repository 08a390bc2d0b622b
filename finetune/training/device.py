"""What is set on a GPU before a trial runs there, and what its record says of it. On a CPU nothing is changed.

Measured on an H200: cuDNN's attention builds a plan for every shape it has not seen, which takes ten times as long as
a training step. It is left out, and batches are padded to multiples of 16 tokens, so that few shapes occur.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

BUCKET_TOKENS = {"cuda": 16}
_KERNELS = {"flash": "flash_sdp_enabled", "efficient": "mem_efficient_sdp_enabled", "math": "math_sdp_enabled",
            "cudnn": "cudnn_sdp_enabled"}


def bucket_tokens(device_type: str, side: str = "right") -> int:
    """Lengths of batches are multiples of it; 1: as long as their longest row.

    Padding on the left shifts a token's position in some models: there none is added that need not be.
    """
    return BUCKET_TOKENS.get(device_type, 1) if side == "right" else 1


def prepare_device(device: torch.device) -> None:
    """Before the first trial of a process on a GPU; again is harmless."""
    if device.type != "cuda":
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Where PyTorch has a kernel whose sums always run in the same order; cuBLAS reads the variable when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)  # the record says it


def device_facts(device: torch.device) -> dict[str, Any]:
    """For the record's environment: which attention may run, how lengths are padded, what is deterministic."""
    if device.type != "cuda":
        return {}
    allowed = [name for name, asked in _KERNELS.items() if getattr(torch.backends.cuda, asked)()]
    sure = torch.are_deterministic_algorithms_enabled()
    return {"attention": f"scaled_dot_product_attention by {' or '.join(allowed)}",
            "padded_to": bucket_tokens(device.type),
            "deterministic": "where PyTorch has a deterministic kernel" if sure else "not asked for"}
