"""Checksums of parameters where they lie: a GPU's weights need not come to the host to be seen unchanged.

Per tensor two sums over its 32-bit words, wrapping at 64 bits: of the words, and of the words times odd weights by
position. Integers add up to the same whatever the order. Any single changed word shows in the first, words that changed
places in the second; against accidents, as xxh3 on the host, not against adversaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch
from torch import Tensor

CHUNK = 1 << 24  # words at a time: the sums need eight bytes a word beside the weights
_STEP = 0x9E3779B1  # neighbours' weights differ in most bits
_MASK = (1 << 64) - 1


def checksums(tensors: Iterable[Tensor]) -> list[str]:
    """One per tensor, the same on every device; a GPU is waited for once."""
    words = [_words(tensor.detach()) for tensor in tensors]
    if not words:
        return []
    sums = torch.cat([_sums_of(batch) for batch in _batches(words)])
    return [f"{first & _MASK:016x}{second & _MASK:016x}" for first, second in sums.tolist()]


def _batches(words: list[Tensor]) -> Iterator[list[Tensor]]:
    """In order, those of one kind together up to CHUNK words: a kernel's launch takes longer than a small tensor."""
    batch: list[Tensor] = []
    for one in words:
        if batch and (one.dtype != batch[0].dtype or sum(map(len, batch)) + len(one) > CHUNK):
            yield batch
            batch = []
        batch.append(one)
    yield batch


def _sums_of(batch: list[Tensor]) -> Tensor:
    """(tensors, 2) int64"""
    if len(batch) == 1:
        return _sums(batch[0]).unsqueeze(0)
    device, ends = batch[0].device, list(accumulate(map(len, batch)))
    lengths = torch.tensor([len(words) for words in batch], device=device)
    starts = torch.tensor([0, *ends[:-1]], device=device)
    values = torch.cat(batch).to(torch.int64)
    position = torch.arange(ends[-1], device=device) - starts.repeat_interleave(lengths, output_size=ends[-1])
    return torch.stack([_by_tensor(values, starts, lengths),
                        _by_tensor(values * (position * _STEP | 1), starts, lengths)], dim=1)


def _by_tensor(values: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """(words,) -> (tensors,) sums. The running sum has one dimension: over two rows CUDA's takes a thousand times as
    long (pytorch/pytorch#122170), by reckoning half a second for BERT-base."""
    so_far = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    torch.cumsum(values, 0, out=so_far[1:])
    return so_far[starts + lengths] - so_far[starts]


def _sums(words: Tensor) -> Tensor:
    """(2,) int64"""
    total = torch.zeros(2, dtype=torch.int64, device=words.device)
    for start in range(0, len(words), CHUNK):
        part = words[start:start + CHUNK].to(torch.int64)
        weights = torch.arange(start, start + len(part), device=words.device, dtype=torch.int64) * _STEP | 1
        total += torch.stack([part.sum(), (part * weights).sum()])
    return total


def _words(tensor: Tensor) -> Tensor:
    """(n,) the tensor's bits as integers."""
    found = tensor.contiguous().view(-1).view(torch.uint8)
    return found.view(torch.int32) if found.numel() % 4 == 0 and found.storage_offset() % 4 == 0 else found
