"""Labels as a source writes them -> what is predicted, the labels' names, and arrays."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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

    @property
    def num_outputs(self) -> int:
        return len(self.names) if self.names is not None else 1


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def number_of(value: Any) -> float | None:
    """The number that a label is or spells, else None. True and False are not numbers."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return None


def label_space(labels: Sequence[RawLabel], task: str, declared: Sequence[str] | None) -> LabelSpace:
    """Decide task and label names over all labelled rows. Raises DataError where labels contradict each other."""
    values = [label.value for label in labels]
    if any(isinstance(value, dict) for value in values):
        raise DataError("a label is a mapping; allowed: text, a number, or a list of them")
    if task == "auto":
        task, note = _infer(labels, declared)
    else:
        note = ""
    if task == "regression":
        return LabelSpace("regression", None, note)
    if task == "multilabel":
        rows = [_members(label) for label in labels]
        return LabelSpace("multilabel", _multilabel_names(rows, declared), note, _is_multi_hot(rows))
    return LabelSpace("classification", _class_names(labels, declared), note)


def _infer(labels: Sequence[RawLabel], declared: Sequence[str] | None) -> tuple[Task, str]:
    values = [label.value for label in labels]
    if all(as_list(value) is not None for value in values):
        return "multilabel", ""
    if declared:
        return "classification", ""
    numbers = [number_of(value) for value in values]
    known = [number for number in numbers if number is not None]
    fractional = any(not number.is_integer() for number in known if math.isfinite(number))
    if len(known) < len(values):
        if fractional and len(known) >= MOSTLY * len(values):
            odd = labels[numbers.index(None)]
            raise DataError(f"{odd.where}: label {shown(odd.value)} is not a number, though most labels are")
        return "classification", ""
    for label, number in zip(labels, numbers, strict=True):
        if not math.isfinite(number):
            raise DataError(f"{label.where}: label {shown(label.value)} is not a finite number")
    if fractional:
        return "regression", ""
    return _whole_numbers(known, written_as_float=any(isinstance(v, float) or "." in str(v) for v in values))


def _whole_numbers(numbers: list[float], *, written_as_float: bool) -> tuple[Task, str]:
    distinct = len(set(numbers))
    without_gaps = max(numbers) - min(numbers) + 1 == distinct and not written_as_float
    if distinct <= FEW or without_gaps:
        note = f"the {distinct} whole numbers in the label column are taken as classes; if they are scores, set task: regression"
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


def _class_names(labels: Sequence[RawLabel], declared: Sequence[str] | None) -> list[str]:
    for label in labels:
        if isinstance(label.value, list | tuple):
            raise DataError(f"{label.where}: label {shown(label.value)} is a list, others are not")
        if isinstance(label.value, float) and not math.isfinite(label.value):
            raise DataError(f"{label.where}: label {shown(label.value)} is not a finite number")
    names = {class_name(label.value) for label in labels}
    if declared and _fits(names, declared):
        return list(declared)
    if len(names) > max(100, FREE_TEXT * len(labels)):
        raise DataError(f"the label column has {len(names)} different values in {len(labels)} rows; it looks like free "
                        "text or an id, not like a class; name another with label_column")
    return sorted(names, key=_natural)


def _fits(names: set[str], declared: Sequence[str]) -> bool:
    return names <= set(declared) or all(name.isdecimal() and int(name) < len(declared) for name in names)


def _natural(name: str) -> tuple[int, float, str]:
    number = number_of(name)
    return (1, 0.0, name) if number is None else (0, number, name)


def _multilabel_names(rows: list[list[Any]], declared: Sequence[str] | None) -> list[str]:
    if _is_multi_hot(rows):
        width = len(rows[0])
        return list(declared) if declared and len(declared) == width else [str(index) for index in range(width)]
    names = {class_name(member) for row in rows for member in row}
    if declared and _fits(names, declared):
        return list(declared)
    return sorted(names, key=_natural)


def _members(label: RawLabel) -> list[Any]:
    members = as_list(label.value)
    if members is None:
        members = [part for part in re.split(r"[|;,]", str(label.value)) if part.strip()]
    for member in members:
        if not isinstance(member, str | int | float | bool | np.number) or (isinstance(member, float) and not math.isfinite(member)):
            raise DataError(f"{label.where}: label {shown(label.value)} holds {shown(member)}; allowed: names or whole numbers")
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
    assert space.names is not None
    index = {name: position for position, name in enumerate(space.names)}
    if space.task == "classification":
        return np.array([_index(label, label.value, index) for label in labels], dtype=np.int64)
    table = np.zeros((len(labels), len(space.names)), dtype=np.float32)
    for row, label in enumerate(labels):
        members = _members(label)
        if space.multi_hot:
            table[row] = [float(class_name(member)) for member in members]
        else:
            table[row, [_index(label, member, index) for member in members]] = 1
    return table


def _target(label: RawLabel) -> float:
    number = number_of(label.value)
    if number is None or not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise DataError(f"{label.where}: label {shown(label.value)} is not a finite number")
    return number


def _index(label: RawLabel, member: Any, index: dict[str, int]) -> int:
    name = class_name(member)
    if name in index:
        return index[name]
    if name.isdecimal() and int(name) < len(index):
        return int(name)
    raise DataError(f"{label.where}: label {shown(member)} is not one of the {len(index)} labels")
