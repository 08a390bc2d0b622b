"""What is in a data set: counts, lengths, and the defects that would spoil a comparison. Plain numbers, no drawing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from finetune.data.schema.columns import word_count
from finetune.data.schema.tags import entity_types, strict_entities
from finetune.data.splits.splits import text_key
from finetune.data.tagged import tag_counts
from finetune.data.task_data import NO_TAG, SPLITS, TAGGED, Split, TaskData
from finetune.training.evaluation import baseline, default_metric

QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
EXAMPLES = 3


def words(split: Split) -> np.ndarray:
    """(n,) words per row; characters in scripts without white space between words."""
    return np.array([sum(map(word_count, row)) for row in split.texts])


def profile(data: TaskData, lengths: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """A JSON-able description of `data`. `lengths`: (n,) tokens per row of each split; without them words count."""
    unit = "words" if lengths is None else "tokens"
    lengths = lengths or {name: words(split) for name, split in data.splits.items()}
    metric = default_metric(data.task, data.num_outputs, data.glue_metric, data.scheme)
    constant = baseline(data)
    keys = {name: [text_key(texts) for texts in data.splits[name].texts] for name in SPLITS}
    return {
        "name": data.name, "config": data.config_name, "task": data.task, "label_names": data.label_names,
        "metric": metric,
        "baseline": {"kind": constant["kind"], **{name: constant[name][metric] for name in ("validation", "test")}},
        "splits": {name: _split_profile(data, data.splits[name], keys[name], lengths[name], unit) for name in SPLITS},
        "overlap": _overlap(keys), "conflicting_labels": _conflicts(data, keys),
        "empty_rows": sum(row.reason.endswith("is empty") for row in data.rejected),
        "rejected": [asdict(row) for row in data.rejected],
        "notes": data.notes, "fingerprint": data.fingerprint, "examples": _examples(data),
    }


def _split_profile(data: TaskData, split: Split, keys: list[str], lengths: np.ndarray, unit: str) -> dict[str, Any]:
    return {
        "rows": len(split), "labels": label_summary(data, split.labels),
        "lengths": {"unit": unit, **{name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()}},
        "duplicates": len(keys) - len(set(keys)),
        **({"entities": entities_per_type(data, split)} if data.task == TAGGED and data.scheme else {}),
    }


def entities_per_type(data: TaskData, split: Split) -> dict[str, int]:
    """As the metrics count them, by seqeval's strict reading."""
    found = dict.fromkeys(entity_types(data.label_names), 0)
    for label in split.labels:
        for kind, _, _ in strict_entities([data.label_names[tag] for tag in label[label != NO_TAG]], data.scheme):
            found[kind] += 1
    return found


def label_summary(data: TaskData, labels: np.ndarray) -> dict[str, float]:
    """Rows per class or label; for a regression the target's quantiles."""
    if data.label_names is None:
        return {name: float(np.quantile(labels, q)) for name, q in QUANTILES.items()}
    if data.task == TAGGED:
        return {name: int(count) for name, count in zip(
            data.label_names, tag_counts(labels, data.num_outputs), strict=True)}
    counts = labels.sum(axis=0) if data.task == "multilabel" else np.bincount(labels, minlength=data.num_outputs)
    return {name: int(count) for name, count in zip(data.label_names, counts, strict=True)}


def _overlap(keys: dict[str, list[str]]) -> dict[str, int]:
    """Rows of the second split whose text is in the first as well."""
    pairs = [("train", "validation"), ("train", "test"), ("validation", "test")]
    return {f"{a}/{b}": sum(key in set_of_a for key in keys[b]) for a, b in pairs for set_of_a in [set(keys[a])]}


def _conflicts(data: TaskData, keys: dict[str, list[str]]) -> int:
    """Texts that stand with different labels somewhere."""
    labels: dict[str, set[bytes]] = defaultdict(set)
    for name in SPLITS:
        for key, label in zip(keys[name], data.splits[name].labels, strict=True):
            labels[key].add((label[label != NO_TAG] if data.task == TAGGED else label).tobytes())
    return sum(len(found) > 1 for found in labels.values())


def _examples(data: TaskData) -> list[dict[str, Any]]:
    """A few training rows, of different labels where there are some."""
    train = data.splits["train"]
    _, first_of_each = np.unique(train.labels, axis=0, return_index=True)
    rows = [*sorted(first_of_each.tolist())[:EXAMPLES], *range(len(train))]
    return [{"texts": [" ".join(train.texts[row])] if data.task == TAGGED else list(train.texts[row]),
             "label": label_text(data, train.labels[row]), "id": str(train.ids[row])}
            for row in list(dict.fromkeys(rows))[:EXAMPLES]]


def label_text(data: TaskData, label: Any) -> str:
    """One row's label in words."""
    if data.label_names is None:
        return f"{float(label):g}"
    if data.task == TAGGED:
        return " ".join(data.label_names[tag] for tag in label[label != NO_TAG])
    if data.task == "multilabel":
        return ", ".join(name for name, flag in zip(data.label_names, label, strict=True) if flag) or "(none)"
    return data.label_names[int(label)]
