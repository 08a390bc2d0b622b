"""JSON and JSON Lines -> tables."""

from __future__ import annotations

import json
from typing import Any

from finetune.data.table import Table
from finetune.errors import DataError, shown

WHOLE = ""  # the key of a file that is not divided into splits itself


def read_json_lines(text: str, source: str) -> Table:
    """One object per line. A line that is not one is rejected with its reason."""
    table = Table(source, [])
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            table.reject(line, f"not JSON ({_reason(error)})")
            continue
        if isinstance(row, dict):
            rows.append((line, row))
        else:
            table.reject(line, f"not an object but {shown(row, 40)}")
    return _fill(table, rows)


def read_json(text: str, source: str) -> dict[str, Table]:
    """Tables by split: a list of objects, {"train": [objects], "test": …}, {"data": [objects]}, or columns.

    Raises DataError for any other shape.
    """
    if not text.strip():
        raise DataError(f"{source}: the file is empty")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):  # JSON Lines under the name .json
            return {WHOLE: read_json_lines(text, source)}
        raise DataError(f"{source}: not JSON ({_reason(error)})") from error
    if _is_rows(content):
        return {WHOLE: _from_rows(content, source)}
    if isinstance(content, dict):
        parts = {str(key): value for key, value in content.items() if _is_rows(value)}
        if len(parts) == 1:
            return {WHOLE: _from_rows(*parts.values(), source)}
        if parts:
            return {key: _from_rows(rows, f"{source} [{shown(key)}]") for key, rows in parts.items()}
        columns = _as_columns(content)
        if columns is not None:
            names = list(columns)
            values = zip(*columns.values(), strict=True)
            return {WHOLE: _from_rows([dict(zip(names, row, strict=True)) for row in values], source)}
    raise DataError(f"{source}: allowed: a list of objects, an object of such lists by split, or an object of columns")


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _as_columns(content: dict[str, Any]) -> dict[str, list[Any]] | None:
    """{"text": [..], "label": [..]} or pandas' {"text": {"0": .., "1": ..}, …}."""
    columns = {str(key): list(value.values()) if isinstance(value, dict) else value for key, value in content.items()}
    if not columns or not all(isinstance(value, list) for value in columns.values()):
        return None
    return columns if len({len(value) for value in columns.values()}) == 1 else None


def _from_rows(rows: list[dict[str, Any]], source: str) -> Table:
    return _fill(Table(source, []), list(enumerate(rows, start=1)))


def _fill(table: Table, rows: list[tuple[int, dict[str, Any]]]) -> Table:
    if not rows:
        reason = f"no row can be read; {table.rejected[0]}" if table.rejected else "the file has no rows"
        raise DataError(f"{table.source}: {reason}")
    table.columns = list(dict.fromkeys(name for _, row in rows for name in row))
    table.rows = [[row.get(name) for name in table.columns] for _, row in rows]
    table.lines = [line for line, _ in rows]
    return table
