"""What a linear probe reads from each depth of a frozen backbone: surface, word order, meaning.

The method is that of Alain & Bengio 2017 (arXiv:1610.01644); the kinds of property are those of Conneau et al. 2018
(arXiv:1805.01070). Nothing of the backbone is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from analysis.statistics.stats import interval, split_parts
from finetune.config import TrialConfig
from finetune.data import Split
from finetune.data.task_data import TAGGED, TaskData
from finetune.errors import ConfigError, DataError, Problem
from finetune.sweep.probe import fit, frozen_features
from finetune.sweep.properties import (
    Question,
    by_label,
    by_length,
    by_order,
    by_word,
    middle_length,
    swap_neighbours,
)
from finetune.trial import resolve_trial
from finetune.trial.resolve import ResolvedTrial

POOL = 4  # times the rows of one seed: what the seeds draw their training rows from
FEWEST = 10  # groups to fit on and to measure on


class Reading(NamedTuple):
    """Accuracy of one property's probe at one depth (-1: the embeddings' output), a mean over seeds and new text."""

    property: str
    freeze_depth: int
    estimate: float
    low: float  # 95%
    high: float
    chance: float
    seeds: int
    train_rows: int
    test_rows: int


class Asked(NamedTuple):
    """The rows of one split with their changed copies behind them, and what is asked about them."""

    split: Split
    questions: dict[str, Question]


def read_layers(config: TrialConfig, properties: Sequence[str], word: str, rows: int, seeds: int,
                said: Callable[[str], None] = lambda text: None) -> list[Reading]:
    """Every property at every depth. Raises ConfigError or DataError where a question cannot be asked of this data."""
    resolved = resolve_trial(config.replace(freeze_depth=0, strategy=None, reinit_layers=0))
    if "label" in properties and resolved.data.task != "classification":
        words = " (tags of words: finetune probe DIR, for a sweep)" if resolved.data.task == TAGGED else ""
        raise ConfigError([Problem("properties", "label", f"{resolved.data.name} is a {resolved.data.task}; only the "
                                                          f"classes of a classification can be asked for{words}")])
    if resolved.data.task == TAGGED:
        resolved = replace(resolved, data=_whole_texts(resolved.data))
    train, held_out = _asked(resolved, properties, word, rows)
    rng = np.random.default_rng(0)
    measured = {name: question.groups(rng) for name, question in held_out.questions.items()}
    for name, groups in measured.items():
        _enough(name, word, groups, train.questions[name].groups(np.random.default_rng(0)))
    said(f"features of {len(train.split) + len(held_out.split):,} texts")
    splits = {"train": train.split, "validation": held_out.split}
    features, measured_on = frozen_features(replace(resolved, data=replace(resolved.data, splits=splits)))
    found = []
    for name, groups in measured.items():
        said(f"probes for {name}")
        for depth in sorted(features):
            hits, fitted = _hits(train.questions[name], features[depth], held_out.questions[name], groups,
                                 measured_on[depth], rows, seeds)
            estimate, low, high, _ = interval(split_parts(hits))
            found.append(Reading(name, depth or -1, estimate, low, high, 1 / groups.shape[1], seeds, fitted,
                                 groups.size))
    return found


def _whole_texts(data: TaskData) -> TaskData:
    """Sentences of words with tags as texts without: length, word and order are asked of a text as a whole."""
    splits = {name: Split([(" ".join(words),) for words in split.texts], np.zeros(len(split), np.int64), split.ids)
              for name, split in data.splits.items()}
    return replace(data, task="classification", splits=splits)


def _asked(resolved: ResolvedTrial, properties: Sequence[str], word: str, rows: int) -> list[Asked]:
    """Training rows (at most POOL times `rows`) and validation rows; the test split is not looked at."""
    train, held_out = (resolved.data.splits[name] for name in ("train", "validation"))
    rng = np.random.default_rng(resolved.config.seed)
    pool = train.take(np.sort(rng.permutation(len(train))[:POOL * rows]))
    middle = middle_length(pool.texts)
    return [_questions(split, properties, word, middle, limit, rng)
            for split, limit in ((pool, POOL * rows // 2), (held_out, len(held_out)))]


def _questions(split: Split, properties: Sequence[str], word: str, middle: float, limit: int,
               rng: np.random.Generator) -> Asked:
    changed = list(swap_neighbours(split.texts[:limit], rng)) if "order" in properties else []
    originals = np.array([index for index, _ in changed], dtype=np.int64)
    possible: dict[str, Callable[[], Question]] = {
        "length": lambda: by_length(split.texts, middle), "word": lambda: by_word(split.texts, word),
        "order": lambda: by_order(originals, len(split) + np.arange(len(changed))),
        "label": lambda: by_label(split.labels)}
    both = Split([*split.texts, *(text for _, text in changed)],
                 np.concatenate([split.labels, split.labels[originals]]),
                 np.concatenate([split.ids, np.char.add(split.ids[originals], ":swapped")]))
    return Asked(both, {name: possible[name]() for name in properties})


def _enough(name: str, word: str, *found: np.ndarray) -> None:
    classes = {groups.shape[1] for groups in found}
    if min(map(len, found)) < FEWEST or len(classes) > 1 or min(classes) < 2:
        what = {"length": "longer and shorter texts", "label": "rows of every class",
                "word": f"texts with {word!r} and texts of the same length without it",
                "order": "texts with two neighbouring lower-case words"}[name]
        raise DataError(f"properties = {name!r}: training and validation rows hold too few {what} ({FEWEST} of each "
                        "are needed); leave it out, or take other rows")


def _hits(asked: Question, features: np.ndarray, held_out: Question, groups: np.ndarray, measured: np.ndarray,
          rows: int, seeds: int) -> tuple[np.ndarray, int]:
    """(seeds, groups): the share of each group that is right; and how many rows a probe was fitted on.

    Each seed draws its training rows anew.
    """
    classes = groups.shape[1]
    hits = np.empty((seeds, len(groups)))
    for seed in range(seeds):
        chosen = asked.groups(np.random.default_rng(seed + 1), max(rows // classes, 1)).ravel()
        logits = fit("classification", features[asked.texts[chosen]], asked.labels[chosen], classes)
        scores: Any = logits(measured[held_out.texts[groups.ravel()]])
        hits[seed] = (scores.argmax(1).reshape(groups.shape) == held_out.labels[groups]).mean(axis=1)
    return hits, len(chosen)
