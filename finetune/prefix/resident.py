"""Kept activations on the device: the tokens of all rows one after the other, gathered into padded batches by index.

Loaded once per process and entry, shared by all trials of a worker. Within a budget; what does not fit is served from
the host. On a CPU the memory-mapped file is as near, so nothing is loaded there unless a test asks for it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.prefix.precision import as_tensor
from finetune.prefix.store import Entry

FREE_SHARE = 0.3  # of what is free on the device when an entry is loaded; the rest is the trial's
_PIECE_BYTES = 1 << 28  # pinned at a time while an entry is copied


@dataclass
class DeviceTokens:
    """`flat` (tokens of all rows and one of zeros, width) or pooled (rows, width), as kept; `offsets` (rows + 1,)."""

    flat: Tensor
    offsets: Tensor
    side: str

    def vectors(self, rows: np.ndarray) -> Tensor:
        """(rows, width)"""
        return self.flat.index_select(0, self._on_device(rows))

    def padded(self, rows: np.ndarray, tokens: int) -> Tensor:
        """(rows, tokens, width), zeros where the padding is."""
        return self.flat.index_select(0, self.places(self._on_device(rows), tokens).view(-1)).view(
            len(rows), tokens, self.flat.shape[-1])

    def places(self, rows: Tensor, tokens: int) -> Tensor:
        """Where in `flat` each token of a padded batch lies; the last place, of zeros, where padding is.

        rows (rows,) on the device -> (rows, tokens)
        """
        starts, ends = self.offsets[rows].unsqueeze(1), self.offsets[rows + 1].unsqueeze(1)
        position = torch.arange(tokens, device=self.flat.device).unsqueeze(0)
        found = ends - tokens + position if self.side == "left" else starts + position
        return torch.where((found >= starts) & (found < ends), found, len(self.flat) - 1)

    def _on_device(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(rows, np.int64)).to(self.flat.device, non_blocking=True)


class Residents:
    """What this process holds on its devices, least recently used first."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, torch.device], DeviceTokens] = OrderedDict()

    def get(self, entry: Entry, kept: torch.dtype, offsets: np.ndarray, pooled: bool, side: str, device: torch.device,
            budget: int | None = None) -> DeviceTokens | None:
        """The entry on the device, loaded where it is not there yet; None: there is no room for it.

        `budget`: bytes that all entries may take on a device; None: a share of what is free.
        """
        key = (entry.key, device)
        if key not in self._held:
            needed = entry.array.nbytes
            if not self._make_room(needed, device, budget):
                return None
            try:
                self._held[key] = DeviceTokens(_load(entry, kept, pooled, device),
                                               torch.from_numpy(np.asarray(offsets, np.int64)).to(device), side)
            except torch.OutOfMemoryError:
                self.release(device)
                return None
        self._held.move_to_end(key)
        return self._held[key]

    def held_bytes(self, device: torch.device) -> int:
        return sum(held.flat.nbytes for (_, where), held in self._held.items() if where == device)

    def release(self, device: torch.device) -> None:
        """Let go of everything on a device; trials that still use an entry keep it alive."""
        for key in [key for key in self._held if key[1] == device]:
            del self._held[key]

    def _make_room(self, needed: int, device: torch.device, budget: int | None) -> bool:
        """Let go of what was used least recently until `needed` bytes more fit; False where they never will."""
        held = self.held_bytes(device)
        limit = _limit(device, held) if budget is None else min(budget, _limit(device, held))
        if needed > limit:
            return False
        for key in [key for key in self._held if key[1] == device]:
            if self.held_bytes(device) + needed <= limit:
                break
            del self._held[key]
        return True


residents = Residents()


def _limit(device: torch.device, held: int) -> int:
    """Bytes that entries may take on a device, what they hold already included."""
    if device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + unused + held) * FREE_SHARE)


def _load(entry: Entry, kept: torch.dtype, pooled: bool, device: torch.device) -> Tensor:
    """The whole array on the device, one row of zeros at the end; through pinned memory on a GPU, piece by piece."""
    rows, width = entry.array.shape
    flat = torch.zeros(rows + (not pooled), width, dtype=as_tensor(entry.array[:0], kept).dtype, device=device)
    step = max(1, _PIECE_BYTES // max(1, width * entry.array.itemsize))
    for start in range(0, rows, step):
        piece = as_tensor(entry.array[start:start + step], kept)
        flat[start:start + len(piece)].copy_(piece.pin_memory() if device.type == "cuda" else piece)
    return flat
