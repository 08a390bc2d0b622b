"""What a trial trains on, whatever it came from: three splits of texts and labels, and what was noticed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

Task = Literal["classification", "regression", "multilabel", "token_classification"]
TAGGED = "token_classification"
NO_TAG = -1  # in a split's labels, where a sentence is over
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    texts   per row (text,) or (text, pair); the words of a sentence where each has a tag
    labels  int64 (n,) classes | float32 (n,) targets | float32 (n, labels) of 0/1
            | int64 (n, words of the longest sentence) tags, NO_TAG beyond a sentence's end
    ids     unicode (n,): where each row came from, e.g. "train:17" (split of the source, row counted from 0)
    """

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def tagged(self) -> bool:
        """Whether each word has a label."""
        return self.labels.ndim == 2 and self.labels.dtype.kind == "i"

    def take(self, rows: Sequence[int] | np.ndarray) -> Split:
        rows = np.asarray(rows, dtype=np.int64)
        return Split([self.texts[row] for row in rows], self.labels[rows], self.ids[rows])


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used: where it stands (`line` counts from 1) and why."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source} line {self.line}: {self.reason}"


@dataclass(frozen=True)
class TaskData:
    """A data set, checked: every label of validation and test occurs in train, no text is empty."""

    name: str
    config_name: str | None
    task: Task
    label_names: list[str] | None  # None for regression
    num_outputs: int  # classes | 1 | labels
    splits: dict[str, Split]  # "train", "validation", "test"
    fingerprint: str  # before `subset_train`, so that one setting is one setting over its seeds
    text_columns: tuple[str, ...] = ()
    label_column: str = ""
    rejected: list[RejectedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences for the report
    scheme: str | None = None  # of tags, by seqeval's name; None for tags without prefixes
    glue_metric: str | None = None  # GLUE's own metric, for a GLUE task

    def with_split(self, name: str, split: Split, *notes: str) -> TaskData:
        return replace(self, splits={**self.splits, name: split}, notes=[*self.notes, *notes])


def fingerprint(task: Task, label_names: Sequence[str] | None, splits: dict[str, Split]) -> str:
    """sha256 (hex) of the splits' texts and labels, the label names and the task."""
    digest = hashlib.sha256()
    _feed(digest, [task, *(label_names or [])])
    for name in SPLITS:
        _feed(digest, [name])
        for texts in splits[name].texts:
            _feed(digest, texts)
        labels = splits[name].labels
        digest.update(f"{labels.dtype.str}{labels.shape}".encode() + np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, texts: Iterable[str]) -> None:
    """Length-prefixed, so that ("ab", "c") and ("a", "bc") differ."""
    for text in texts:
        payload = text.encode()
        digest.update(len(payload).to_bytes(8, "little") + payload)
    digest.update(b"\xff" * 8)
