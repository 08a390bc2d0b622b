"""What an adaptive sweep set out to do, from the section "adaptive" of its sweep.json (statistics/sequential.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.statistics import sequential


@dataclass(frozen=True)
class AdaptivePlan:
    """Candidates in the order of what is frozen, and the fresh seeds in the order in which looks use them."""

    candidates: tuple[int, ...]
    margin: float
    alpha: float
    max_seeds: int
    seeds: tuple[int, ...]
    decisions: tuple[Mapping[str, Any], ...]  # as the sweep took them
    trained_ahead_unused: int

    @property
    def looks(self) -> tuple[int, ...]:
        return sequential.looks(self.max_seeds)

    def last_look(self, known: set[int]) -> int:
        """The most seeds of a look all of which are among `known`; 0 before the first."""
        return max((look for look in self.looks if set(self.seeds[:look]) <= known), default=0)


def read_adaptive(content: Mapping[str, Any]) -> AdaptivePlan | None:
    """None where the sweep was not adaptive. Raises ValueError, KeyError or TypeError where the section is damaged."""
    section = content.get("adaptive")
    if not section:
        return None
    max_seeds = int(section["max_seeds"])
    sequential.looks(max_seeds)
    return AdaptivePlan(
        tuple(int(depth) for depth in section["candidates"]), float(section["margin"]), float(section["alpha"]),
        max_seeds, tuple(int(seed) for seed in section["seeds"]), tuple(dict(d) for d in section.get("decisions", ())),
        int(section.get("trained_ahead_unused", 0)),
    )
