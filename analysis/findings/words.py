"""Small pieces of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.findings.curves import Point


def count(number: int, noun: str) -> str:
    """'1 seed', '3 seeds'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def names(points: Sequence[Point]) -> str:
    return ", ".join(point.arm.name for point in points)


def seeds(which: Sequence[int]) -> str:
    return f"seed{'s' * (len(which) > 1)} {', '.join(map(str, which))}"
