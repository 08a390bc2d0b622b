"""CSV and TSV as they really are: unknown delimiter, stray quotes, quoted newlines, no header, too many fields.

On top of the standard library's `csv`. By hand are the guesses, the line number of every row (for messages) and what
happens to a broken one: rejected with its reason, where pandas stops, skips or fills.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from finetune.data.formats.table import Table
from finetune.data.schema.columns import usual_name
from finetune.errors import DataError

_SEPARATOR_LINE = re.compile(r"sep=([,;|\t])")  # what Excel writes above the header
_DELIMITERS = (",", "\t", ";", "|")
_SAMPLE = 200  # lines or records that decide delimiter and header
_FIELD_LIMIT = 1 << 24  # bytes; the module's default of 128 KiB is less than a long document
_LONG_CELL = 60  # characters: longer than a column's name
_RAW_SHARE = 0.98  # of the lines must have the right number of fields before quotes are taken as plain characters


def read_delimited(text: str, source: str, suffix: str) -> Table:
    """A table of strings. Rows that cannot be read are in `rejected`; nothing is turned into a missing value.

    Raises DataError for a file without a row.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    lines = list(io.StringIO(text, newline=""))
    while lines and not lines[0].strip():
        lines.pop(0)
    offset = text.count("\n", 0, len(text) - len("".join(lines)))
    if not lines:
        raise DataError(f"{source}: the file is empty")
    named = _SEPARATOR_LINE.fullmatch(lines[0].strip("\r\n"))
    if named:
        lines.pop(0)
        offset += 1
    if not lines:
        raise DataError(f"{source}: the file has no rows")
    delimiter = named[1] if named else _delimiter(lines, suffix)
    raw = delimiter == "\t" and _quotes_are_plain(lines)
    reader = _Reader(lines, delimiter, raw, offset, None if raw else _escape(lines, delimiter))
    records = list(reader)
    has_header = _has_header(records)
    table = Table(source, _names(records[0][1]) if has_header else _numbered(records), delimiter=delimiter)
    for line in reader.unreadable:
        table.reject(line, "a quote is opened and never closed")
    _fill(table, records[1:] if has_header else records)
    if not table.rows:
        raise DataError(f"{source}: the file has a header but no rows" if not table.rejected
                        else f"{source}: no row can be read; {table.rejected[0]}")
    if raw:
        table.notes.append(f"{source}: its quotes are not balanced, so they are read as plain characters")
    if reader.repaired:
        table.notes.append(f"{source}: {reader.repaired} rows open a quote that nothing closes; "
                           "the quote is read as a plain character there")
    return table


def _delimiter(lines: Sequence[str], suffix: str) -> str:
    """The character that cuts most lines into the same number of fields; the suffix wins where it works at all."""
    if suffix == ".tsv" and "\t" in lines[0]:
        return "\t"
    scores = {}
    for delimiter in _DELIMITERS:
        widths = Counter(len(fields) for fields in csv.reader(lines[:_SAMPLE], delimiter=delimiter))
        width, count = widths.most_common(1)[0]
        scores[delimiter] = (count / widths.total() if width > 1 else 0.0, delimiter == ",", width)
    return max(_DELIMITERS, key=scores.__getitem__)


def _escape(lines: Sequence[str], delimiter: str) -> str | None:
    """The backslash where quotes inside a quoted field stand behind one, as databases export them."""
    sample = [line for line in lines if '\\"' in line][:_SAMPLE]
    if not sample:
        return None
    width = len(next(csv.reader([lines[0]], delimiter=delimiter)))

    def fitting(escape: str | None) -> int:
        return sum(len(fields) == width for fields in csv.reader(sample, delimiter=delimiter, escapechar=escape))

    return "\\" if fitting("\\") > fitting(None) else None


def _quotes_are_plain(lines: Sequence[str]) -> bool:
    """Whether a tab-separated file uses quotes as characters: they do not pair up, yet tabs alone cut all lines well.

    GLUE's files are like that; a CSV reader would glue hundreds of their rows together.
    """
    rows = [line.rstrip("\r\n").split("\t") for line in lines]
    width = len(rows[0])
    stray = any(field.startswith('"') and not _is_quoted(field) for row in rows for field in row)
    return stray and sum(len(row) >= width for row in rows) >= _RAW_SHARE * len(rows) and not _parses(lines, width)


