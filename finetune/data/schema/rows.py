"""The rows of one table that can be used, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from finetune.data.formats.decoding import broken_bytes, clean
from finetune.data.formats.table import Table
from finetune.data.schema.columns import Columns, require_columns
from finetune.data.schema.labels import LabelSpace, RawLabel, class_name, encode_labels, is_missing
from finetune.data.task_data import RejectedRow, Split
from finetune.errors import DataError, shown

KEPT_BACK = {"-1": "the label is -1 (not published)"}  # GLUE's label of a row whose label is not published
NO_GOLD = {"-": "the label is '-' (the annotators did not agree)"}  # SNLI's and MNLI's, in the column gold_label
MOST_REJECTED = 0.5  # a source with more unusable rows than this is not what it seems


@dataclass
class Rows:
    """Texts, labels as written, and ids, row by row; `rejected` and `notes` say what was left out or mended."""

    source: str
    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[RawLabel] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, table: Table, split: str, columns: Columns) -> Rows:
        """Rows with a text, whether or not they have a label."""
        require_columns(table, columns.text, "text_column")
        rows = cls(table.source, rejected=list(table.rejected))
        text_at = [table.columns.index(name) for name in columns.text]
        label_at = [table.columns.index(name) for name in columns.label if name in table.columns]
        label_at = label_at if len(label_at) == len(columns.label) else []
        spill = _Spill(table, columns)
        for number, (values, line) in enumerate(zip(table.rows, table.lines, strict=True)):
            reason = spill.problem(number) or text_problem(values, text_at, columns.text)
            if reason:
                rows.rejected.append(RejectedRow(table.source_of(number), line, reason))
                continue
            texts = [clean(values[index]) for index in text_at]
            texts[-1] += spill.rest(number)
            rows.texts.append(tuple(texts))
            rows.labels.append(RawLabel(_label(values, label_at), f"{table.source_of(number)} line {line}"))
            rows.ids.append(f"{split}:{number}")
            rows.lines.append(line)
        rows.notes += spill.notes()
        if not rows.texts:
            raise DataError(f"{table.source}: no row can be used; {rows.rejected[0]}")
        return rows

    @property
    def unlabelled(self) -> bool:
        """Whether no row has a label: none is there, or all are -1 as in GLUE's test splits."""
        return all(is_missing(label.value) or class_name(label.value) in KEPT_BACK for label in self.labels)

    def usable(self, no_label: Mapping[str, str]) -> Rows:
        """Without the rows that have no label: none, or a key of `no_label`, which gives the reason.

        Raises DataError when most rows are unusable.
        """
        rows = replace(self, texts=[], labels=[], ids=[], lines=[], rejected=list(self.rejected))
        for texts, label, name, line in zip(self.texts, self.labels, self.ids, self.lines, strict=True):
            reason = _label_problem(label.value, no_label)
            if reason:
                rows.rejected.append(RejectedRow(label.where.rpartition(" line ")[0], line, reason))
                continue
            rows.texts.append(texts)
            rows.labels.append(label)
            rows.ids.append(name)
            rows.lines.append(line)
        rows.rejected.sort(key=lambda row: row.line)
        total = len(rows.texts) + len(rows.rejected)
        if len(rows.rejected) > MOST_REJECTED * total:
            raise DataError(f"{self.source}: {len(rows.rejected)} of {total} rows cannot be used; {rows.rejected[0]}")
        return rows

    def split(self, space: LabelSpace) -> Split:
        return Split(self.texts, encode_labels(self.labels, space), np.array(self.ids))


def text_problem(values: Sequence[Any], text_at: Sequence[int], names: Sequence[str]) -> str | None:
    """Why a row's texts, at the indices `text_at` of its values, cannot be used."""
    for index, name in zip(text_at, names, strict=True):
        value = values[index]
        if value is None:
            return f"{shown(name)} is missing"
        if not isinstance(value, str | int | float):
            return f"{shown(name)} is not text but {shown(value, 40)}"
        if not str(value).strip():
            return f"{shown(name)} is empty"
        if broken_bytes(str(value)):
            return f"{shown(name)} holds bytes that are not UTF-8, which the rest of the file is"
    return None


def _label_problem(value: Any, no_label: Mapping[str, str]) -> str | None:
    if is_missing(value):
        return "the label is missing"
    if no_label and class_name(value) in no_label:
        return no_label[class_name(value)]
    if isinstance(value, str) and value != clean(value):
        return f"the label {shown(value, 40)} holds bytes that are no text"
    return None


def _label(values: list[Any], label_at: list[int]) -> Any:
    """The label's value; the list of values when several columns hold 0 and 1."""
    if not label_at:
        return None
    if len(label_at) == 1:
        return values[label_at[0]]
    return [values[index] for index in label_at]


class _Spill:
    """Values beyond the header's last column.

    They continue the text when the text is the last column (an unquoted comma, a broken quote); beyond a
    tab-separated row they are comments; anything else has shifted the columns, and the row cannot be used.
    """

    def __init__(self, table: Table, columns: Columns):
        self.table = table
        self.joins = bool(table.columns) and table.columns[-1] == columns.text[-1]
        self.ignores = table.delimiter == "\t" and not self.joins
        self.seen = 0

    def problem(self, row: int) -> str | None:
        if row not in self.table.spilled:
            return None
        self.seen += 1
        if self.joins or self.ignores:
            return None
        width = len(self.table.columns)
        return f"{width + len(self.table.spilled[row])} fields, the header has {width}"

    def rest(self, row: int) -> str:
        if not self.joins or row not in self.table.spilled:
            return ""
        return "".join(self.table.delimiter + value for value in self.table.spilled[row])

    def notes(self) -> list[str]:
        if self.seen and self.joins:
            return [f"{self.table.source}: the text of {self.seen} rows runs on beyond its column; it is joined again"]
        if self.seen and self.ignores:
            return [f"{self.table.source}: {self.seen} rows have fields beyond the last column, which are not used"]
        return []
