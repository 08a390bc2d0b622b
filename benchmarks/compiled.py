"""Does `torch.compile` pay? Seconds per training epoch at one depth, eager and with the trained layers compiled.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py --depth 3

The first compiled epoch contains the compiling; it needs a C++ compiler on a CPU.
"""

from __future__ import annotations

import argparse
import time

import torch
from speed import COMMON

from finetune.config import TrialConfig
from finetune.data.encoding.batches import to_device, training_batches
from finetune.freezing import Moment
from finetune.training.loop import per_example_loss
from finetune.trial import build_classifier, encode_splits, resolve_trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    resolved = resolve_trial(TrialConfig.from_mapping({**COMMON, "freeze_depth": args.depth, "prefix_cache": False}))
    train = encode_splits(resolved)["train"]
    batches = training_batches(train.encoded.lengths, COMMON["per_device_train_batch_size"], seed=1, epoch=1)
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        classifier, stack = build_classifier(resolved)
        plan = resolved.strategy.plan(stack, Moment(1, 0, args.epochs, args.epochs * len(batches), 1))
        classifier.train()
        plan.apply(classifier)
        if name == "compiled":
            for layer in stack.layers[args.depth:]:
                layer.compile(dynamic=True)
        optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=2e-5, fused=True)
        seconds = []
        for _ in range(args.epochs):
            began = time.perf_counter()
            for rows in batches:
                logits = classifier(**to_device(train(rows), torch.device("cpu")))
                per_example_loss(resolved.data.task, logits, train.labels(rows)).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            seconds.append(time.perf_counter() - began)
        print(f"{name}: {', '.join(f'{s:.1f}' for s in seconds)} s per epoch of {len(batches)} steps", flush=True)


if __name__ == "__main__":
    main()
