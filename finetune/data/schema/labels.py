"""Labels as a source writes them -> what is predicted, the labels' names, and arrays."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from finetune.data.schema.cells import SEPARATORS, Joined, all_decimal_commas, joined_labels, parts
from finetune.data.task_data import Task
from finetune.errors import DataError, shown

FEW = 20  # whole numbers with at most this many different values are classes
MOSTLY = 0.9  # a column with this share of numbers is meant to be numbers
FREE_TEXT = 0.5  # string labels that differ in more than this share of the rows are no classes
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class RawLabel:
    """One label as written, and where (for messages)."""

    value: Any
    where: str


@dataclass(frozen=True)
class LabelSpace:
    """What is predicted. `names` is None for regression; `note` says how it was told."""

    task: Task
    names: list[str] | None
    note: str = ""
    multi_hot: bool = False  # each row is a list of 0/1 per label, not a list of labels
    by_index: bool = False  # labels are positions in `names`, not names
    separators: str = SEPARATORS[0]  # between several labels in one cell of text

    @property
    def num_outputs(self) -> int:
        return len(self.names) if self.names is not None else 1


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def number_of(value: Any) -> float | None:
    """The number that a label is or spells, else None. True and False are not numbers."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float | Decimal):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return None


def label_space(
    labels: Sequence[RawLabel], task: str, declared: Sequence[str] | None = None, *, multi_hot: bool = False
) -> LabelSpace:
    """Decide task and label names over all labelled rows; `declared` are the names that the source gives.

    Raises DataError, naming the row, where labels contradict each other or the task.
    """
    for label in labels:
        if isinstance(label.value, dict):
            raise DataError(f"{label.where}: the label is a mapping; allowed: text, a number, or a list of them")
    joined = joined_labels([label.value for label in labels]) if task in ("auto", "multilabel") else None
    kind, note = _infer(labels, declared, joined) if task == "auto" else (task, "")
    if multi_hot and kind != "multilabel":
        raise DataError(f"several label columns make a multi-label task, but task = {shown(task)}")
    if kind == "regression":
        return LabelSpace("regression", None, note)
    if kind == "multilabel":
        separators = joined.separators if joined else SEPARATORS[0]
        rows = [_members(label, separators) for label in labels]
        if multi_hot or _is_multi_hot(rows):
            fits = declared is not None and len(declared) == len(rows[0])
            names = list(declared) if fits else [str(index) for index in range(len(rows[0]))]
            return LabelSpace("multilabel", names, note, multi_hot=True)
        space = _named("multilabel", [member for row in rows for member in row], declared, note)
        return replace(space, separators=separators)
    _check_classes(labels)
    space = _named("classification", [label.value for label in labels], declared, note)
    if not declared and space.num_outputs > max(FEW, FREE_TEXT * len(labels)):
        raise DataError(f"the label column has {space.num_outputs} different values in {len(labels)} rows; "
                        + _what_else(labels))
    return replace(space, note=_note_on_case(space)) if not space.note else space


def _what_else(labels: Sequence[RawLabel]) -> str:
    if all_decimal_commas([label.value for label in labels]):
        return f"they are numbers with a decimal comma ({shown(labels[0].value)}); write a point"
    return "it looks like free text or an id, not like a class; name another with label_column"


def _note_on_case(space: LabelSpace) -> str:
    """A note on classes whose names differ in capitals only, which is hardly ever meant."""
    by_name: dict[str, list[str]] = {}
    for name in space.names or []:
        by_name.setdefault(name.casefold(), []).append(name)
    alike = [shown(name) for names in by_name.values() if len(names) > 1 for name in names]
    return f"labels that differ in capitals only are different classes: {', '.join(alike[:6])}" if alike else ""


def _named(task: Task, values: Sequence[Any], declared: Sequence[str] | None, note: str) -> LabelSpace:
    """Classes or labels by the declared names where they fit, else by what occurs."""
    names = {class_name(value) for value in values}
    if not declared:
        return LabelSpace(task, sorted(names, key=_natural), note)
    by_index = all(name.isdecimal() and int(name) < len(declared) for name in names)
    if by_index and not (names <= set(declared) and any(isinstance(value, str) for value in values)):
        return LabelSpace(task, list(declared), note, by_index=True)
    if names <= set(declared):
        return LabelSpace(task, list(declared), note)
    odd = min(names - set(declared), key=_natural)
    note = f"the label names that the source declares are not used: label {shown(odd)} is none of them"
    return LabelSpace(task, sorted(names, key=_natural), note)


def _infer(
    labels: Sequence[RawLabel], declared: Sequence[str] | None, joined: Joined | None
) -> tuple[Task, str]:
    values = [label.value for label in labels]
    if all(as_list(value) is not None for value in values):
        return "multilabel", ""
    if declared:
        return "classification", ""
    if joined is not None and joined.sure:
        return "multilabel", (f"labels such as {shown(joined.example)} are taken as several labels in one cell; if "
                              "they are the names of classes, set task: classification")
    numbers = [number_of(value) for value in values]
    known = [number for number in numbers if number is not None]
    fractional = any(not number.is_integer() for number in known if math.isfinite(number))
    if len(known) < len(values):
        if fractional and len(known) >= MOSTLY * len(values):
            odd = labels[numbers.index(None)]
            raise DataError(f"{odd.where}: label {shown(odd.value)} is not a number, though most labels are")
        return "classification", _note_on_joined(joined)
    for label, number in zip(labels, numbers, strict=True):
        if not math.isfinite(number):
            raise _not_finite(label)
    if fractional:
        return "regression", ""
    return _whole_numbers(known, written_as_float=any(isinstance(v, float) or "." in str(v) for v in values))


