"""Sets with one label per token: found in a source's tables, checked, split. Rows are sentences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from finetune.config import TrialConfig
from finetune.data.formats.table import Table
from finetune.data.schema.columns import SAMPLE, Columns, require_columns
from finetune.data.schema.labels import as_list
from finetune.data.schema.tags import OUTSIDE, Checked, check_tags
from finetune.data.sources.source import Source
from finetune.data.task_data import NO_TAG, TAGGED, RejectedRow, Split
from finetune.errors import DataError, shown

_TOKENS = ("tokens", "words", "token", "word", "text", "sentence")
_TAGS = ("ner_tags", "tags", "ner", "labels", "label", "upos", "pos_tags", "pos", "tag")


def tagged_columns(source: Source, config: TrialConfig) -> Columns | None:
    """(tokens, tags) where train holds a list of words beside a list of as many tags, and the task allows it.

    Raises DataError where `task: token_classification` was asked for and there are none.
    """
    if config.task not in ("auto", TAGGED) or "train" not in source.tables:
        return None
    table = source.tables["train"]
    tokens = _asked(table, config.text_column, "text_column") or _first(table, _TOKENS, _is_words)
    tags = tokens and (_asked(table, config.label_column, "label_column")
                       or _first(table, _TAGS, lambda cells: True, beside=tokens))
    if tokens and tags and _side_by_side(table, tokens, tags):
        return Columns((tokens,), (tags,), {tokens: "a list of words", tags: "as many tags as there are words"})
    if config.task == TAGGED:
        raise DataError(f"{source.name}: task = {TAGGED} needs a column with a list of words and one with as many "
                        f"tags; the columns are {', '.join(map(shown, table.columns))}")
    return None


def _asked(table: Table, column: str | list[str] | None, knob: str) -> str | None:
    name = column[0] if isinstance(column, list) and len(column) == 1 else column
    if not isinstance(name, str):
        return None
    require_columns(table, (name,), knob)
    return name


def _lists(table: Table, name: str) -> list[list[Any] | None]:
    return [as_list(cell) for cell in table.column(name)[:SAMPLE]]


def _is_words(cells: list[list[Any] | None]) -> bool:
    return all(cell is not None and all(isinstance(word, str) for word in cell) for cell in cells)


def _first(table: Table, names: tuple[str, ...], fits: Any, beside: str | None = None) -> str | None:
    by_name = {name.lower(): name for name in table.columns}
    for name in names:
        if name in by_name and by_name[name] != beside and fits(_lists(table, by_name[name])) and (
                beside is None or _side_by_side(table, beside, by_name[name])):
            return by_name[name]
    return None


def _side_by_side(table: Table, tokens: str, tags: str) -> bool:
    pairs = zip(_lists(table, tokens), _lists(table, tags), strict=True)
    counts = [(len(a), len(b)) for a, b in pairs if a is not None and b is not None]
    return bool(counts) and max(count for count, _ in counts) > 1 and sum(a == b for a, b in counts) > len(counts) / 2


def read_tagged(source: Source, columns: Columns) -> tuple[dict[str, Split], list[str], Checked, list[RejectedRow]]:
    """(splits, label names, the checked tags with their notes, rows that cannot be used).

    Names: O first, then the tags of all splits, sorted. Raises DataError when no row of train can be used.
    """
    rows, rejected = [], []
    for split, table in source.tables.items():
        declared = table.label_names.get(columns.label[0])
        for number, (cells, line) in enumerate(zip(table.rows, table.lines, strict=True)):
            words, tags = (as_list(cells[table.columns.index(name)]) for name in (*columns.text, *columns.label))
            reason = _problem(words, tags, declared)
            if reason:
                rejected.append(RejectedRow(table.source_of(number), line, reason))
                continue
            named = [declared[tag] if declared and isinstance(tag, int) else str(tag) for tag in tags]
            rows.append((split, f"{split}:{number}", f"{table.source_of(number)} line {line}",
                         tuple(str(word) for word in words), named))
    if not any(row[0] == "train" for row in rows):
        raise DataError(f"{source.name}: no sentence of train can be used; {rejected[0]}")
    checked = check_tags([row[4] for row in rows], [row[2] for row in rows])
    names = sorted({tag for tags in checked.sentences for tag in tags},
                   key=lambda tag: (tag != OUTSIDE, tag[2:] if checked.scheme else tag, tag))  # B-x beside I-x
    if len(names) < 2:
        raise DataError(f"{source.name}: every word has the tag {shown(names[0])}; there is nothing to predict")
    splits = {}
    for split in source.tables:
        mine = [at for at, row in enumerate(rows) if row[0] == split]
        if mine:
            tags = padded_tags([checked.sentences[at] for at in mine], names)
            splits[split] = Split([rows[at][3] for at in mine], tags,
                                  np.array([rows[at][1] for at in mine]))
    return splits, names, checked, rejected


def _problem(words: list | None, tags: list | None, declared: list[str] | None) -> str | None:
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        return "there are no words, or one of them is empty"
    if tags is None or len(tags) != len(words):
        return f"{len(words)} words have {0 if tags is None else len(tags)} tags"
    for tag in tags:
        numbered = isinstance(tag, int) and not isinstance(tag, bool)
        if tag is None or tag == "" or (declared and numbered and not 0 <= tag < len(declared)):
            return f"the tag {shown(tag)} is none"
    return None


def padded_tags(sentences: list[list[str]], names: list[str]) -> np.ndarray:
    """(sentences, words of the longest) int64 of positions in `names`, NO_TAG where a sentence is over."""
    index = {name: position for position, name in enumerate(names)}
    out = np.full((len(sentences), max(map(len, sentences))), NO_TAG, np.int64)
    for row, tags in enumerate(sentences):
        out[row, :len(tags)] = [index[tag] for tag in tags]
    return out


def never_in_train(splits: dict[str, Split], names: list[str]) -> list[str]:
    """A note on tags that only validation or test has: they are always missed."""
    known = set(np.unique(splits["train"].labels))
    asked = {int(tag) for name in ("validation", "test") for tag in np.unique(splits[name].labels)} - {NO_TAG}
    lacking = [shown(names[tag]) for tag in sorted(asked - known)]
    return [f"{len(lacking)} tags occur in validation or test but never in train: {', '.join(lacking[:6])}"] \
        if lacking else []


def tag_counts(labels: np.ndarray, outputs: int) -> np.ndarray:
    """(outputs,) words per tag."""
    return np.bincount(labels[labels != NO_TAG], minlength=outputs)


def rarest_tag(labels: np.ndarray) -> np.ndarray:
    """(sentences,) the rarest tag of each: what a split keeps the proportions of."""
    frequency = Counter(labels[labels != NO_TAG].tolist())
    return np.array([min(row[row != NO_TAG].tolist(), key=lambda tag: (frequency[tag], tag)) for row in labels])
