"""Values as Python programs hold them, made into those that a sweep file would hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


def plain_value(value: Any) -> Any:
    """Paths as text, numpy's numbers and arrays as Python's, tuples and ranges as lists; also inside."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch: a scalar gives a number, an array a list
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain_value(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain_value(inner) for inner in value]
    return value
