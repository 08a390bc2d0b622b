"""Which rows are in which split: stratified, decided by a seed and the rows themselves, not by their order."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence, Set

import numpy as np

from finetune.data.tagged import rarest_tag
from finetune.data.task_data import TAGGED, Split, Task, TaskData
from finetune.errors import ConfigError, DataError, Problem

REGRESSION_STRATA = 10
EVALUATION_SEED = 0


def text_key(texts: Sequence[str]) -> str:
    """Equal for rows that a reader would call the same text: case and white space do not count."""
    return "\x1f".join(" ".join(text.split()).casefold() for text in texts)


def row_count(size: int | float, rows: int, knob: str) -> int:
    """A count (an integer) or a share of `rows` as a number of rows. Raises ConfigError when it leaves nothing."""
    count = size if isinstance(size, int) else round(size * rows)
    if not 2 <= count <= rows:
        reason = f"allowed: a count from 2 to {rows} or a share below 1 that keeps at least 2 of the {rows} rows"
        raise ConfigError([Problem(knob, size, reason)])
    return count


def carve(
    split: Split, task: Task, size: int | float, *, knob: str, of_rows: int, seed: int, taken: Set[str] = frozenset()
) -> tuple[Split, Split]:
    """Divide `split` into (rest, carved), stratified by label (by quantile for regression).

    `size` is a count or a share of `of_rows`. Rows of one text stay together, and stay in the rest when their text is
    in `taken` (the texts of other splits). Every stratum keeps at least one text in the rest.
    Raises ConfigError when `size` leaves too little on either side.
    """
    count = row_count(size, of_rows, knob)
    groups = defaultdict(list)
    for row, texts in enumerate(split.texts):
        groups[text_key(texts)].append(row)
    strata = _strata(split.labels, task)
    by_stratum = defaultdict(list)
    for key, rows in sorted(groups.items(), key=lambda item: _rank(seed, knob, item[0])):
        by_stratum[strata[rows[0]]].append((key, rows))
    carved = _choose(list(by_stratum.values()), count, len(split), taken)
    if not 2 <= len(carved) <= len(split) - 2:
        shared = len(taken & groups.keys())
        raise DataError(f"{knob} = {size}: a split of {count} rows cannot be made from {len(split)} rows of "
                        f"{len(groups)} different texts, of which {shared} are also in another split")
    inside = np.zeros(len(split), dtype=bool)
    inside[carved] = True
    return split.take(np.flatnonzero(~inside)), split.take(np.flatnonzero(inside))


def _choose(strata: list[list[tuple[str, list[int]]]], count: int, total: int, taken: Set[str]) -> list[int]:
    """Rows of `count` in all, from each stratum in proportion to its size."""
    carved: list[int] = []
    leftover: list[list[int]] = []
    for groups, quota in zip(strata, _quotas([sum(len(g[1]) for g in s) for s in strata], count, total), strict=True):
        chosen = 0
        for key, rows in groups[1:]:  # the first text of a stratum stays, so that train knows every label
            if key in taken:
                continue
            if chosen + len(rows) <= quota:
                carved += rows
                chosen += len(rows)
            else:
                leftover.append(rows)
    for rows in leftover:
        if len(carved) + len(rows) <= count:
            carved += rows
    return carved


def _quotas(sizes: list[int], count: int, total: int) -> list[int]:
    """`count` divided over strata in proportion to `sizes`: the largest remainders are rounded up."""
    exact = [size * count / total for size in sizes]
    quotas = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (quotas[i] - exact[i], i))
    for index in by_remainder[: count - sum(quotas)]:
        quotas[index] += 1
    return quotas


def _strata(labels: np.ndarray, task: Task) -> np.ndarray:
    """(n,) int64: what a split should keep the proportions of. Multi-label rows stand under their rarest label."""
    if task == "classification":
        return labels
    if task == TAGGED:
        return rarest_tag(labels)
    if task == "regression":
        edges = np.quantile(labels, np.linspace(0, 1, REGRESSION_STRATA + 1)[1:-1])
        return np.searchsorted(np.unique(edges), labels, side="right")
    rarity = np.where(labels > 0, labels.sum(axis=0), np.inf)
    return np.where(labels.any(axis=1), rarity.argmin(axis=1), -1)


def _rank(seed: int, *parts: str) -> bytes:
    """Where a row stands in the order that `seed` gives; other rows do not move it."""
    return hashlib.blake2b("\x1e".join([str(seed), *parts]).encode(), digest_size=16).digest()


def stratified_order(split: Split, task: Task, seed: int) -> np.ndarray:
    """(n,) a permutation whose every prefix is stratified; every stratum is met before any is met often."""
    strata = _strata(split.labels, task)
    sizes = Counter(strata.tolist())
    seen: Counter[int] = Counter()
    keys = []
    for row in sorted(range(len(split)), key=lambda row: _rank(seed, str(split.ids[row]))):
        stratum = int(strata[row])
        position = (seen[stratum] + 0.5) / sizes[stratum] if seen[stratum] else 0.0
        keys.append((position, len(keys), row))
        seen[stratum] += 1
    return np.array([row for _, _, row in sorted(keys)], dtype=np.int64)


def subset_train(data: TaskData, train_size: int | float | None, subset_seed: int) -> TaskData:
    """Keep `train_size` training rows (a count or a share): stratified, and 100 rows lie inside 200.

    Raises ConfigError when there are not that many rows, DataError when one class is left.
    """
    if train_size is None:
        return data
    train = data.splits["train"]
    count = row_count(train_size, len(train), "train_size")
    if count == len(train):
        return data
    subset = train.take(np.sort(stratified_order(train, data.task, subset_seed)[:count]))
    notes = []
    if data.task == "classification":
        present = len(np.unique(subset.labels))
        if present < 2:
            raise DataError(f"train_size = {train_size} keeps rows of one class only")
        if present < data.num_outputs:
            notes.append(f"train_size = {train_size} keeps rows of {present} of the {data.num_outputs} classes")
    return data.with_split("train", subset, *notes)


def limit_evaluation(data: TaskData, evaluation_size: int | None) -> TaskData:
    """Keep at most `evaluation_size` validation and test rows: a fixed, stratified choice."""
    for name in ("validation", "test"):
        split = data.splits[name]
        if evaluation_size is not None and evaluation_size < len(split):
            rows = np.sort(stratified_order(split, data.task, EVALUATION_SEED)[:evaluation_size])
            data = data.with_split(name, split.take(rows), f"{name}: {evaluation_size} of its {len(split)} rows are "
                                   "used (evaluation_size)")
    return data
