"""The trial on a GPU with one part of its speed taken away: a task module for `run_sweep`, as parts_off.py is on a CPU.

BENCH_WITHOUT names the part: graphs, resident, buckets, stack, reuse.
"""

from __future__ import annotations

import os

from finetune import trial
from finetune.prefix import served
from finetune.training import device as card
from finetune.trial import head_stacks, resolve_trial  # noqa: F401  (a task offers it)

PARTS = {
    "graphs": "every step launched kernel by kernel (cuda_graphs: false)",
    "resident": "activations stay on the host and are copied at every step",
    "buckets": "batches as long as their longest row",
    "stack": "heads over the whole frozen backbone train one by one",
    "reuse": "no reuse of frozen activations (prefix_cache: false)",
}
WITHOUT = os.environ.get("BENCH_WITHOUT", "")
_KNOBS = {"graphs": {"cuda_graphs": "false"}, "reuse": {"prefix_cache": False}}

if WITHOUT == "buckets":
    card.BUCKET_TOKENS.clear()
if WITHOUT == "resident":
    served.RESIDENT_ON = frozenset()
if WITHOUT == "stack":
    head_stacks.STACKED_ON.clear()


def run_trial(config, **keywords):
    return trial.run_trial(config.replace(**_KNOBS.get(WITHOUT, {})), **keywords)
