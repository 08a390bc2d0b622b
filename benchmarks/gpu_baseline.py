"""What a careful user would run on a GPU instead, one process per trial: transformers' no-trainer recipe.

Accelerate, bf16, dynamic padding, fused AdamW, the frozen prefix in eval mode. With --tuned lengths are padded to
multiples of 16 and cuDNN's attention is off. It imports nothing of this package. Prints one JSON line.

    python benchmarks/gpu_baseline.py DATA MODEL --depth 6 --tuned
"""

from __future__ import annotations

import argparse
import json
import time

BEGAN = time.perf_counter()

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import set_seed  # noqa: E402
from datasets import load_dataset  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, get_scheduler  # noqa: E402

WARM_STEPS = 10  # left out of an epoch's steady seconds, or half of it where it is short


class Classifier(nn.Module):
    def __init__(self, backbone: nn.Module, head_size: int):
        super().__init__()
        width = backbone.config.hidden_size
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(width, head_size), nn.ReLU(), nn.Dropout(0.1), nn.Linear(head_size, 2))

    def forward(self, labels: torch.Tensor | None = None, **batch: torch.Tensor) -> torch.Tensor:
        hidden = self.backbone(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    files = {name: f"{args.data}/{name}.jsonl" for name in ("train", "validation")}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = load_dataset("json", data_files=files).map(
        lambda batch: dict(tokenizer(batch["text"], truncation=True, max_length=args.max_length),
                           labels=batch["label"]), batched=True, remove_columns=["text", "label"])
    rows = rows.remove_columns([name for name in rows["train"].column_names
                                if name not in ("input_ids", "attention_mask", "token_type_ids", "labels")])
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=16 if args.tuned else None)
    return (DataLoader(rows["train"], shuffle=True, collate_fn=collate, batch_size=args.batch),
            DataLoader(rows["validation"], collate_fn=collate, batch_size=64))


def freeze(backbone: nn.Module, depth: int) -> list[nn.Module]:
    """BERT's names; returns the modules that stay in eval mode."""
    frozen = [backbone.embeddings, *backbone.encoder.layer[:depth]] if depth else []
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = rows = 0
    with torch.inference_mode():
        for batch in loader:
            predicted, labels = accelerator.gather_for_metrics((model(**batch).argmax(-1), batch["labels"]))
            right, rows = right + int((predicted == labels).sum()), rows + len(labels)
    return right / rows


def now() -> float:
    """When the card has done what it was told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("model")
    for name, default in (("depth", 0), ("head_size", 128), ("seed", 0), ("epochs", 2), ("batch", 32),
                          ("max_length", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    if args.tuned:
        torch.backends.cuda.enable_cudnn_sdp(False)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16")
    set_seed(args.seed)
    train, validation = loaders(args)
    backbone = AutoModel.from_pretrained(args.model, dtype=torch.float32, add_pooling_layer=False)
    frozen, model = freeze(backbone, args.depth), Classifier(backbone, args.head_size)
    trained = [p for p in model.parameters() if p.requires_grad]
    body = [p for p in backbone.parameters() if p.requires_grad]
    groups = [{"params": body, "lr": 5e-5}, {"params": list(model.head.parameters()), "lr": 1e-3}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01, fused=True)
    model, optimizer, train, validation = accelerator.prepare(model, optimizer, train, validation)
    steps, warm = args.epochs * len(train), min(WARM_STEPS, len(train) // 2)
    scheduler = get_scheduler("linear", optimizer, int(0.06 * steps), steps)
    setup, epochs, history, steady = time.perf_counter() - BEGAN, [], [], float("nan")
    for _ in range(args.epochs):
        began = time.perf_counter()
        model.train()
        for module in frozen:
            module.eval()
        for step, batch in enumerate(train):
            if step == warm:
                steady = now()
            accelerator.backward(nn.functional.cross_entropy(model(**batch), batch["labels"]))
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        ended = now()
        epochs.append(ended - began)
        steady = (ended - steady) * len(train) / (len(train) - warm)
        history.append(accuracy(accelerator, model, validation))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps({"accuracy": max(history), "setup_seconds": setup, "epoch_seconds": epochs,
                      "steady_epoch_seconds": steady,
                      "total_seconds": time.perf_counter() - BEGAN, "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
