"""A least-recently-used cache of results for a warm worker, by the identity of objects that nobody changes.

By hand: functools.lru_cache and cachetools compare keys by equality, and comparing two data sets costs more than the
result that is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Memo:
    """The last `size` results, by the identity of some objects and the value of the rest."""

    def __init__(self, size: int):
        self.size = size
        self._results: OrderedDict[Hashable, tuple[tuple, Any]] = OrderedDict()

    def get(self, objects: tuple, values: Hashable, compute: Callable[[], Result]) -> Result:
        """`compute()` or what it gave before for the same objects and equal values."""
        key = (tuple(map(id, objects)), values)
        if key not in self._results:
            self._results[key] = (objects, compute())  # holding the objects keeps their identities theirs
        self._results.move_to_end(key)
        while len(self._results) > self.size:
            self._results.popitem(last=False)
        return self._results[key][1]
