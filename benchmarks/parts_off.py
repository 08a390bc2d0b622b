"""The trial with one part of its speed taken away, for the leave-one-out ladder: a task module for `run_sweep`.

BENCH_WITHOUT names the part: reuse, shared_pass, grouping, fused, warm, one_token. The numbers of a trial stay what
they are, but for the order of rows where grouping is off.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from finetune import trial
from finetune.prefix import budget, reuse
from finetune.randomness import stream_seed
from finetune.training import loop
from finetune.trial import build, resolve, resolve_trial  # noqa: F401  (a task offers it)

PARTS = {
    "reuse": "no reuse of frozen activations (prefix_cache: false)",
    "shared_pass": "each depth fills its own activations, in a pass of its own",
    "grouping": "random batches, evaluation in the rows' own order",
    "fused": "AdamW without fusing",
    "warm": "data, tokens and weights read anew by every trial",
}
ONE_TOKEN = {"one_token": "every token of the last layer is finished, although the head reads one"}  # pooling: cls
WITHOUT = os.environ.get("BENCH_WITHOUT", "")


def shuffled_batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    rows = np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(len(lengths))
    return [rows[start:start + size] for start in range(0, len(rows), size)]


def batches_in_order(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]


if WITHOUT == "grouping":
    loop.training_batches, loop.evaluation_batches = shuffled_batches, batches_in_order
if WITHOUT == "shared_pass":
    reuse.current_hint = lambda: budget.PrefixHint()
if WITHOUT == "one_token":
    build.Classifier.read_one_token = lambda self, source: None
if WITHOUT == "fused":
    _make_optimizer = loop.make_optimizer

    def make_optimizer(*arguments):
        fused = _make_optimizer(*arguments)
        plain = torch.optim.AdamW(fused.param_groups, fused=False)
        for group in plain.param_groups:
            group["fused"] = False
        return plain

    loop.make_optimizer = make_optimizer


def run_trial(config, *, observer=None):
    if WITHOUT == "warm":
        from finetune.data import load
        from finetune.models import forget_backbones

        forget_backbones()
        load._memory.clear()
        resolve._rows_memo._results.clear()
        build._encodings_memo._results.clear()
    if WITHOUT == "reuse":
        config = config.replace(prefix_cache=False)
    return trial.run_trial(config, observer=observer)
