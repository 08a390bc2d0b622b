"""A depth's loss against full fine-tuning from the predictions of both, paired by seed and row.

The same numbers as a report computes from records (`analysis.findings.curves`), for a sweep that decides as it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from analysis.statistics import influence, stats
from analysis.statistics.stats import Parts


class Answers(NamedTuple):
    """One seed's predictions of the test split."""

    logits: np.ndarray  # (rows, outputs)
    labels: np.ndarray
    ids: np.ndarray  # (rows,) text

    def in_order(self) -> Answers:
        order = np.argsort(self.ids, kind="stable")
        return Answers(*(np.asarray(part)[order] for part in self))

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], split: str) -> Answers | None:
        """From what predictions.npz holds of a split; None where it lacks a part.

        With one label per token a row is a sentence: its counts (kinds + 1, 3) are what is compared, and the parts of
        them that no prediction moves stand for its labels.
        """
        if f"{split}_counts" in arrays and f"{split}_ids" in arrays:
            counts = np.asarray(arrays[f"{split}_counts"])
            labels = np.column_stack([counts[:, :-1, 2], counts[:, -1, 1]])
            return cls(counts, labels, np.asarray(arrays[f"{split}_ids"]))
        if not {f"{split}_{part}" for part in cls._fields} <= arrays.keys():
            return None
        return cls(*(np.asarray(arrays[f"{split}_{part}"]) for part in cls._fields))


def losses(full: Sequence[Answers], frozen: Sequence[Answers], *, metric: str, task: str,
           higher_is_better: bool = True) -> Parts:
    """full - frozen, positive where freezing loses whatever the metric's direction.

    full[i] and frozen[i] are of one seed. A seed of which either model answers as that of an earlier seed does, bit for
    bit, is a copy and left out. Raises ValueError where rows or the numbers of seeds differ.
    """
    if len(full) != len(frozen) or not full:
        raise ValueError(f"full and frozen: {len(full)} and {len(frozen)} seeds; the same number, at least one")
    first = full[0].in_order()
    pairs = [(a.in_order(), b.in_order()) for a, b in zip(full, frozen, strict=True)]
    if any(not np.array_equal(one.ids, first.ids) or not np.array_equal(one.labels, first.labels)
           for pair in pairs for one in pair):
        raise ValueError("full and frozen were tested on different rows")
    kept = sorted(set(_originals([a for a, _ in pairs])) & set(_originals([b for _, b in pairs])))
    return _parts([pairs[i] for i in kept], metric, task, 1 if higher_is_better else -1)


def _originals(answers: Sequence[Answers]) -> list[int]:
    """The places of those that are not the same as an earlier one."""
    seen: dict[bytes, int] = {}
    for place, one in enumerate(answers):
        seen.setdefault(one.logits.tobytes(), place)
    return list(seen.values())


def _parts(pairs: Sequence[tuple[Answers, Answers]], metric: str, task: str, sign: int) -> Parts:
    rows = [[influence.row_values(metric, task, one.logits, one.labels) for one in pair] for pair in pairs]
    return stats.split_parts(np.stack([sign * a - sign * b for a, b in rows]))