def _parses(lines: Sequence[str], width: int) -> bool:
    """Whether a strict reader finds `width` fields in every record, i.e. all quotes pair up."""
    try:
        return all(len(fields) == width for fields in csv.reader(lines, delimiter="\t", strict=True) if fields)
    except csv.Error:
        return False


def _is_quoted(field: str) -> bool:
    return len(field) >= 2 and field.endswith('"') and '"' not in field[1:-1].replace('""', "")


class _Reader:
    """Iterates over (line, fields), line counted from 1; blank lines are no records.

    A quoted field may hold newlines. One that swallows whole rows was never closed: its first line is then read
    with the quote as a plain character, or listed in `unreadable`, and reading goes on with the next line.
    """

    def __init__(self, lines: Sequence[str], delimiter: str, raw: bool, offset: int, escape: str | None = None):
        self.lines, self.raw, self.offset = lines, raw, offset
        self.delimiter, self.rules = delimiter, {"delimiter": delimiter, "escapechar": escape}
        self.position = 0
        self.width = len(self._alone(0))
        self.repaired = 0
        self.unreadable: list[int] = []

    def _next_line(self) -> Iterator[str]:
        while self.position < len(self.lines):
            self.position += 1
            yield self.lines[self.position - 1]

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while self.position < len(self.lines):
            start = self.position
            fields = self._plain(start) if self.raw else next(csv.reader(self._next_line(), **self.rules))
            if self.raw:
                self.position = start + 1
            elif self._ran_away(start, fields):
                fields = self._plain(start)
                self.position = start + 1
                if len(fields) != self.width:
                    self.unreadable.append(start + self.offset + 1)
                    continue
                self.repaired += 1
            if any(field.strip() for field in fields):
                yield start + self.offset + 1, fields

    def _plain(self, index: int) -> list[str]:
        return self.lines[index].rstrip("\r\n").split(self.delimiter)

    def _alone(self, index: int) -> list[str]:
        return next(csv.reader([self.lines[index]], **self.rules))

    def _ran_away(self, start: int, fields: list[str]) -> bool:
        """Whether the record that began at line `start` swallowed rows because a quote was never closed."""
        inside = range(start + 1, self.position - 1)
        if self.position - start == 1:
            return False
        if len(fields) != self.width:
            return True
        whole_rows = sum(len(self._alone(index)) == self.width for index in inside)
        enough = 1 if self.delimiter == "\t" else 3
        return len(inside) >= enough and whole_rows >= 0.9 * len(inside)


def _has_header(records: list[tuple[int, list[str]]]) -> bool:
    """Whether the first record names columns: it does unless it looks like the rows below it."""
    first, rest = records[0][1], [fields for _, fields in records[1:_SAMPLE]]
    below = [{fields[index].strip() for fields in rest if index < len(fields)} for index in range(len(first))]
    cells = [(cell.strip(), values) for cell, values in zip(first, below, strict=True) if cell.strip()]
    if any(cell in values for cell, values in cells):
        return False
    if any(usual_name(cell) for cell, _ in cells):
        return True
    return not any(len(cell) > _LONG_CELL or _is_number(cell) for cell, _ in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbered(records: list[tuple[int, list[str]]]) -> list[str]:
    """column_1, column_2, … for a file without a header; as many as most records have fields."""
    width = Counter(len(fields) for _, fields in records).most_common(1)[0][0]
    return [f"column_{number}" for number in range(1, width + 1)]


def _names(header: list[str]) -> list[str]:
    """Column names: unique, without the unnamed ones at the end (what stands there has spilled)."""
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    unique: list[str] = []
    for number, name in enumerate(names, start=1):
        name = name or f"column_{number}"
        unique.append(name if name not in unique else f"{name}_{number}")
    return unique


def _fill(table: Table, records: list[tuple[int, list[str]]]) -> None:
    width = len(table.columns)
    for line, fields in records:
        if len(fields) < width:
            table.reject(line, f"{len(fields)} fields, the header has {width}")
            continue
        surplus = fields[width:]
        while surplus and not surplus[-1].strip():
            surplus.pop()
        if surplus:
            table.spilled[len(table.rows)] = surplus
        table.rows.append(fields[:width])
        table.lines.append(line)
