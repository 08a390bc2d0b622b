"""Values as Python programs hold them, made into those that a sweep file would hold."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.errors import ConfigError, Problem


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


def check_counts(**values: tuple[Any, int]) -> None:
    """Each is (value, least). Raises ConfigError with every one that is no integer or too small."""
    problems = [Problem(name, value, f"allowed: an integer >= {least}") for name, (value, least) in values.items()
                if isinstance(value, bool) or not isinstance(value, int) or value < least]
    if problems:
        raise ConfigError(problems)
