"""Texts that come as a list of tokens per row: read as text, joined by spaces."""

from __future__ import annotations

from typing import Any

from finetune.data.formats.table import Table
from finetune.data.schema.columns import SAMPLE, TEXTS

NAMES = {*TEXTS, "tokens", "token", "words", "word"}


def join_tokens(table: Table) -> None:
    """In place, with a note. A set with one label per token is left as it is: its rows are no texts with a label."""
    for index, name in enumerate(table.columns):
        if name.lower() in NAMES and _is_tokens(table, index) and not _has_tags(table, index):
            for row in table.rows:
                if isinstance(row[index], list):
                    row[index] = " ".join(map(str, row[index]))
            table.notes.append(f"{table.source}: the tokens in {name!r} are joined by spaces")


def _cells(table: Table, index: int) -> list[Any]:
    return [row[index] for row in table.rows[:SAMPLE] if row[index] is not None]


def _is_tokens(table: Table, index: int) -> bool:
    cells = _cells(table, index)
    return bool(cells) and all(isinstance(cell, list) and all(isinstance(token, str) for token in cell)
                               for cell in cells) and max(map(len, cells)) > 1


def _has_tags(table: Table, index: int) -> bool:
    """Whether another column has as many values as there are tokens, in every row."""
    return any(all(isinstance(row[other], list) and isinstance(row[index], list) and len(row[other]) == len(row[index])
                   for row in table.rows[:SAMPLE]) for other in range(len(table.columns)) if other != index)
