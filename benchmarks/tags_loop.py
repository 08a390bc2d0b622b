"""Named entities by a plain loop over AutoModelForTokenClassification, beside the trials of sweeps/entities_mini.yaml.

The same sentences and hyper-parameters: PyTorch's default initialisation of the classifier, no decay of biases and
norms, batches by length, the warm-up's shape. Encoding, model, training, choice of the epoch and scoring are
transformers', torch's and seqeval's own; from this package come the rows, and the order and learning rates that its
seeds and knobs stand for. What differs is the draws of head and dropout. Prints one JSON line per seed, and the sweep's
own figures where its folder is given.

    python benchmarks/tags_loop.py --seeds 1 2 3 --sweep runs/entities_mini
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from torch import nn
from transformers import AutoModelForTokenClassification, AutoTokenizer

from finetune.config import TrialConfig
from finetune.data import Split, load_task_data, subset_train
from finetune.data.encoding.batches import evaluation_batches, training_batches
from finetune.models.sources import find_model
from finetune.results import TrialRecord
from finetune.training.schedule import shape

BATCH, EPOCHS, MAX_LENGTH = 16, 3, 64


def encoded(tokenizer, split: Split) -> list[dict[str, list[int]]]:
    """Ids and labels of every sentence; the first subword of a word has its tag, the others -100."""
    rows = []
    for words, tags in zip(split.texts, split.labels, strict=True):
        found = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=MAX_LENGTH)
        seen, labels = set(), []
        for word in found.word_ids():
            labels.append(-100 if word is None or word in seen else int(tags[word]))
            seen.add(word)
        rows.append({"input_ids": found["input_ids"], "labels": labels})
    return rows


def batch(tokenizer, rows: list[dict[str, list[int]]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    padded = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
    width = padded["input_ids"].shape[1]
    labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    return dict(padded), labels


@torch.no_grad()
def score(model: nn.Module, tokenizer, rows: list[dict], split: Split, names: list[str]) -> float:
    """Strict micro F1; a word that was cut has no entity."""
    model.eval()
    said: dict[int, list[str]] = {}
    lengths = np.array([len(row["input_ids"]) for row in rows])
    for places in evaluation_batches(lengths, 4 * BATCH):
        inputs, labels = batch(tokenizer, [rows[place] for place in places])
        for place, guess, known in zip(places, model(**inputs).logits.argmax(-1), labels != -100, strict=True):
            words = [names[tag] for tag in guess[known]]
            said[place] = words + ["O"] * (len(split.texts[place]) - len(words))
    truth = [[names[tag] for tag in tags[:len(words)]] for words, tags in zip(split.texts, split.labels, strict=True)]
    said_in_order = [said[place] for place in range(len(rows))]
    return f1_score(truth, said_in_order, mode="strict", scheme=IOB2, zero_division=0)


def train(config: TrialConfig, seed: int) -> dict[str, float]:
    data = subset_train(load_task_data(config), config.train_size, config.subset_seed)
    folder = find_model(config).folder
    names, tokenizer = list(data.label_names), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=len(names), dtype=torch.float32)
    model.classifier.reset_parameters()
    groups = [{"params": [p for name, p in model.named_parameters()
                          if name.startswith("classifier.") == is_head and (p.ndim > 1) == decays],
               "peak": rate, "weight_decay": config.weight_decay * decays}
              for is_head, rate in ((False, config.learning_rate), (True, config.head_learning_rate))
              for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    rows = {name: encoded(tokenizer, split) for name, split in data.splits.items()}
    lengths = np.array([len(row["input_ids"]) for row in rows["train"]])
    steps, step, best = EPOCHS * -(-len(lengths) // BATCH), 0, {"validation": -1.0, "test": 0.0}
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for places in training_batches(lengths, BATCH, seed, epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * shape(config, step, steps)
            inputs, labels = batch(tokenizer, [rows["train"][place] for place in places])
            logits = model(**inputs).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        reached = score(model, tokenizer, rows["validation"], data.splits["validation"], names)
        if reached > best["validation"]:
            best = {"validation": reached,
                    "test": score(model, tokenizer, rows["test"], data.splits["test"], names)}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sweep", type=Path, help="the folder of `finetune sweep sweeps/entities_mini.yaml`")
    args = parser.parse_args()
    config = TrialConfig(dataset_name="wnut17_mini", learning_rate=3e-4, head_learning_rate=3e-3, train_size=400,
                         subset_seed=1, max_length=MAX_LENGTH)
    paths = sorted(args.sweep.glob("trials/*/record.json")) if args.sweep else []
    for record in (TrialRecord.from_json(json.loads(path.read_text())) for path in paths):
        if record.config["freeze_depth"] == 0 and record.state == "complete":
            print(json.dumps({"side": "finetune", "seed": record.config["seed"],
                              **{split: record.metrics[split]["f1"] for split in ("validation", "test")}}), flush=True)
    for seed in args.seeds:
        print(json.dumps({"side": "plain loop", "seed": seed, **train(config, seed)}), flush=True)


if __name__ == "__main__":
    main()
