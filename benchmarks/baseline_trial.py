"""What a careful user would run instead, one process per trial: the recipe of transformers' no-trainer example.

Dynamic padding, fused AdamW, the frozen prefix in eval mode and without a graph, validation after each epoch, the best
epoch tested once. It imports nothing of this package. Prints one JSON line.

    python benchmarks/baseline_trial.py ROWS.json MODEL_FOLDER --depth 4 --learning_rate 2e-5 --seed 1
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from pathlib import Path

BEGAN = time.perf_counter()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, get_scheduler  # noqa: E402


class Classifier(nn.Module):
    def __init__(self, backbone: nn.Module, head_size: int, outputs: int):
        super().__init__()
        width = backbone.config.hidden_size
        hidden = [nn.Dropout(0.1), nn.Linear(width, head_size), nn.ReLU()] if head_size else []
        self.backbone = backbone
        self.head = nn.Sequential(*hidden, nn.Dropout(0.1), nn.Linear(head_size or width, outputs))

    def forward(self, batch: dict) -> torch.Tensor:
        hidden = self.backbone(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def freeze(model: Classifier, depth: int) -> list[nn.Module]:
    """BERT's names; returns the modules that stay in eval mode."""
    backbone = model.backbone
    frozen = [] if depth == 0 else [backbone.embeddings, *backbone.encoder.layer[:max(depth, 0)]]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def loaders(args: argparse.Namespace, tokenizer) -> dict[str, DataLoader]:
    rows = json.loads(Path(args.rows).read_text(encoding="utf-8"))
    collate = DataCollatorWithPadding(tokenizer)

    def loader(name: str) -> DataLoader:
        encoded = tokenizer(rows[name]["texts"], truncation=True, max_length=args.max_length)
        examples = [{key: encoded[key][index] for key in encoded} | {"labels": label}
                    for index, label in enumerate(rows[name]["labels"])]
        train = name == "train"
        return DataLoader(examples, shuffle=train, collate_fn=collate,
                          batch_size=args.batch if train else args.eval_batch)

    return {name: loader(name) for name in ("train", "validation", "test")}


@torch.no_grad()
def accuracy(model: Classifier, loader: DataLoader) -> float:
    model.eval()
    right = [model(batch).argmax(-1) == labels for labels, batch in map(parted, loader)]
    return float(torch.cat(right).float().mean())


def parted(batch) -> tuple[torch.Tensor, dict]:
    batch = dict(batch)
    return batch.pop("labels"), batch


def optimizer_for(model: Classifier, args: argparse.Namespace) -> torch.optim.Optimizer:
    groups = []
    for rate, module in ((args.learning_rate, model.backbone), (args.head_learning_rate, model.head)):
        trained = [p for p in module.parameters() if p.requires_grad]
        groups += [{"params": [p for p in trained if p.ndim > 1], "lr": rate, "weight_decay": 0.01},
                   {"params": [p for p in trained if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows")
    parser.add_argument("model")
    for name, kind, default in (("depth", int, 0), ("learning_rate", float, 2e-5), ("head_learning_rate", float, 1e-3),
                                ("head_size", int, 0), ("seed", int, 1), ("epochs", int, 2), ("batch", int, 16),
                                ("eval_batch", int, 64), ("max_length", int, 128), ("threads", int, 0)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    backbone = AutoModel.from_pretrained(args.model, add_pooling_layer=False)
    model = Classifier(backbone, args.head_size, 2)
    frozen = freeze(model, args.depth)
    data = loaders(args, tokenizer)
    optimizer = optimizer_for(model, args)
    steps = args.epochs * len(data["train"])
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=round(0.1 * steps), num_training_steps=steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    best, weights = -1.0, None
    for _ in range(args.epochs):
        model.train()
        for module in frozen:
            module.eval()
        for labels, batch in map(parted, data["train"]):
            nn.functional.cross_entropy(model(batch), labels).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        reached = accuracy(model, data["validation"])
        if reached > best:
            best, weights = reached, [copy.deepcopy(p.data) for p in trained]
    for parameter, value in zip(trained, weights, strict=True):
        parameter.data.copy_(value)
    print(json.dumps({"validation": best, "test": accuracy(model, data["test"]), "depth": args.depth,
                      "seconds": time.perf_counter() - BEGAN, "cpu_seconds": time.process_time(),
                      "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
