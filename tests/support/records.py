"""Synthetic records with a known truth, published like real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from analysis.statistics.metrics import BY_WORD
from finetune.config import TrialConfig
from finetune.files import digest_of
from finetune.results import RecordStore, TrialRecord
from finetune.training.evaluation import compute_metrics
from finetune.training.tagging import count_metrics, sentence_counts

LAYERS = 6
NAMES = {"classification": ("negative", "positive"), "multilabel": ("toxic", "rude", "spam"), "regression": None}


class World:
    """Test and validation rows with their labels and difficulty; every trial answers the same rows."""

    def __init__(self, rows: int = 200, classes: int = 2, task: str = "classification", seed: int = 0):
        rng = np.random.default_rng(seed)
        self.task, self.classes = task, classes
        self.names = [str(name) for name in NAMES[task] or ()] if classes == 2 or task != "classification" else [
            f"class {i}" for i in range(classes)]
        self.splits = {split: self._split(split, rows, rng) for split in ("validation", "test")}
        self._scored: dict[tuple[str, bytes], dict[str, Any]] = {}
        self.fingerprint = digest_of([seed, rows, classes, task])

    def _split(self, split: str, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.task == "regression":
            labels = rng.normal(size=rows).astype(np.float32)
        elif self.task == "multilabel":
            labels = (rng.random((rows, 3)) < [0.5, 0.3, 0.2]).astype(np.float32)
        else:
            labels = rng.choice(self.classes, size=rows, p=_priors(self.classes)).astype(np.int64)
        ids = np.array([f"{split}:{i}" for i in range(rows)])
        return {"labels": labels, "ids": ids, "difficulty": rng.normal(size=rows)}

    def logits(self, split: str, skill: float, rng: np.random.Generator, noise: float = 1.0) -> np.ndarray:
        """Answers whose accuracy rises with `skill`; rows share their difficulty over trials."""
        content = self.splits[split]
        labels, strength = content["labels"], skill + content["difficulty"] + noise * rng.normal(
            size=len(content["labels"]))
        if self.task == "regression":
            return (labels + rng.normal(scale=1 / max(skill, 0.1), size=len(labels)))[:, None].astype(np.float32)
        if self.task == "multilabel":
            flips = (2 * labels - 1) * (skill + rng.normal(size=labels.shape))
            return flips.astype(np.float32)
        wrong = (labels + rng.integers(1, self.classes, size=len(labels))) % self.classes
        logits = np.zeros((len(labels), self.classes), np.float32)
        logits[np.arange(len(labels)), labels] = np.maximum(strength, 0)
        logits[np.arange(len(labels)), wrong] = np.maximum(-strength, 0)
        return logits

    def scored(self, split: str, logits: np.ndarray) -> dict[str, Any]:
        """compute_metrics, once per answer: tests make the same trials again and again."""
        key = split, logits.tobytes()
        if key not in self._scored:
            self._scored[key] = compute_metrics(self.task, logits, self.splits[split]["labels"])
        return dict(self._scored[key])

    @cached_property
    def baseline(self) -> dict[str, Any]:
        columns = {"classification": _log_priors(self.classes), "multilabel": np.array([0.1, -1.0, -1.4]),
                   "regression": np.zeros(1)}[self.task]
        metrics = {split: compute_metrics(self.task, np.tile(columns, (len(s["labels"]), 1)), s["labels"])
                   for split, s in self.splits.items()}
        return {"kind": "mean" if self.task == "regression" else "majority", **metrics}


    def predictions(self, split: str, skill: float, rng: np.random.Generator, noise: float) -> dict[str, np.ndarray]:
        """What predictions.npz holds of a split."""
        content = self.splits[split]
        return {f"{split}_logits": self.logits(split, skill, rng, noise), f"{split}_labels": content["labels"],
                f"{split}_ids": content["ids"]}


class TaggedWorld(World):
    """Sentences of five words with entities of two types (`scheme` IOB2), or with three tags that are none (None)."""

    WORDS = 5

    def __init__(self, sentences: int = 100, scheme: str | None = "IOB2", seed: int = 0):
        super().__init__(rows=sentences * self.WORDS, classes=3, seed=seed)
        self.task, self.scheme = "token_classification", scheme
        self.names = ["O", "B-person", "B-place"] if scheme else ["NOUN", "VERB", "X"]
        self.fingerprint = digest_of([self.fingerprint, self.task, scheme])
        for content in self.splits.values():
            content["ids"] = content["ids"][::self.WORDS]

    def _counts(self, split: str, logits: np.ndarray) -> np.ndarray:
        labels = self.splits[split]["labels"]
        return sentence_counts(logits, labels, np.arange(0, len(labels) + 1, self.WORDS), self.names, self.scheme)

    def scored(self, split: str, logits: np.ndarray) -> dict[str, Any]:
        return count_metrics(self._counts(split, logits), self.scheme)

    def predictions(self, split: str, skill: float, rng: np.random.Generator, noise: float) -> dict[str, np.ndarray]:
        found = super().predictions(split, skill, rng, noise)
        return found | {f"{split}_offsets": np.arange(0, len(found[f"{split}_labels"]) + 1, self.WORDS),
                        f"{split}_counts": self._counts(split, found[f"{split}_logits"])}

    @cached_property
    def baseline(self) -> dict[str, Any]:
        return {"kind": "all O" if self.scheme else BY_WORD, **{
            split: self.scored(split, np.tile([1.0, 0.0, 0.0], (len(content["labels"]), 1)))
            for split, content in self.splits.items()}}


def _priors(classes: int) -> np.ndarray:
    return np.array([0.55, *([0.45 / (classes - 1)] * (classes - 1))])


def _log_priors(classes: int) -> np.ndarray:
    return np.log(_priors(classes))


METRIC = {"classification": "accuracy", "multilabel": "f1_micro", "regression": "pearson",
          "token_classification": "accuracy"}


def make_trial(
    world: World, *, skill: float = 1.0, seed: int = 1, phase: str = "tune", sweep: str | None = "demo",
    state: str = "complete", kind: str = "non-finite", epochs: int = 3, best_epoch: int = 2, metric: str | None = None,
    noise: float = 1.0, train_seconds: float | None = None, record: Mapping[str, Any] | None = None, **knobs: Any,
) -> tuple[TrialRecord, dict[str, np.ndarray]]:
    """One trial: knobs as in TrialConfig, `skill` its quality, `record` further fields of the record."""
    config = TrialConfig.from_mapping({"seed": seed, "freeze_depth": 0 if "strategy" not in knobs else None, **knobs})
    effective = _effective(config)
    metric = metric or ("f1" if getattr(world, "scheme", None) else METRIC[world.task])
    trial_id = digest_of([world.fingerprint, effective])
    setting_id = digest_of([world.fingerprint, {k: v for k, v in effective.items() if k != "seed"}])
    depth = effective["freeze_depth"]
    total, frozen = 22_000_000, 0 if depth in (0, None) else 12_000_000 + 1_600_000 * max(depth, 0)
    seconds = train_seconds if train_seconds is not None else 100.0 - 10 * max(depth or 0, 0)
    fields: dict[str, Any] = {
        "trial_id": trial_id, "setting_id": setting_id, "sweep": sweep, "protocol": {"phase": phase}, "state": state,
        "config": config.model_dump(), "effective": effective, "task": world.task, "metric": metric,
        "num_layers": LAYERS,
        "parameters": {"total": total, "trainable": total - frozen}, "baseline": world.baseline,
        "cost": {"setup_seconds": 1.0, "prefix_seconds": 8.0 if frozen else 0.0,
              "prefix_train_seconds": 5.0 if frozen else 0.0, "train_seconds": seconds,
              "evaluation_seconds": 2.0, "peak_memory_bytes": 1_000_000_000 - 10_000_000 * max(depth or 0, 0),
              "examples_per_second": 100.0},
        "data": {"fingerprint": world.fingerprint, "label_names": world.names, "rejected": [],
              "rows": {"train": 1000, **{split: len(s["ids"]) for split, s in world.splits.items()}}},
        "environment": {"device": "cpu", "threads": 2},
    }
    if state != "complete":
        fields["error"] = {"kind": kind, "message": "planted"} if state == "failed" else None
        return TrialRecord(**{**fields, **(record or {})}), {}
    # From what the test asked for alone: a new knob's default must not redraw every world.
    drawn = digest_of([world.fingerprint, seed, {name: value for name, value in effective.items() if name in
                                                 (*knobs, "strategy", "freeze_depth", "learning_rate")}])
    rng = np.random.default_rng(int(drawn[:12], 16))
    predictions = {}
    for split in world.splits:
        predictions |= world.predictions(split, skill, rng, noise)
        fields.setdefault("metrics", {})[split] = world.scored(split, predictions[f"{split}_logits"])
    fields["best_epoch"] = min(best_epoch, epochs)
    fields["history"] = [_epoch(epoch, best_epoch, fields["metrics"]["validation"], metric)
                         for epoch in range(1, epochs + 1)]
    return TrialRecord(**{**fields, **(record or {})}), predictions


def _effective(config: TrialConfig) -> dict[str, Any]:
    effective = config.model_dump(exclude={"output_dir", "margin"})
    depth = effective["freeze_depth"]
    if config.strategy is None:
        depth = depth or 0
        effective["strategy"] = "full" if depth == 0 else f"prefix:{depth}" if depth > 0 else "embeddings"
        effective["strategy"] = "head_only" if depth == LAYERS else effective["strategy"]
    effective["freeze_depth"] = depth
    if depth == LAYERS:
        effective["learning_rate"] = None
    return effective


def _epoch(epoch: int, best_epoch: int, validation: Mapping[str, float], metric: str) -> dict[str, Any]:
    fade = 0.02 * abs(epoch - best_epoch)
    return {"epoch": epoch, "train": {"loss": 0.7 / epoch, "learning_rate": 1e-5}, "train_seconds": 30.0,
            "evaluation_seconds": 1.0, "validation": {**validation, metric: validation[metric] - fade}}


def publish(folder: Path, trials: Iterable[tuple[TrialRecord, dict[str, np.ndarray]]]) -> Path:
    store = RecordStore(folder)
    with patch("os.fsync"):  # hundreds of records need not survive a power cut
        for record, predictions in trials:
            store.publish(record, predictions)
    return folder


def sweep_trials(
    world: World, *, depths: Iterable[int] = (0, 2, 4, 6), seeds: Iterable[int] = (1, 2, 3, 4, 5),
    skill: Callable[[int], float] = lambda depth: 1.5 - 0.1 * max(depth, 0), **knobs: Any,
) -> list[tuple[TrialRecord, dict[str, np.ndarray]]]:
    """A grid of depths and seeds with one setting each; any knob may be overridden."""
    return [make_trial(world, skill=skill(depth), seed=seed, freeze_depth=depth, **knobs)
            for depth in depths for seed in seeds]
