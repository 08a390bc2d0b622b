"""Texts that come as a list of tokens per row: read as text, joined by spaces."""

from __future__ import annotations

from typing import Any

from finetune.data.formats.table import Table
from finetune.data.schema.columns import PAIRS, SAMPLE, TEXTS
from finetune.data.schema.labels import as_list

NAMES = {*TEXTS, *(name for pair in PAIRS for name in pair), "tokens", "token", "words", "word"}


def join_tokens(table: Table) -> None:
    """In place, with a note. A set with one label per token is left as it is: its rows are no texts with a label."""
    for index, name in enumerate(table.columns):
        if name.lower() in NAMES and _is_tokens(table, index) and not _has_tags(table, index):
            for row in table.rows:
                if (tokens := as_list(row[index])) is not None:
                    row[index] = " ".join(map(str, tokens))
            table.notes.append(f"{table.source}: the tokens in {name!r} are joined by spaces")


def _cells(table: Table, index: int) -> list[Any]:
    return [row[index] for row in table.rows[:SAMPLE] if row[index] is not None]


def _is_tokens(table: Table, index: int) -> bool:
    cells = _cells(table, index)
    if not cells or (isinstance(cells[0], str) and not cells[0].lstrip().startswith("[")):  # no use to parse them all
        return False
    lists = [as_list(cell) for cell in cells]
    return (all(tokens is not None and all(isinstance(token, str) for token in tokens) for tokens in lists)
            and max(len(tokens or ()) for tokens in lists) > 1)


def _has_tags(table: Table, index: int) -> bool:
    """Whether another column has as many values as there are tokens, in every row."""
    counts = [_count(row[index]) for row in table.rows[:SAMPLE]]
    return any(None not in counts and counts == [_count(row[other]) for row in table.rows[:SAMPLE]]
               for other in range(len(table.columns)) if other != index)


def _count(cell: Any) -> int | None:
    """Members of a list, or of the text of one."""
    members = as_list(cell)
    return None if members is None else len(members)
