"""One pass over the texts that gives the input of every wanted layer, and the pooled vector.

What is computed depends on the texts alone: rows sorted by length in batches of a fixed size, each batch on one
thread, so that neither the sweep nor the machine's load changes a digit. Several batches run side by side: on a CPU as
many as there are cores, on a GPU two, so that one is computed while the other is copied out and written.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.encoding.batches import Collator, to_device
from finetune.errors import EnvironmentProblem
from finetune.models.head import Classifier
from finetune.models.layers import LayerStack
from finetune.models.tracing import find_hidden, in_eval_mode, removed_afterwards
from finetune.prefix.precision import as_array, kept_dtype

ROWS, TOKENS = {"cpu": 32, "cuda": 256}, {"cpu": 8192, "cuda": 131072}  # per batch, at most
Autocast = Callable[[], contextlib.AbstractContextManager]


@dataclass
class Capture:
    """What one forward pass leaves behind: {boundary: hidden (rows, tokens, width) or pooled (rows, width)}."""

    values: dict[int, Tensor] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)  # from the pass's beginning
    layer_outputs: int = 0  # how many values a layer returns; 0: a bare tensor


class _Enough(Exception):
    """The deepest wanted value is there."""


class Prefix:
    """The frozen layers of a classifier, read at several depths. Boundary L is what the head reads."""

    def __init__(self, classifier: Classifier, stack: LayerStack, autocast: Autocast, mixed_precision: str = "no"):
        self.classifier, self.stack, self.autocast = classifier, stack, autocast
        self.mixed_precision = mixed_precision
        self.device = next(classifier.parameters()).device
        self._local = threading.local()

    @contextlib.contextmanager
    def watching(self, boundaries: set[int]) -> Iterator[None]:
        """Hooks for `capture`, in eval mode; afterwards every module is in the mode that it had."""
        num_layers, layers = self.stack.num_layers, self.stack.layers
        deepest = max(boundaries)
        handles = [layers[0].register_forward_hook(self._note_outputs)]
        handles += [layers[boundary].register_forward_pre_hook(self._reader(boundary, last=boundary == deepest),
                                                               with_kwargs=True)
                    for boundary in boundaries if boundary < num_layers]
        with removed_afterwards(handles), in_eval_mode(self.classifier):
            yield

    def capture(self, inputs: Mapping[str, Tensor]) -> Capture:
        """One pass, as deep as needed. Only inside `watching`; safe from several threads."""
        local = self._local
        local.capture, local.began = Capture(), time.perf_counter()
        with torch.inference_mode(), self.autocast(), contextlib.suppress(_Enough):
            pooled = self.classifier.pool(**inputs)
            self._keep(self.stack.num_layers, pooled)
        return local.capture

    def kept(self, value: Tensor) -> torch.dtype:
        """In which dtype a captured value is kept."""
        return kept_dtype(value.dtype, self.mixed_precision)

    def _keep(self, boundary: int, value: Tensor) -> None:
        self._local.capture.values[boundary] = value
        self._local.capture.seconds[boundary] = time.perf_counter() - self._local.began

    def _reader(self, boundary: int, *, last: bool) -> Callable:
        def hook(layer: Any, args: tuple, kwargs: dict) -> None:
            hidden = find_hidden(args, kwargs)[1]
            self._keep(boundary, hidden.transpose(0, 1) if self.stack.layout == "tokens_first" else hidden)
            if last:
                raise _Enough

        return hook

    def _note_outputs(self, layer: Any, args: tuple, output: Any) -> None:
        self._local.capture.layer_outputs = 0 if isinstance(output, Tensor) else len(output)


def fill_batches(lengths: np.ndarray, device_type: str) -> list[np.ndarray]:
    """Rows by length, longest first, cut where a batch would hold too many rows or padded tokens."""
    rows_limit, tokens_limit = ROWS.get(device_type, ROWS["cuda"]), TOKENS.get(device_type, TOKENS["cuda"])
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, min(rows_limit, tokens_limit // int(lengths[order[start]])))
        batches.append(order[start:start + size])
        start += size
    return batches


def row_offsets(lengths: np.ndarray) -> np.ndarray:
    """Where each row begins in an array of all rows' tokens; one more at the end."""
    return np.concatenate([[0], np.cumsum(lengths)])


def fill(prefix: Prefix, split: Collator, targets: Mapping[int, np.ndarray],
         progress: Callable[[int, int], None] = lambda done, total: None) -> dict[int, float]:
    """Write into `targets` {boundary: array}; returns the seconds that each boundary took.

    Hidden states go into (tokens of all rows, width), pooled vectors into (rows, width).
    """
    offsets, began = row_offsets(split.encoded.lengths), time.perf_counter()
    batches = fill_batches(split.encoded.lengths, prefix.device.type)
    seconds = dict.fromkeys(targets, 0.0)

    def work(rows: np.ndarray) -> Capture:
        captured = prefix.capture(to_device(split(rows), prefix.device))
        for boundary, target in targets.items():
            found = _fitting(captured.values[boundary], prefix)
            _write(target, found, rows, split, offsets, boundary == prefix.stack.num_layers)
        captured.values.clear()
        return captured

    with prefix.watching(set(targets)), _one_thread_each(prefix.device.type) as workers:
        for done, captured in enumerate(workers.map(work, batches), start=1):
            for boundary in seconds:
                seconds[boundary] += captured.seconds[boundary]
            progress(done, len(batches))
    # What ran side by side took less time than the sum.
    elapsed, longest = time.perf_counter() - began, max(seconds.values(), default=0.0)
    return {boundary: spent * min(1.0, elapsed / longest) if longest else 0.0 for boundary, spent in seconds.items()}


def _fitting(value: Tensor, prefix: Prefix) -> np.ndarray:
    """As it is kept. Raises EnvironmentProblem where float16 has no room for what float32 holds."""
    kept = prefix.kept(value)
    found = as_array(value, kept)
    if kept == torch.float16 and value.dtype != kept and not np.isfinite(found).all():
        raise EnvironmentProblem("what the frozen layers compute is beyond float16's range, in which it would be kept")
    return found


def _write(target: np.ndarray, found: np.ndarray, rows: np.ndarray, split: Collator, offsets: np.ndarray,
           pooled: bool) -> None:
    if pooled and split.encoded.words is not None:
        ends = row_offsets(split.encoded.words.kept)
        for position, row in enumerate(rows):
            target[ends[row]:ends[row + 1]] = found[position, :ends[row + 1] - ends[row]]
        return
    if pooled:
        target[rows] = found
        return
    for position, row in enumerate(rows):
        length = int(split.encoded.lengths[row])
        real = found[position, -length:] if split.side == "left" else found[position, :length]
        target[offsets[row]:offsets[row + 1]] = real


@contextlib.contextmanager
def _one_thread_each(device_type: str) -> Iterator[ThreadPoolExecutor]:
    """As many batches side by side as there are cores, each computed by one thread; on a GPU two."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    if device_type == "cpu":
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores if device_type == "cpu" else 2,
                                initializer=lambda: torch.set_num_threads(1)) as workers:
            yield workers
    finally:
        torch.set_num_threads(before)
