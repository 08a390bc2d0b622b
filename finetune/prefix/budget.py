"""How much may be kept, and which depths are worth it. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from finetune.errors import ConfigError, Problem
from finetune.prefix.store import PrefixStore, free_bytes

DISK_SHARE, MEMORY_SHARE = 0.25, 0.5  # of what is free; entries are mapped, so what does not fit is read again
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class PrefixHint:
    """What a sweep tells its workers: the budget, and per prefix how many trials want which boundary.

    `wanted` {prefix id: {number of frozen layers: trials}}; `budget` in bytes, None: a share of what is free.
    """

    budget: int | None = None
    wanted: Mapping[str, Mapping[int, int]] = field(default_factory=dict)


_hint = PrefixHint()


def configure(hint: PrefixHint) -> None:
    """Set what this process knows of its sweep. It decides what is kept, never what a trial computes."""
    global _hint
    _hint = hint


def current_hint() -> PrefixHint:
    return _hint


def hint_for(descriptions: Iterable[Mapping[str, Any]], budget: int | None) -> PrefixHint:
    """What the trials of a sweep want, from what ResolvedTrial.describe() says of each."""
    wanted: dict[str, dict[int, int]] = {}
    for description in descriptions:
        for boundary in description.get("prefix_boundaries", ()):
            counts = wanted.setdefault(description["prefix_id"], {})
            counts[boundary] = counts.get(boundary, 0) + 1
    return PrefixHint(budget if budget is not None else sweep_budget(PrefixStore()), wanted)


def parse_size(text: str, name: str = "--prefix_budget") -> int:
    """'20GB', '512 MiB' or bytes -> bytes. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found.group(2).upper()) if found else None
    if found is None or unit is None:
        raise ConfigError([Problem(name, text, "allowed: a size such as 20GB or 512MiB, or 0 (keeps nothing)")])
    return int(float(found.group(1)) * unit)


def disk_budget(store: PrefixStore, budget: int | None = None) -> int:
    """Bytes that the whole cache may take: as asked for, else a share of what would be free without it."""
    if budget is not None:
        return budget
    held = sum(listing.size for listing in store.listing())
    return int((free_bytes(store.root) + held) * DISK_SHARE)


def sweep_budget(store: PrefixStore, budget: int | None = None) -> int:
    """Bytes that one set of texts may take: what is read in every epoch has to stay in memory."""
    if budget is not None:
        return budget
    return min(disk_budget(store), int(psutil.virtual_memory().available * MEMORY_SHARE))


def worth_keeping(wanted: Mapping[int, int], sizes: Mapping[int, int], budget: int) -> set[int]:
    """The boundaries to keep: those that save the most layer passes within `budget` bytes.

    `wanted` {boundary: trials}, `sizes` {boundary: bytes}. A trial whose own boundary is not kept starts from the
    deepest one below it, and computes the frozen layers between the two.
    """
    kept: set[int] = set()
    while True:
        left = budget - sum(sizes[depth] for depth in kept)
        gains = {depth: _saved(wanted, kept | {depth}) - _saved(wanted, kept)
                 for depth in sizes if depth not in kept and sizes[depth] <= left}
        # Greedy by gain per byte: within 1 - 1/e of the best choice, since the gain is submodular.
        best = max(gains, key=lambda depth: (gains[depth] / max(1, sizes[depth]), -depth), default=None)
        if best is None or gains[best] <= 0:
            return kept
        kept.add(best)


def _saved(wanted: Mapping[int, int], kept: set[int]) -> int:
    return sum(trials * max((depth for depth in kept if depth <= boundary), default=0)
               for boundary, trials in wanted.items())
