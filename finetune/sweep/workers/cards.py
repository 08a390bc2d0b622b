"""The GPUs of this machine and how many workers each takes, found without loading torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable

from finetune.config import TrialConfig
from finetune.errors import FinetuneError
from finetune.models.sources import find_at_hand

# A step of a base-sized model leaves most of a card idle, and evaluating, loading and writing more. Measured on an H200
# with BERT-base's shape (benchmarks/gpu.py): four take twice the trials of one, and cores are what is short then.
MOST_PER_GPU, CORES_PER_WORKER = 4, 2
# Of a worker's memory on the card: context and kernels, activations and recorded graphs; then weights, gradients, both
# moments of AdamW, the best epoch's weights and the frozen ones that trials share, each as float32.
FIXED_BYTES, WEIGHTS_HELD = 4 * 2**30, 7


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show us."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [] if visible.strip() in ("", "-1", "NoDevFiles") else [name.strip() for name in visible.split(",")]
    return [str(index) for index, line in enumerate(line for line in _nvidia_smi("-L") if line[:3] == "GPU")]


def free_memory(gpus: Iterable[str]) -> int | None:
    """Bytes that are free on the fullest of these; None where the driver's tool does not say."""
    free = []
    for gpu in gpus:
        said = _nvidia_smi("--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", gpu)
        if len(said) != 1 or not said[0].strip().isdecimal():
            return None
        free.append(int(said[0]) * 2**20)
    return min(free, default=None)


def workers_per_gpu(cores: int, free: int | None, weights: int | None) -> int:
    """One where the card or the model is not known. `cores`: for each GPU; `free`, `weights` (as float32): bytes."""
    if free is None or weights is None:
        return 1
    return max(1, min(MOST_PER_GPU, cores // CORES_PER_WORKER, free // (FIXED_BYTES + WEIGHTS_HELD * weights)))


def weights_at_hand(configs: Iterable[TrialConfig]) -> int | None:
    """Bytes as float32 of the largest model that these name; None where one has not been downloaded yet."""
    by_name = {(config.model_name_or_path, config.model_revision): config for config in configs}
    sizes = [_weights(config) for config in by_name.values()]
    return None if None in sizes else max(sizes, default=None)


def _weights(config: TrialConfig) -> int | None:
    try:
        files = find_at_hand(config)
        if files is None:
            return None
        kept = json.loads((files.folder / "config.json").read_text())
        halved = str(kept.get("dtype") or kept.get("torch_dtype")) in ("bfloat16", "float16")
        return sum(path.stat().st_size for path in files.weight_files()) * (2 if halved else 1)
    except (FinetuneError, OSError, ValueError, AttributeError):  # a trial will say what is wrong with it
        return None


def _nvidia_smi(*options: str) -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run([tool, *options], capture_output=True, text=True, timeout=20,
                              check=True).stdout.splitlines()
    return []
