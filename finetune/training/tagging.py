"""Metrics of tags: entities by seqeval's strict reading, words by accuracy. Counts per sentence say all of it.

Logits are flat, (words of all sentences, tags); a word that truncation cut has a row of nan and counts as wrong: it has
no tag, and its loss is that of a guess among all tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.statistics.metrics import BY_WORD, of_counts
from finetune.data.schema.tags import OUTSIDE, entity_types, strict_entities

if TYPE_CHECKING:
    from finetune.data.task_data import TaskData

ENTITY_METRICS = ["f1", "precision", "recall", "f1_macro", "accuracy", "loss"]
TAG_METRICS = ["accuracy", "f1_macro", "loss"]
HITS, SAID, TRUE = 0, 1, 2  # of the last axis of counts; in the last row: right words, words, summed loss


def kinds(names: Sequence[str], scheme: str | None) -> list[str]:
    """What is counted: entity types, or the tags themselves."""
    return entity_types(names) if scheme else list(names)


def sentence_counts(logits: np.ndarray, labels: np.ndarray, offsets: np.ndarray, names: Sequence[str],
                    scheme: str | None) -> np.ndarray:
    """(sentences, kinds + 1, 3) float64: per kind entities (or words) found, predicted, true; last: words right, words,
    summed loss. logits (words, tags), labels (words,), offsets (sentences + 1,).
    """
    found = kinds(names, scheme)
    index = {kind: place for place, kind in enumerate(found)}
    cut = np.isnan(logits).all(axis=1)
    said = np.where(cut, -1, np.where(cut[:, None], 0, logits).argmax(axis=1))
    loss = _word_losses(logits, labels, cut)
    out = np.zeros((len(offsets) - 1, len(found) + 1, 3))
    for row, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        true, guess = labels[start:end], said[start:end]
        out[row, -1] = (true == guess).sum(), end - start, loss[start:end].sum()
        if scheme:
            _count_entities(out[row], true, guess, names, scheme, index)
        else:
            np.add.at(out[row, :, TRUE], true, 1)
            np.add.at(out[row, :, SAID], guess[guess >= 0], 1)
            np.add.at(out[row, :, HITS], true[true == guess], 1)
    return out


def _count_entities(out: np.ndarray, true: np.ndarray, guess: np.ndarray, names: Sequence[str], scheme: str,
                    index: dict[str, int]) -> None:
    there, claimed = (strict_entities([names[tag] if tag >= 0 else OUTSIDE for tag in tags], scheme)
                      for tags in (true, guess))
    for column, entities in ((HITS, there & claimed), (SAID, claimed), (TRUE, there)):
        for kind, _, _ in entities:
            out[index[kind], column] += 1


def _word_losses(logits: np.ndarray, labels: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """(words,) cross-entropy"""
    logits = np.where(cut[:, None], 0.0, np.asarray(logits, np.float64))
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)) - logits[np.arange(len(labels)), labels]


def count_metrics(counts: np.ndarray, scheme: str | None) -> dict[str, float]:
    """The metrics of `sentence_counts`. f1_macro: over the kinds that are there or predicted."""
    total = counts.sum(axis=0, keepdims=True)
    return {name: float(of_counts(name, total)[0]) for name in (ENTITY_METRICS if scheme else TAG_METRICS)}


def kind_table(counts: np.ndarray, names: Sequence[str], scheme: str | None) -> list[dict[str, Any]]:
    """One entry per entity type (or tag): how many there are, precision, recall and F1."""
    hits, said, true = counts.sum(axis=0)[:-1].T
    columns = zip(kinds(names, scheme), true, _ratio(hits, said), _ratio(hits, true), _ratio(2 * hits, said + true),
                  strict=True)
    return [{"label": kind, "rows": int(rows), "precision": float(p), "recall": float(r), "f1": float(f)}
            for kind, rows, p, r, f in columns]


def flat_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Padded (sentences, longest) -> ((words,), offsets (sentences + 1,))."""
    real = labels >= 0
    return labels[real], np.concatenate([[0], np.cumsum(real.sum(axis=1))])


def split_counts(data: TaskData, logits: np.ndarray, split: str) -> np.ndarray:
    labels, offsets = flat_labels(data.splits[split].labels)
    return sentence_counts(logits, labels, offsets, data.label_names, data.scheme)


def tagging_baseline(data: TaskData) -> dict[str, Any]:
    """All O for entities (F1 0); else each word's most frequent tag in train, for a new word that of all."""
    train = data.splits["train"]
    labels, offsets = flat_labels(train.labels)
    overall = np.bincount(labels, minlength=data.num_outputs)
    if data.scheme:
        constant = np.log((overall + 1) / (len(labels) + data.num_outputs))
        constant[data.label_names.index(OUTSIDE)] = max(constant) + 1e-9
        rows = {name: np.tile(constant, (int((data.splits[name].labels >= 0).sum()), 1))
                for name in ("validation", "test")}
        kind = "all O"
    else:
        seen: dict[str, np.ndarray] = {}
        for words, start in zip(train.texts, offsets, strict=False):
            for word, tag in zip(words, labels[start:start + len(words)], strict=True):
                seen.setdefault(word, np.zeros(data.num_outputs))[tag] += 1
        smooth = (overall + 1) / (len(labels) + data.num_outputs)
        rows = {name: np.log(np.array([seen.get(word, 0) + smooth for words in data.splits[name].texts
                                       for word in words])) for name in ("validation", "test")}
        kind = BY_WORD
    return {"kind": kind, **{name: count_metrics(split_counts(data, logits, name), data.scheme)
                             for name, logits in rows.items()}}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator = np.asarray(numerator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=np.asarray(denominator) > 0)
