"""An entry as a trial reads it: rows by number, padded or pooled, on the device, in the dtype of a full pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from finetune.data.encoding.batches import Collator
from finetune.prefix.fill import row_offsets
from finetune.prefix.precision import as_tensor, named_dtype
from finetune.prefix.resident import DeviceTokens, residents
from finetune.prefix.store import Entry


def kept_as(entry: Entry) -> torch.dtype:
    """The dtype in which the entry's values lie in its array."""
    stated = entry.facts.get("kept")
    return named_dtype(stated) if stated else torch.from_numpy(entry.array[:0]).dtype


def as_float32(entry: Entry) -> np.ndarray:
    """The values of an entry, whatever they were kept in."""
    values = as_tensor(entry.array, kept_as(entry))
    return np.asarray(values.float().numpy() if values.dtype == torch.bfloat16 else entry.array, np.float32)


RESIDENT_ON = frozenset({"cuda"})  # kinds of device that hold what they are asked for again and again


@dataclass
class Served:
    """An entry as it is read. `rows` counts what was served; `dtype` is what a full forward pass has there.

    `resident`: the same on the device, where it has room for it.
    """

    entry: Entry
    boundary: int
    pooled: bool
    lengths: np.ndarray
    side: str
    device: torch.device = torch.device("cpu")
    rows: int = 0
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    resident: DeviceTokens | None = None

    @classmethod
    def of(cls, entry: Entry, boundary: int, split: Collator, num_layers: int, device: torch.device,
           budget: int | None = None) -> Served:
        """`budget`: bytes that activations may take on the device; None: a share of what is free."""
        lengths, pooled, side = split.encoded.lengths, boundary == num_layers, split.side
        offsets, words = row_offsets(lengths), split.encoded.words
        if pooled and words is not None:
            offsets, side = row_offsets(words.kept), "right"
        resident = residents.get(entry, kept_as(entry), offsets, pooled and words is None, side, device, budget) \
            if device.type in RESIDENT_ON else None
        return cls(entry, boundary, pooled, lengths, side, device, 0, offsets, resident)

    @property
    def dtype(self) -> torch.dtype:
        return named_dtype(self.entry.facts["dtype"])

    @property
    def total_rows(self) -> int:
        return max(1, len(self.lengths))

    def vectors(self, rows: np.ndarray) -> Tensor:
        """(rows, width)"""
        if self.resident is not None:
            return self.resident.vectors(rows).to(self.dtype)
        return self._handed_on(as_tensor(self.entry.array[rows], kept_as(self.entry)))

    def padded(self, rows: np.ndarray, tokens: int) -> Tensor:
        """(rows, tokens, width), zeros where the padding is."""
        if self.resident is not None:
            return self.resident.padded(rows, tokens).to(self.dtype)
        into = np.zeros((len(rows), tokens, self.entry.array.shape[-1]), self.entry.array.dtype)
        for position, row in enumerate(rows):
            real = self.entry.array[self.offsets[row]:self.offsets[row + 1]]
            if self.side == "left":
                into[position, tokens - len(real):] = real
            else:
                into[position, :len(real)] = real
        return self._handed_on(as_tensor(into, kept_as(self.entry)))

    def _handed_on(self, kept: Tensor) -> Tensor:
        """Moved as it is kept; its dtype changes on the device."""
        moved = _beside_what_runs(kept, self.device) if self.device.type == "cuda" else kept.to(self.device)
        return moved.to(self.dtype)


def _beside_what_runs(kept: Tensor, device: torch.device) -> Tensor:
    """On a GPU, copied while the step before still computes there: from pinned memory, on a stream of its own."""
    now = torch.cuda.current_stream(device)
    copies = _copy_stream(device)
    with torch.cuda.stream(copies):
        moved = kept.pin_memory().to(device, non_blocking=True)
    now.wait_stream(copies)
    moved.record_stream(now)  # its memory is the copies' again when what runs now has read it
    return moved


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
