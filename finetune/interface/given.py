"""Values as Python programs hold them, made into those that a sweep file would hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, DataError, Problem


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


def as_path(name: str, value: Any, allowed: str = "a path") -> Path:
    """Raises ConfigError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError([Problem(name, value, f"allowed: {allowed}")])
    return Path(value)


def as_texts(texts: Any) -> list[str | list[Any]]:
    """A row per text, pair or list of words. Raises ConfigError for what is no list of them (a table would give its
    columns' names), DataError for a row that is neither."""
    if isinstance(texts, str | Mapping) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        raise ConfigError([Problem("texts", texts if isinstance(texts, str) else f"a {type(texts).__name__}",
                                   "allowed: a list of texts, also for a single one")])
    rows = [plain_value(row) for row in texts]
    for line, row in enumerate(rows, 1):
        if not isinstance(row, str | list):
            raise DataError(f"texts line {line}: {row!r} is neither a text nor a pair of texts")
    return rows
