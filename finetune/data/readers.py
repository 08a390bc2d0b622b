"""Files -> tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from finetune.data.table import Table
from finetune.errors import DataError


def read_table(path: Path, source: str) -> Table:
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return _read_jsonl(text, source)
    if path.suffix in (".csv", ".tsv"):
        return _read_csv(text, source, "\t" if path.suffix == ".tsv" else ",")
    raise DataError(f"{source}: unknown format; allowed: .csv, .tsv, .jsonl")


def _read_jsonl(text: str, source: str) -> Table:
    table, rows = Table(source, []), []
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            rows.append((line, json.loads(content)))
    table.columns = list(dict.fromkeys(key for _, row in rows for key in row))
    table.rows = [[row.get(name) for name in table.columns] for _, row in rows]
    table.lines = [line for line, _ in rows]
    return table


def _read_csv(text: str, source: str, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    table = Table(source, next(reader, []))
    for row in reader:
        table.rows.append(row)
        table.lines.append(reader.line_num)
    return table
