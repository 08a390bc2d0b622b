"""Checksums of parameters where they lie: a GPU's weights need not come to the host to be seen unchanged.

Per tensor two sums over its 32-bit words, wrapping at 64 bits: of the words, and of the words times odd weights by
position. Integers add up to the same whatever the order. Any single changed word shows in the first, words that changed
places in the second; against accidents, as xxh3 on the host, not against adversaries.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 1 << 24  # words at a time: the sums need eight bytes a word beside the weights
_STEP = 0x9E3779B1  # neighbours' weights differ in most bits
_MASK = (1 << 64) - 1


def checksums(tensors: Iterable[Tensor]) -> list[str]:
    """One per tensor, the same on every device; a GPU is waited for once."""
    sums = [_sums(tensor.detach()) for tensor in tensors]
    if not sums:
        return []
    return [f"{first & _MASK:016x}{second & _MASK:016x}" for first, second in torch.stack(sums).tolist()]


def _sums(tensor: Tensor) -> Tensor:
    """(2,) int64"""
    words = _words(tensor)
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start:start + CHUNK].to(torch.int64)
        weights = torch.arange(start, start + len(part), device=tensor.device, dtype=torch.int64) * _STEP | 1
        total += torch.stack([part.sum(), (part * weights).sum()])
    return total


def _words(tensor: Tensor) -> Tensor:
    """(n,) the tensor's bits as integers."""
    found = tensor.contiguous().view(-1).view(torch.uint8)
    return found.view(torch.int32) if found.numel() % 4 == 0 and found.storage_offset() % 4 == 0 else found
