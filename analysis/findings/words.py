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


def points(fraction: float) -> str:
    """A difference in percentage points with one decimal; a true minus, never '−0.0'."""
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:.1f}".replace("-", "−")


def loses(loss: float) -> str:
    """'loses 0.4 points'; of a negative loss 'gains 0.4 points'."""
    return f"gains {points(-loss)} points" if points(loss).startswith("−") else f"loses {points(loss)} points"


def signed(fraction: float) -> str:
    """A change in points with its sign; a true minus."""
    text = points(abs(fraction))
    if text == "0.0":
        return text
    return ("+" if fraction > 0 else "−") + text


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def margin_text(margin: float) -> str:
    """'1 point', '0.5 points'."""
    return f"{100 * margin:g} point" + ("" if margin == 0.01 else "s")
