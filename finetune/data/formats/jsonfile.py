"""JSON and JSON Lines -> tables."""

from __future__ import annotations

import json
from typing import Any

from finetune.data.formats.table import Table
from finetune.data.splits.split_names import meaning_of
from finetune.errors import DataError, shown

DEPTH = 4  # objects inside objects that are looked into
SAMPLE = 100  # cells that tell a column from rows
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
    """Tables by split: rows (a list of objects, or of lists of one length), columns, or an object of these by split.

    An object around one of them ({"version": 1, "data": …}) is looked into. Raises DataError for any other shape.
    """
    if not text.strip():
        raise DataError(f"{source}: the file is empty")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):  # JSON Lines under the name .json
            return {WHOLE: read_json_lines(text, source)}
        raise DataError(f"{source}: not JSON ({_reason(error)})") from error
    if content in ([], {}):
        raise DataError(f"{source}: the file has no rows")
    tables = _tables(content, source)
    if not tables:
        raise DataError(f"{source}: allowed: rows (a list of objects, or of lists of one length), columns (an object "
                        "of lists of one length), or an object of these by split")
    return tables


def looks_like_one_value(text: str) -> bool:
    """Whether a .jsonl file is really one JSON array, which lists of one row per line are not."""
    try:
        return text.lstrip()[:1] == "[" and isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _tables(content: Any, source: str, depth: int = 0) -> dict[str, Table]:
    """Tables by split; none when there is no table in `content`."""
    rows = _rows(content)
    if rows:
        return {WHOLE: _fill(Table(source, []), list(enumerate(rows, start=1)))}
    if not isinstance(content, dict) or depth == DEPTH:
        return {}
    parts = {str(key): value for key, value in content.items()}
    empty = [key for key, value in parts.items() if value == [] and meaning_of(key)]
    found = {key: _tables(value, f"{source} [{shown(key)}]", depth + 1) for key, value in parts.items()}
    found = {key: tables for key, tables in found.items() if tables}
    if empty and found:
        raise DataError(f"{source} [{shown(empty[0])}]: the split has no rows")
    if len(found) == 1:
        ((key, tables),) = found.items()
        return tables
    return {key: tables[WHOLE] for key, tables in found.items() if WHOLE in tables}


def _rows(value: Any) -> list[dict[str, Any]] | None:
    """Rows as objects, whether `value` holds them as objects, as lists, or as columns; None when it holds no rows."""
    if isinstance(value, list) and value:
        if all(isinstance(row, dict) for row in value):
            return value
        if all(isinstance(row, list) for row in value) and len({len(row) for row in value}) == 1 and len(value[0]) > 1:
            return [{f"column_{number}": cell for number, cell in enumerate(row, start=1)} for row in value]
    if isinstance(value, dict) and _by_index(value):
        return list(value.values())
    if isinstance(value, dict):
        columns = _columns(value)
        return columns and [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return None


def _by_index(value: dict[str, Any]) -> bool:
    """pandas' orient="index": {"0": {"text": …, "label": …}, "1": …}, whose keys are no splits.

    Rows may lack a column; two that all of them have tell them from anything else.
    """
    rows = list(value.values())
    if len(rows) < 2 or not all(isinstance(row, dict) and row for row in rows) or any(map(meaning_of, map(str, value))):
        return False
    flat = not any(isinstance(cell, dict | list) for row in rows[:SAMPLE] for cell in row.values())
    numbers = set(map(str, range(len(rows[0]))))  # the other way round the inner keys are the rows' numbers
    agree = len({tuple(row) for row in rows}) == 1 or len(set.intersection(*map(set, rows))) > 1
    return flat and agree and not set(map(str, rows[0])) <= numbers


def _columns(content: dict[str, Any]) -> dict[str, list[Any]] | None:
    """{"text": […], "label": […]}, or pandas' {"text": {"0": …, "1": …}, …} and {"columns": […], "data": [[…], …]}."""
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        names, rows = [str(name) for name in content["columns"]], content["data"]
        fits = rows and all(isinstance(row, list) and len(row) == len(names) for row in rows)
        return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if fits else None
    columns = {str(key): list(value.values()) if isinstance(value, dict) else value for key, value in content.items()}
    if not columns or not all(isinstance(value, list) and value for value in columns.values()):
        return None
    cells = [cell for value in columns.values() for cell in value[:SAMPLE]]
    nested = any(isinstance(cell, dict) or isinstance(cell, list) and cell and isinstance(cell[0], dict | list)
                 for cell in cells)
    by_split = any(isinstance(cell, list) for cell in cells) and any(map(meaning_of, columns))
    return None if nested or by_split or len({len(value) for value in columns.values()}) > 1 else columns


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def _fill(table: Table, rows: list[tuple[int, dict[str, Any]]]) -> Table:
    if not rows:
        reason = f"no row can be read; {table.rejected[0]}" if table.rejected else "the file has no rows"
        raise DataError(f"{table.source}: {reason}")
    rows = [(line, _flat(row)) for line, row in rows]
    table.columns = list(dict.fromkeys(name for _, row in rows for name in row))
    table.rows = [[row.get(name) for name in table.columns] for _, row in rows]
    table.lines = [line for line, _ in rows]
    if not table.columns:
        raise DataError(f"{table.source}: the rows have no columns")
    return table


def _flat(row: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """{"data": {"text": …}} -> {"data.text": …}: a column inside a column can be named like any other."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and value and depth < DEPTH:
            flat |= {f"{name}.{inner}": cell for inner, cell in _flat(value, depth + 1).items()}
        else:
            flat[name] = value
    return flat
