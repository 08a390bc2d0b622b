"""Which of ordered depths are tested, and at which level, when the deepest safe one is sought by bisection.

Depths d1 < … < dn. The middle one is tested first, then the middle of the half that the result points to: at most
m = ⌈log2(n + 1)⌉ tests, each one-sided at alpha/m. Which depth comes after which result is fixed by n alone. Where
losses do not fall with depth, the depths beyond the deepest safe one that a search without an error can meet lie on one
path, so that the chance of calling any of them safe is at most alpha (Bonferroni over that path); for other losses
`analysis.simulate --table bisection` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Tested(NamedTuple):
    """One test on the way: the place of the depth in their order (from 0), and whether it was shown safe."""

    index: int
    safe: bool


def tests_needed(count: int) -> int:
    """⌈log2(count + 1)⌉: the most tests that a bisection of `count` depths makes."""
    return count.bit_length()


def level(count: int, alpha: float = 0.05) -> float:
    """The error that each single test may make, so that all together make at most alpha."""
    return alpha / max(tests_needed(count), 1)


def bisect(count: int, is_safe: Callable[[int], bool | None]) -> list[Tested]:
    """The tests that are made, in order. `is_safe(index)` is asked once for each index that is tested; None ends it."""
    low, high, path = -1, count, []
    while high - low > 1:
        middle = (low + high) // 2
        safe = is_safe(middle)
        if safe is None:
            break
        path.append(Tested(middle, bool(safe)))
        low, high = (middle, high) if path[-1].safe else (low, middle)
    return path


def deepest(path: list[Tested]) -> int | None:
    """The deepest index that was shown safe."""
    return max((test.index for test in path if test.safe), default=None)


def obstacle(path: list[Tested]) -> int | None:
    """The shallowest index beyond the deepest safe one that was tested and not shown safe."""
    return min((test.index for test in path if not test.safe), default=None)
