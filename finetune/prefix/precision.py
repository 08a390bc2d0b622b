"""In which precision activations are kept: with mixed precision in the one that it computes in, half as many bytes.

What is kept is handed on in the dtype that the layer above is given in a full forward pass, so that everything above
computes as it does without reuse. numpy has no bfloat16: its two bytes lie in the array as int16.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of mixed_precision


def kept_dtype(value: torch.dtype, mixed_precision: str) -> torch.dtype:
    """The dtype in which a value of a forward pass is kept; float32 stays float32 without mixed precision."""
    compute = COMPUTE.get(mixed_precision)
    return compute if compute is not None and value == torch.float32 else value


def rounded(value: Tensor, mixed_precision: str) -> Tensor:
    """`value` after it has been kept, in its own dtype."""
    return value.to(kept_dtype(value.dtype, mixed_precision)).to(value.dtype)


def array_dtype(kept: torch.dtype) -> np.dtype:
    """What an array of values kept in `kept` has as its dtype."""
    return as_array(torch.empty(0, dtype=kept), kept).dtype


def as_array(value: Tensor, kept: torch.dtype) -> np.ndarray:
    """Of the same shape, on the host; bfloat16's bits as int16."""
    value = value.to(kept).to("cpu")
    return (value.contiguous().view(torch.int16) if kept == torch.bfloat16 else value).numpy()


def as_tensor(array: np.ndarray, kept: torch.dtype) -> Tensor:
    """The inverse of `as_array`, sharing the array's memory."""
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.view(torch.bfloat16) if kept == torch.bfloat16 and tensor.dtype == torch.int16 else tensor


def named_dtype(name: str) -> torch.dtype:
    """"torch.float32" -> torch.float32"""
    return getattr(torch, name.removeprefix("torch."))
