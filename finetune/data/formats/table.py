"""Rows as a source gives them, before anybody knows which column is the text."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from finetune.data.task_data import RejectedRow


@dataclass
class Table:
    """Rows of one split as its file or hub split gives them.

    columns      names, in order
    rows         values per row, as long as `columns`
    lines        where each row stands in its file, counted from 1
    spilled      row number -> values beyond the last column (a broken quote, a comma too many)
    label_names  column -> names of its integer labels, where the source declares them
    parts        (first row, source) of each file that the table was joined from, after the first
    """

    source: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    spilled: dict[int, list[str]] = field(default_factory=dict)
    delimiter: str = ","
    label_names: dict[str, list[str]] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: list[tuple[int, str]] = field(default_factory=list)

    def column(self, name: str) -> list[Any]:
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    def source_of(self, row: int) -> str:
        """The file that a row came from."""
        part = bisect_right(self.parts, row, key=lambda entry: entry[0])
        return self.parts[part - 1][1] if part else self.source

    def reject(self, line: int, reason: str) -> None:
        self.rejected.append(RejectedRow(self.source, line, reason))
