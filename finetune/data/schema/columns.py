"""Which columns hold the text, its pair and the label: by name where the name is known, else by what is in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.formats.table import Table
from finetune.errors import DataError, did_you_mean, shown

PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("text1", "text2"), ("text_a", "text_b"), ("text", "text_pair"),
    ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2"), ("s1", "s2"), ("1_string", "2_string"),
    ("query", "document"), ("query", "passage"), ("context", "response"), ("claim", "evidence"),
)
TEXTS = (
    "text", "sentence", "review", "content", "comment", "tweet", "message", "utterance", "sms", "post", "body",
    "document", "description", "abstract", "article", "question", "query", "headline", "summary", "prompt", "title",
)
LABELS = (
    "label", "labels", "gold_label", "target", "targets", "class", "category", "categories", "sentiment", "intent",
    "intents", "topic", "topics", "emotion", "emotions", "is_duplicate", "quality", "score", "similarity", "rating",
    "stars", "polarity", "tag", "tags", "y", "kategorie", "klasse", "categorie", "classe", "categoria", "clase",
    "etiqueta",
)
_USUAL_NAMES = {*TEXTS, *LABELS, *(name for pair in PAIRS for name in pair), "id", "idx", "index", "label_text"}
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
                       "(?=\\S)")  # Thai, Lao, Burmese, Khmer, kana, Chinese characters; the last of a word is counted
SAMPLE = 5000  # rows whose content decides
MIN_WORDS = 2.0  # a column of text has at least this many words on average
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Columns:
    """Names of the text columns (one, or two for a pair), of the label columns, and why each was chosen.

    `notes` name a choice that could have fallen otherwise.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    reasons: dict[str, str]
    notes: list[str] = field(default_factory=list)


def find_columns(
    table: Table,
    text_column: str | Sequence[str] | None = None,
    label_column: str | Sequence[str] | None = None,
    known: dict[str, Any] | None = None,
) -> Columns:
    """Text, pair and label columns of `table`.

    `known` is what the source says itself: {"text": (…), "label": (…), "reason": …}. Raises DataError, naming the
    columns that are there, for one that is not there or cannot be told.
    """
    known = known or {}
    reasons: dict[str, str] = {}
    label = _given(table, label_column, "label_column", reasons)
    text = _given(table, text_column, "text_column", reasons)
    text = text or _known(table, known.get("text"), known, reasons) or _text_by_name(table, label, reasons)
    label = label or _known(table, known.get("label"), known, reasons) or _label_by_name(table, text, reasons)
    notes: list[str] = []
    text = text or _text_by_content(table, label, reasons, notes)
    label = label or _label_by_content(table, text, reasons, notes)
    if set(text) & set(label):
        raise DataError(f"{table.source}: {shown(text[0])} cannot be both text and label")
    return Columns(text, label, reasons, notes)


def word_count(text: str) -> int:
    """Words between white space; in scripts that put none between them, characters."""
    return len(text.split()) + len(_UNSPACED.findall(text))


def usual_name(name: str) -> bool:
    """Whether this is how people name columns of text and label."""
    return _normal(name) in _USUAL_NAMES


def _there(table: Table) -> str:
    return ", ".join(shown(column) for column in table.columns[:30])


def require_columns(table: Table, names: Sequence[str], knob: str) -> None:
    """Raises DataError when a column is missing, naming the nearest that are there."""
    for name in names:
        if name not in table.columns:
            raise DataError(f"{table.source}: there is no column {shown(name)} ({knob}); the columns are "
                            + _there(table) + did_you_mean(name, table.columns))


def _given(table: Table, names: str | Sequence[str] | None, knob: str, reasons: dict[str, str]) -> tuple[str, ...]:
    names = (names,) if isinstance(names, str) else tuple(names or ())
    require_columns(table, names, knob)
    reasons.update(dict.fromkeys(names, f"given as {knob}"))
    return names


def _known(
    table: Table, names: Sequence[str] | None, known: dict[str, Any], reasons: dict[str, str]
) -> tuple[str, ...]:
    if not names or not set(names) <= set(table.columns):
        return ()
    reasons.update(dict.fromkeys(names, known["reason"]))
    return tuple(names)


