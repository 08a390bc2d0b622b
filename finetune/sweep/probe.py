"""What a linear probe on every frozen depth's features reaches, into DIR/probe.json: `python -m finetune probe DIR`.

A preview of the curve that costs one forward pass at most (Alain & Bengio 2017, arXiv:1610.01644): nothing is trained
but a logistic regression per depth. Activations that the sweep has stored are used; the others are computed. It is
fitted on the training rows and measured on validation rows; the test split is not looked at.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.config import TrialConfig
from finetune.data.encoding.batches import Collator, to_device
from finetune.data.task_data import TAGGED, TaskData
from finetune.errors import ConfigError
from finetune.files import atomic_write
from finetune.models.head import words_at
from finetune.prefix.fill import Prefix, fill_batches, row_offsets
from finetune.prefix.reuse import PrefixReuse
from finetune.prefix.served import as_float32
from finetune.results import RecordStore
from finetune.sweep.search.confirmation import CONDITIONS
from finetune.training.evaluation import split_metrics
from finetune.trial import build_classifier, encode_splits, resolve_trial
from finetune.trial.resolve import ResolvedTrial

PROBE_FILE = "probe.json"
ITERATIONS = 1000
INVERSE_PENALTY = 0.01  # of standardised features: hundreds of them on hundreds of rows need a firm hand
MOST_WORDS = 20_000  # with a tag that a probe is fitted on: more cost minutes per depth and tell little more


def layer_probe(config: TrialConfig) -> dict[str, Any]:
    """{"metric", "split", "points": [{"freeze_depth", "value"}]}: -1 the embeddings' output, k the first k layers'."""
    resolved = resolve_trial(config.replace(freeze_depth=0, strategy=None, reinit_layers=0))
    if resolved.data.task == TAGGED:
        resolved = replace(resolved, data=_few_words(resolved.data, resolved.config.seed))
    encoded = encode_splits(resolved)
    train, validation = frozen_features(resolved)
    fitted_on = fit_labels(encoded["train"])
    data, metric = resolved.data, resolved.metric
    points = []
    for depth in sorted(train):
        logits = fit(data.task, train[depth], fitted_on, data.num_outputs)(validation[depth])
        value = split_metrics(data, with_cut_words(encoded["validation"], logits), "validation")[metric]
        points.append({"freeze_depth": depth or -1, "value": float(value)})
    return {"metric": metric, "split": "validation", "points": points}


def _few_words(data: TaskData, seed: int) -> TaskData:
    """With whole training sentences drawn at random, as many as have at most MOST_WORDS words (one at the least)."""
    train = data.splits["train"]
    order = np.random.default_rng(seed).permutation(len(train))
    words = np.cumsum([len(train.texts[row]) for row in order])
    fitting = max(1, int((words <= MOST_WORDS).sum()))
    return data if fitting == len(train) else data.with_split("train", train.take(np.sort(order[:fitting])))


def fit_labels(split: Collator) -> np.ndarray:
    """What the rows of `depth_features` are fitted to: the rows' labels, or the tags of the words that are seen."""
    words, labels = split.encoded.words, split.encoded.labels
    if words is None:
        return labels
    return np.concatenate([labels[row, index] for row, index in enumerate(words.index)])


def with_cut_words(split: Collator, logits: np.ndarray) -> np.ndarray:
    """Logits of the rows of `depth_features` -> of all that is measured: nan for words that max_length cut."""
    words = split.encoded.words
    if words is None:
        return logits
    out = np.full((int(words.counts.sum()), logits.shape[1]), np.nan)
    seen = [start + index for start, index in zip(words.offsets, words.index, strict=False)]
    out[np.concatenate(seen)] = logits
    return out


def frozen_features(resolved: ResolvedTrial) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Of train and of validation: {layers from the input: (rows, width)}, as `depth_features` says."""
    classifier, stack = build_classifier(resolved)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier.to(device)
    encoded = encode_splits(resolved, device)
    reuse = PrefixReuse(classifier, stack, resolved.prefix, list(encoded.values()), contextlib.nullcontext)
    return depth_features(reuse, encoded["train"]), depth_features(reuse, encoded["validation"])


def depth_features(reuse: PrefixReuse, split: Collator) -> dict[int, np.ndarray]:
    """{layers from the input: (rows, width)}: the mean over each row's tokens, at L what the head would read.

    Where each word has a tag a row is a word that the model sees, in the order of the texts, and its vector that of its
    first subword.
    """
    num_layers = reuse.stack.num_layers
    entries = {depth: reuse.store.read(reuse.key(split, depth)) for depth in range(1, num_layers + 1)}
    found = {depth: _read_of(as_float32(entry), split) if depth < num_layers else as_float32(entry)
             for depth, entry in entries.items() if entry is not None}
    return found | _computed(reuse, split, sorted(set(range(num_layers + 1)) - set(found)))


def _read_of(tokens: np.ndarray, split: Collator) -> np.ndarray:
    """(tokens of all rows, width) -> (rows, width): a mean for each text, or the first subword of each word."""
    lengths, words = split.encoded.lengths, split.encoded.words
    starts = row_offsets(lengths)[:-1]
    if words is not None:
        return tokens[np.concatenate([start + place for start, place in zip(starts, words.position, strict=True)])]
    return np.add.reduceat(tokens, starts, axis=0, dtype=np.float32) / lengths[:, None]


def _computed(reuse: PrefixReuse, split: Collator, depths: Sequence[int]) -> dict[int, np.ndarray]:
    """One pass over the texts, as deep as needed."""
    prefix = Prefix(reuse.classifier, reuse.stack, reuse.autocast)
    words, num_layers = split.encoded.words, reuse.stack.num_layers
    ends = row_offsets(np.ones(len(split.encoded), np.int64) if words is None else words.kept)
    found = {depth: np.empty((int(ends[-1]), reuse.stack.width), np.float32) for depth in depths}
    with prefix.watching(set(depths)):
        for rows in fill_batches(split.encoded.lengths, prefix.device.type):
            inputs = to_device(split(rows), prefix.device)
            for depth, value in prefix.capture(inputs).values.items():
                if depth in found:
                    read = value if depth == num_layers else _read_here(value, inputs)
                    _put(found[depth], read.float().cpu().numpy(), rows, ends)
    return found


def _read_here(hidden: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(rows, tokens, width) -> (rows, width), or (rows, words, width)."""
    if "words" in inputs:
        return words_at(hidden, inputs["words"])
    mask = inputs["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def _put(target: np.ndarray, read: np.ndarray, rows: np.ndarray, ends: np.ndarray) -> None:
    if read.ndim == 2:
        target[rows] = read
        return
    for place, row in enumerate(rows):
        target[ends[row]:ends[row + 1]] = read[place, :ends[row + 1] - ends[row]]


def fit(task: str, features: np.ndarray, labels: np.ndarray, num_outputs: int) -> Any:
    """A function features (rows, width) -> logits (rows, outputs): logistic regression, or ridge for a regression."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if task == TAGGED and (labels == labels[0]).all():  # few sentences may hold nothing but O
        return lambda rows: np.tile(np.where(np.arange(num_outputs) == labels[0], 0.0, -1e9), (len(rows), 1))
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
