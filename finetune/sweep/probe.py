"""What a linear probe on every frozen depth's features reaches, into DIR/probe.json: `python -m finetune probe DIR`.

A preview of the curve that costs one forward pass at most (Alain & Bengio 2017, arXiv:1610.01644): nothing is trained
but a logistic regression per depth. Activations that the sweep has stored are used; the others are computed. It is
fitted on the training rows and measured on validation rows; the test split is not looked at.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.config import TrialConfig
from finetune.data.encoding.batches import Collator, to_device
from finetune.data.task_data import TAGGED
from finetune.errors import ConfigError, Problem
from finetune.files import atomic_write
from finetune.prefix.fill import Prefix, fill_batches, row_offsets
from finetune.prefix.reuse import PrefixReuse
from finetune.prefix.served import as_float32
from finetune.results import RecordStore
from finetune.sweep.search.confirmation import CONDITIONS
from finetune.training.evaluation import compute_metrics
from finetune.trial import build_classifier, encode_splits, resolve_trial
from finetune.trial.resolve import ResolvedTrial

PROBE_FILE = "probe.json"
ITERATIONS = 1000
INVERSE_PENALTY = 0.01  # of standardised features: hundreds of them on hundreds of rows need a firm hand


def layer_probe(config: TrialConfig) -> dict[str, Any]:
    """{"metric", "split", "points": [{"freeze_depth", "value"}]}: -1 the embeddings' output, k the first k layers'."""
    resolved = resolve_trial(config.replace(freeze_depth=0, strategy=None, reinit_layers=0))
    if resolved.data.task == TAGGED:
        raise ConfigError([Problem("task", TAGGED, "a probe is of one vector per row; allowed: classification, "
                                                   "regression, multilabel")])
    train, validation = frozen_features(resolved)
    labels = {name: resolved.data.splits[name].labels for name in ("train", "validation")}
    task, metric = resolved.data.task, resolved.metric
    points = []
    for depth in sorted(train):
        logits = fit(task, train[depth], labels["train"], resolved.data.num_outputs)(validation[depth])
        value = compute_metrics(task, logits, labels["validation"])[metric]
        points.append({"freeze_depth": depth or -1, "value": float(value)})
    return {"metric": metric, "split": "validation", "points": points}


def frozen_features(resolved: ResolvedTrial) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of train and of validation: {layers from the input: (rows, width)}."""
    classifier, stack = build_classifier(resolved)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier.to(device)
    encoded = encode_splits(resolved, device)
    reuse = PrefixReuse(classifier, stack, resolved.prefix, list(encoded.values()), contextlib.nullcontext)
    return depth_features(reuse, encoded["train"]), depth_features(reuse, encoded["validation"])


def depth_features(reuse: PrefixReuse, split: Collator) -> dict[int, np.ndarray]:
    """{layers from the input: (rows, width)}: the mean over each row's tokens, at L what the head would read."""
    num_layers, lengths = reuse.stack.num_layers, split.encoded.lengths
    entries = {depth: reuse.store.read(reuse.key(split, depth)) for depth in range(1, num_layers + 1)}
    found = {depth: _row_means(as_float32(entry), lengths) if depth < num_layers else as_float32(entry)
             for depth, entry in entries.items() if entry is not None}
    return found | _computed(reuse, split, sorted(set(range(num_layers + 1)) - set(found)))


def _row_means(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(tokens of all rows, width) -> (rows, width)"""
    return np.add.reduceat(tokens, row_offsets(lengths)[:-1], axis=0, dtype=np.float32) / lengths[:, None]


def _computed(reuse: PrefixReuse, split: Collator, depths: Sequence[int]) -> dict[int, np.ndarray]:
    """One pass over the texts, as deep as needed."""
    prefix = Prefix(reuse.classifier, reuse.stack, reuse.autocast)
    found = {depth: np.empty((len(split.encoded), reuse.stack.width), np.float32) for depth in depths}
    with prefix.watching(set(depths)):
        for rows in fill_batches(split.encoded.lengths, prefix.device.type):
            inputs = to_device(split(rows), prefix.device)
            mask = inputs["attention_mask"].unsqueeze(-1)
            for depth, value in prefix.capture(inputs).values.items():
                if depth in found:
                    pooled = value if value.dim() == 2 else (value * mask).sum(1) / mask.sum(1)
                    found[depth][rows] = pooled.float().cpu().numpy()
    return found


def fit(task: str, features: np.ndarray, labels: np.ndarray, num_outputs: int) -> Any:
    """A function features (rows, width) -> logits (rows, outputs): logistic regression, or ridge for a regression."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS)
    kind = {"regression": RidgeCV(), "multilabel": OneVsRestClassifier(linear)}.get(task, linear)
    model = make_pipeline(StandardScaler(), kind).fit(features, labels)

    def logits(rows: np.ndarray) -> np.ndarray:
        if task == "regression":
            return model.predict(rows).reshape(-1, 1)
        scores = model.decision_function(rows)
        if task == "multilabel":
            return scores
        out = np.full((len(rows), num_outputs), -np.inf if len(model.classes_) > 2 else -1e9)
        out[:, model.classes_] = np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores
        return out

    return logits


def probe_text(folder: Path) -> str:
    """The probe of a sweep's data and model, as its directory keeps it. Raises ConfigError where there are several."""
    configs = [TrialConfig.from_mapping(record.config) for record in RecordStore(folder) if record.state == "complete"]
    if not configs:
        raise ConfigError(f"DIR = {str(folder)!r}: no complete trial; run the sweep first")
    differing = [name for name in CONDITIONS if len({repr(config.get(name)) for config in configs}) > 1]
    if differing:
        raise ConfigError(f"DIR = {str(folder)!r}: its trials differ in {', '.join(differing)}; a probe is of one "
                          "model on one set of texts")
    return json.dumps(layer_probe(configs[0]), indent=1) + "\n"


def probe_directory(folder: Path) -> dict[str, Any]:
    """The same, kept there."""
    text = probe_text(folder)
    atomic_write(folder / PROBE_FILE, text, "the layer probe")
    return json.loads(text)
