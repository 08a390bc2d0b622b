"""Texts with marked spans, as annotation tools export them -> a table of words and BIO tags.

    {"text": …, "entities": [{"start": 0, "end": 5, "label": "PER"}, …]}      also start_offset and end_offset (doccano)
    {"text": …, "label": [[0, 5, "PER"], …]}                                  doccano; [text, {"entities": […]}] (spaCy)
    {"data": {"text": …}, "annotations": [{"result": [{"value": {"start": 0, "end": 5, "labels": ["PER"]}}]}]}
                                                                              Label Studio, and its shorter JSON-MIN

Positions count characters from 0, the end is the first one after the span.
"""

from __future__ import annotations

from typing import Any

from finetune.data.formats.decoding import clean
from finetune.data.formats.table import Table
from finetune.data.schema.labels import as_list
from finetune.data.schema.tags import IOB2, Span, written
from finetune.data.schema.words import Sentence, split_words
from finetune.data.task_data import RejectedRow
from finetune.errors import DataError

TOKENS, TAGS = "tokens", "tags"
_TEXTS = ("text", "sentence", "content", "data", "column_1")
_SPANS = ("entities", "spans", "labels", "label", "annotations", "annotation", "ner")
_START, _END, _LABEL = ("start", "start_offset"), ("end", "end_offset"), ("label", "labels", "type", "entity")

Marked = tuple[int, int, str]  # first character, the one after the last, label


def tag_spans(table: Table) -> None:
    """In place, with a note, where a column holds texts and another their spans; else the table stays as it is.

    A span marks every word that it touches. A row whose spans overlap or leave the text is rejected with the reason.
    Raises DataError where that is every row.
    """
    text, spans = _named(table, _TEXTS), _named(table, _SPANS)
    if text is None or spans is None or TOKENS in table.columns:
        return
    read = [marked(row[spans]) for row in table.rows]
    if not any(read) or any(found is None for found in read):
        return
    if not all(isinstance(row[text], str) for row in table.rows):
        return
    rows, lines, kept, inside = [], [], [], 0
    for number, (row, found) in enumerate(zip(table.rows, read, strict=True)):
        sentence = split_words(row[text])
        placed, cuts, reason = _placed(sentence, found)
        if reason:
            table.rejected.append(RejectedRow(table.source_of(number), table.lines[number], reason))
            continue
        inside += cuts
        kept.append(number)
        lines.append(table.lines[number])
        rows.append([[clean(word) for word in sentence.words], written(placed, len(sentence.words), IOB2)])
    if not kept:
        raise DataError(f"{table.source}: no row with spans can be used; {table.rejected[0]}")
    table.parts = [(sum(number < first for number in kept), source) for first, source in table.parts]
    names = (table.columns[text], table.columns[spans])
    table.columns, table.rows, table.lines = [TOKENS, TAGS], rows, lines
    table.notes.append(f"{table.source}: the spans in {names[1]!r} are tags of the words in {names[0]!r}"
                       + (f"; {inside} begin or end inside a word and mark the whole of it" if inside else ""))


def marked(cell: Any) -> list[Marked] | None:
    """The spans of one text; None where the cell holds none (an empty list is a text without entities)."""
    members = as_list(cell)
    if members is None:
        return None
    if members and all(isinstance(member, dict) and "result" in member for member in members):
        # Label Studio: what several people marked; the first that was not skipped counts.
        chosen = next((member for member in members if not member.get("was_cancelled")), {"result": []})
        values = [one.get("value", one) if isinstance(one, dict) else one for one in chosen["result"]]
        return [span for value in values if (span := _span(value))]
    spans = [_span(member) for member in members]
    return None if None in spans else spans


def _span(value: Any) -> Marked | None:
    if isinstance(value, dict):
        value = [next((value[name] for name in names if name in value), None) for names in (_START, _END, _LABEL)]
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    start, end, label = value
    label = label[0] if isinstance(label, list) and label else label
    numbers = all(isinstance(at, int) and not isinstance(at, bool) for at in (start, end))
    return (start, end, label.strip()) if numbers and isinstance(label, str) and label.strip() else None


def _placed(sentence: Sentence, found: list[Marked]) -> tuple[list[Span], int, str | None]:
    """(entities by word, how many begin or end inside a word, why the row cannot be used)."""
    placed: list[Span] = []
    taken: set[int] = set()
    inside = 0
    for start, end, label in sorted(found):
        if not 0 <= start < end <= len(sentence.text):
            return [], 0, f"the span {start} to {end} is not in its text of {len(sentence.text)} characters"
        words = [at for at, (first, after) in enumerate(sentence.places) if first < end and start < after]
        if not words:
            return [], 0, f"the span {start} to {end} holds no word"
        if taken & set(words):
            return [], 0, f"the span {start} to {end} shares a word with the one before it, and a word has one tag"
        taken |= set(words)
        inside += sentence.places[words[0]][0] < start or sentence.places[words[-1]][1] > end
        placed.append((label, words[0], words[-1]))
    return placed, inside, None


def _named(table: Table, names: tuple[str, ...]) -> int | None:
    """The first column with one of these names, or with one of them at the end of a dotted name."""
    ends = [name.lower().rpartition(".")[2] for name in table.columns]
    return next((ends.index(name) for name in names if name in ends), None)
