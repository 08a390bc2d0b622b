"""The reference notebook's loop: everything padded to 100 tokens, one backbone after the other through all depths.

Frozen layers stay in train mode (with dropout), plain AdamW, one process with all cores. Prints one JSON line.

    python benchmarks/notebook_loop.py ROWS.json MODEL_FOLDER --depths 0 6
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

BEGAN = time.perf_counter()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402

LENGTH, BATCH = 100, 16


def batches(rows: dict, tokenizer) -> list[tuple[dict, torch.Tensor]]:
    encoded = tokenizer(rows["texts"], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    labels = torch.tensor(rows["labels"])
    return [({key: encoded[key][start:start + BATCH] for key in encoded}, labels[start:start + BATCH])
            for start in range(0, len(labels), BATCH)]


def accuracy(model, head, data) -> float:
    model.eval()
    with torch.no_grad():
        right = [head(model(**batch).last_hidden_state.mean(1)).argmax(-1) == labels for batch, labels in data]
    return float(torch.cat(right).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows")
    parser.add_argument("model")
    parser.add_argument("--depths", type=int, nargs="+", default=list(range(7)))
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    content = json.loads(Path(args.rows).read_text(encoding="utf-8"))
    data = {name: batches(rows, tokenizer) for name, rows in content.items()}
    results = []
    for depth in args.depths:
        began = time.perf_counter()
        torch.manual_seed(1)
        model = AutoModel.from_pretrained(args.model)
        head = nn.Linear(model.config.hidden_size, 2)
        for module in [model.embeddings, *model.encoder.layer[:depth]] if depth else []:
            module.requires_grad_(False)
        optimizer = torch.optim.AdamW([{"params": model.parameters(), "lr": 2e-5},
                                       {"params": head.parameters(), "lr": 1e-3}])
        for _ in range(args.epochs):
            model.train()
            for batch, labels in data["train"]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(model(**batch).last_hidden_state.mean(1)), labels).backward()
                optimizer.step()
            validation = accuracy(model, head, data["validation"])
        results.append({"depth": depth, "seconds": time.perf_counter() - began, "validation": validation,
                        "test": accuracy(model, head, data["test"])})
    print(json.dumps({"trials": results, "seconds": time.perf_counter() - BEGAN}))


if __name__ == "__main__":
    main()