def _normal(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", str(name).lower()).strip("_")


def _text_by_name(table: Table, label: Sequence[str], reasons: dict[str, str]) -> tuple[str, ...]:
    by_name = {_normal(name): name for name in reversed(table.columns) if name not in label}
    for pair in PAIRS:
        if all(name in by_name for name in pair):
            names = tuple(by_name[name] for name in pair)
            reasons.update(dict.fromkeys(names, "the two names are a usual pair"))
            return names
    for name in TEXTS:
        if name in by_name and _is_textual(table, by_name[name]):
            reasons[by_name[name]] = "a usual name for a text"
            return (by_name[name],)
    for normal, name in by_name.items():
        if set(normal.split("_")) & set(TEXTS) and _mean_words(table, name) >= MIN_WORDS:
            reasons[name] = "a usual word for a text is in its name"
            return (name,)
    return ()


def _doubt(what: str, best: str, others: Sequence[str]) -> list[str]:
    """A note that a column was guessed although others would do."""
    if not others:
        return []
    return [f"the {what} column is guessed to be {shown(best)}; it could be {' or '.join(map(shown, others[:5]))}: "
            f"decide with {what}_column"]


def _text_by_content(
    table: Table, label: Sequence[str], reasons: dict[str, str], notes: list[str]
) -> tuple[str, ...]:
    words = {name: _mean_words(table, name) for name in table.columns if name not in label}
    best = max(words, key=words.__getitem__, default=None)
    if best is None or words[best] < MIN_WORDS:
        raise DataError(f"{table.source}: no column looks like text; name it with text_column "
                        f"(the columns are {_there(table)})")
    reasons[best] = f"the longest texts ({words[best]:.0f} words on average)"
    notes += _doubt("text", best, [name for name in words if name != best and words[name] >= max(4, words[best] / 4)])
    return (best,)


def _label_by_name(table: Table, text: Sequence[str], reasons: dict[str, str]) -> tuple[str, ...]:
    by_name = {_normal(name): name for name in reversed(table.columns) if name not in text}
    for name in LABELS:
        if name in by_name and not _is_empty(table, by_name[name]):
            reasons[by_name[name]] = "a usual name for a label"
            return (by_name[name],)
    return ()


def _label_by_content(
    table: Table, text: Sequence[str], reasons: dict[str, str], notes: list[str]
) -> tuple[str, ...]:
    rest = [name for name in table.columns if name not in text and not _is_empty(table, name)]
    flags = [name for name in rest if {str(value).strip() for value in _sample(table, name)} <= {"0", "1"}]
    if len(flags) > 1:
        reasons.update(dict.fromkeys(flags, "one of several columns that hold only 0 and 1"))
        return tuple(flags)
    counts = {name: len({str(value) for value in _sample(table, name)}) for name in rest}
    limit = min(MOST_CLASSES, len(table.rows[:SAMPLE]) // 2)
    few = {name: count for name, count in counts.items() if 2 <= count <= max(2, limit)}
    if not few:
        empty = [shown(name) for name in table.columns if name not in text and _is_empty(table, name)]
        raise DataError(f"{table.source}: no column looks like a label; name it with label_column "
                        f"(the columns are {_there(table)}{'; empty: ' + ', '.join(empty[:10]) if empty else ''})")
    best = min(few, key=few.__getitem__)
    index = table.columns.index(best)
    reasons[best] = f"the fewest different values ({len({str(row[index]) for row in table.rows})})"
    notes += _doubt("label", best, [name for name in few if name != best and few[name] <= max(20, 2 * few[best])])
    return (best,)


def _sample(table: Table, name: str) -> list[Any]:
    index = table.columns.index(name)
    return [row[index] for row in table.rows[:SAMPLE]]


def _is_empty(table: Table, name: str) -> bool:
    return all(value is None or value == "" for value in _sample(table, name))


def _is_textual(table: Table, name: str) -> bool:
    """Whether the values are strings that are not all numbers."""
    values = [value for value in _sample(table, name) if value is not None]
    return any(isinstance(value, str) and not re.fullmatch(r"\s*[-+.\d]+\s*", value) for value in values)


def _mean_words(table: Table, name: str) -> float:
    values = [value for value in _sample(table, name) if isinstance(value, str)]
    return sum(map(word_count, values)) / len(values) if values else 0.0