def _note_on_joined(joined: Joined | None) -> str:
    """Names with a comma in them are usual; two that share a piece, or another separator, may be several labels."""
    if joined is None or not joined.likely:
        return ""
    return (f"labels such as {shown(joined.example)} are taken as names of classes; if they are several labels in one "
            "cell, set task: multilabel")


def _whole_numbers(numbers: list[float], *, written_as_float: bool) -> tuple[Task, str]:
    distinct = len(set(numbers))
    without_gaps = max(numbers) - min(numbers) + 1 == distinct and not written_as_float
    if distinct <= FEW or without_gaps:
        note = (f"the {distinct} whole numbers in the label column are taken as classes; "
                "if they are scores, set task: regression")
        return "classification", note if written_as_float or distinct > FEW else ""
    return "regression", (f"the {distinct} whole numbers in the label column are taken as scores; "
                          "if they are classes, set task: classification")


def as_list(value: Any) -> list[Any] | None:
    """A multi-label cell as a list: a list, or the text of one as it stands in a CSV file."""
    if isinstance(value, list | tuple | np.ndarray):
        return list(value)
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        try:
            parsed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        return parsed if isinstance(parsed, list) else None
    return None


def class_name(value: Any) -> str:
    """1, 1.0, "1" and " 1 " are one class."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.0*", value.strip()):
        return str(int(float(value)))
    return str(value).strip()


def _not_finite(label: RawLabel) -> DataError:
    return DataError(f"{label.where}: label {shown(label.value)} is not a finite number; correct it, or leave it "
                     "empty, which rejects that row alone")


def _check_classes(labels: Sequence[RawLabel]) -> None:
    for label in labels:
        if isinstance(label.value, list | tuple):
            raise DataError(f"{label.where}: label {shown(label.value)} is a list, others are not")
        if isinstance(label.value, float) and not math.isfinite(label.value):
            raise _not_finite(label)


def _natural(name: str) -> tuple[int, float, str]:
    number = number_of(name)
    return (1, 0.0, name) if number is None else (0, number, name)


def _members(label: RawLabel, separators: str) -> list[Any]:
    members = as_list(label.value)
    if members is None:
        members = parts(str(label.value), separators)
    for member in members:
        usable = isinstance(member, str | int | float | np.number)
        if not usable or (isinstance(member, float) and not math.isfinite(member)):
            raise DataError(f"{label.where}: label {shown(label.value)} holds {shown(member)}; "
                            "allowed: names or whole numbers")
    return members


def _is_multi_hot(rows: list[list[Any]]) -> bool:
    """[0, 1, 0, 0] for each row: one length, only 0 and 1, and a repeated number, which a list of labels never has."""
    widths = {len(row) for row in rows}
    return (
        len(widths) == 1 and widths.pop() >= 2
        and all(class_name(member) in {"0", "1"} for row in rows for member in row)
        and any(len(set(row)) < len(row) for row in rows)
    )


def encode_labels(labels: Sequence[RawLabel], space: LabelSpace) -> np.ndarray:
    """int64 (n,), float32 (n,) or float32 (n, labels). Raises DataError naming the row that does not fit."""
    if space.task == "regression":
        return np.array([_target(label) for label in labels], dtype=np.float32)
    names = space.names or []
    keys = [str(index) for index in range(len(names))] if space.by_index else names
    index = {key: position for position, key in enumerate(keys)}
    if space.task == "classification":
        return np.array([_position(label, label.value, index) for label in labels], dtype=np.int64)
    table = np.zeros((len(labels), len(names)), dtype=np.float32)
    for row, label in enumerate(labels):
        members = _members(label, space.separators)
        if space.multi_hot:
            table[row] = _flags(label, members, len(names))
        else:
            table[row, [_position(label, member, index) for member in members]] = 1
    return table


def _target(label: RawLabel) -> float:
    number = number_of(label.value)
    if number is None or not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise _not_finite(label)
    return number


def _position(label: RawLabel, member: Any, index: dict[str, int]) -> int:
    name = class_name(member)
    if name not in index:
        raise DataError(f"{label.where}: label {shown(member)} is not one of the {len(index)} labels")
    return index[name]


def _flags(label: RawLabel, members: list[Any], width: int) -> list[float]:
    flags = [{"0": 0.0, "1": 1.0, "False": 0.0, "True": 1.0}.get(class_name(member)) for member in members]
    if len(flags) != width or None in flags:
        raise DataError(f"{label.where}: labels {shown(label.value)}; allowed: {width} values that are 0 or 1")
    return [flag for flag in flags if flag is not None]
