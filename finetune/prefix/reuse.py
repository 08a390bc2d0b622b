"""What a trial asks: logits of some rows, from the cached prefix where its plan allows it and from the texts elsewhere.

The boundary is how many layers, from the input, are frozen, quiet and as they were pretrained. It changes with the
plan and is never above a layer that has trained. Layers between the deepest kept boundary and the plan's are computed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from finetune.data.encoding.batches import Collator, to_device
from finetune.errors import EnvironmentProblem
from finetune.files import digest_of
from finetune.freezing import FreezePlan
from finetune.models.head import Classifier
from finetune.models.layers import LayerStack
from finetune.prefix.budget import current_hint, disk_budget, sweep_budget, worth_keeping
from finetune.prefix.check import replay_error
from finetune.prefix.fill import ROWS, TOKENS, Autocast, Prefix, fill
from finetune.prefix.precision import COMPUTE, array_dtype, kept_dtype
from finetune.prefix.replay import Replay
from finetune.prefix.served import Served
from finetune.prefix.store import Entry, PrefixStore

HIDDEN = "hidden"  # among a batch's tensors: what the layer above the boundary reads
FILL_LAYOUT = 4  # raise it when what is computed changes


@dataclass(frozen=True)
class PrefixSource:
    """What decides the bytes of a trial's prefix besides the texts. `prefix_id` names it together with all splits."""

    model: str  # digest of the pretrained files
    attention: str | None
    mixed_precision: str
    pooling: str
    pristine_layers: int  # how many layers from the input are as pretrained; L: top too
    prefix_id: str


@dataclass
class PrefixReuse:
    """One trial's forward passes. Build it once; `enter` it with the plans so far whenever the plan changes."""

    classifier: Classifier
    stack: LayerStack
    source: PrefixSource
    splits: Sequence[Collator]
    autocast: Autocast
    enabled: bool = True
    recomputes: bool = False  # layers run again in the backward pass (gradient checkpointing)
    progress: Callable[[int, int], None] = lambda done, total: None
    boundary: int = 0
    reason: str | None = None  # why nothing is reused, where it is not plain from the plan
    spent_seconds: float = 0.0  # on filling, by this trial

    def __post_init__(self) -> None:
        self.store = PrefixStore()
        self.device = next(self.classifier.parameters()).device
        self._open: dict[tuple[str, int], Served | None] = {}
        self._untrained = False  # layers above the boundary are known to be as pretrained
        self._replay: Replay | None = None

    # -- what the training loop calls ------------------------------------------------------------------------------

    def enter(self, phases: Sequence[FreezePlan]) -> None:
        """`phases`: every plan so far, the present one last."""
        boundaries = [plan.prefix_layers or 0 for plan in phases]
        self.boundary = min(self.source.pristine_layers, *boundaries) if self.enabled else 0
        skippable = not self.stack.carries_state and self.stack.layout != "other"
        if not skippable and 0 < self.boundary < self.stack.num_layers:
            self.boundary, self.reason = 0, "layers hand on more than their hidden state"
        if self._replay is not None:
            self._replay.remove()

    def fill_ahead(self, *splits: Collator) -> None:
        """Before the first step of a fresh model, and only then: fill every depth that the sweep needs.

        Later the layers above this trial's boundary have trained, and what they say is this trial's alone.
        """
        self._untrained = True
        try:
            self.fill(*splits)
        finally:
            self._untrained = False

    def fill(self, *splits: Collator) -> None:
        """Find or compute what these splits will be asked for, outside of what is timed as training."""
        for split in splits:
            self._served(split)

    def logits(self, model: nn.Module, split: Collator, rows: np.ndarray) -> Tensor:
        """(rows, outputs) of `model`, the classifier as Accelerate wrapped it."""
        return self.run(model, self.inputs(split, rows), split)

    def inputs(self, split: Collator, rows: np.ndarray) -> dict[str, Tensor]:
        """What `run` needs on the device: the batch, with what is kept of it as `hidden`, or `pooled` alone."""
        served = self._served(split)
        if served is not None:
            served.rows += len(rows)
            if served.pooled:
                words = split.encoded.words
                return {"pooled": served.vectors(rows) if words is None
                        else served.padded(rows, split.word_width(rows))}
        inputs = to_device(split(rows), self.device)
        return inputs if served is None else {
            **inputs, HIDDEN: served.padded(rows, inputs["input_ids"].shape[1])}

    def starts_at(self, split: Collator) -> int:
        """The layer from which a batch of a split is computed: deeper ones may not be kept. 0: from its texts."""
        served = self._served(split)
        return 0 if served is None else served.boundary

    def serves_pooled(self, split: Collator) -> bool:
        """Whether the head's inputs are kept, one vector per row."""
        served = self._served(split)
        return served is not None and served.pooled and split.encoded.words is None

    def pooled(self, split: Collator, rows: np.ndarray) -> Tensor:
        """(rows, width) of a split that `serves_pooled`; `count` says later for how many trials' sake."""
        return self._served(split).vectors(rows)

    def count(self, split: Collator, rows: int) -> None:
        """So many rows of a split were read for this trial by somebody else."""
        self._served(split).rows += rows

    def run(self, model: nn.Module, inputs: Mapping[str, Tensor], split: Collator) -> Tensor:
        """The forward pass over what `inputs` gave for rows of `split`."""
        texts = {name: value for name, value in inputs.items() if name != HIDDEN}
        if HIDDEN not in inputs:
            if self._replay is not None and "pooled" not in inputs:
                self._replay.set(0, None)
            return model(**texts)
        served = self._served(split)
        replay = self._replaying(served.entry)
        replay.set(served.boundary, inputs[HIDDEN])
        logits = model(**texts)
        if not self.recomputes:
            replay.set(served.boundary, None)
        return logits

    def remove(self) -> None:
        """Leave no hook behind in the model, which another trial takes over."""
        if self._replay is not None:
            self._replay.remove()

    def describe(self) -> dict[str, Any]:
        """For the record's `prefix`. `saved_seconds`: what the replayed passes would have taken, less the filling."""
        served = [one for one in self._open.values() if one is not None and one.rows]
        gained = sum(one.entry.seconds * one.rows / one.total_rows for one in served)
        found = {"used": bool(served), "saved_seconds": gained - self.spent_seconds if served else 0.0,
                 "boundaries": sorted({one.boundary for one in served})}
        return found if served or self.reason is None else {**found, "reason": self.reason}

    def prefix_seconds(self, *splits: Collator) -> float:
        """What building the activations that this trial read of these splits has cost, whoever paid for it."""
        wanted = {split.encoded.fingerprint for split in splits}
        return sum(one.entry.seconds for (split, _), one in self._open.items() if one is not None and split in wanted)

    # -- finding and filling ---------------------------------------------------------------------------------------

    def _served(self, split: Collator) -> Served | None:
        if self.boundary < 1:
            return None
        at = (split.encoded.fingerprint, self.boundary)
        if at not in self._open:
            self._open[at] = self._find_or_fill(split)
        return self._open[at]

    def _find_or_fill(self, split: Collator) -> Served | None:
        began = time.perf_counter()
        own = self.store.read(self.key(split, self.boundary))
        if own is not None:
            return self._serve(own, self.boundary, split)
        try:
            with self.store.lock(digest_of(self._identity(split))[:32]):
                found = self._build(split)
        except EnvironmentProblem as problem:  # the trial can do without
            self.reason, found = str(problem), None
        self.spent_seconds += time.perf_counter() - began
        return found

    def _build(self, split: Collator) -> Served | None:
        """Under the lock: fill what is missing of the boundaries that are worth it; serve the deepest usable one."""
        kept = self._worth_keeping()
        usable = sorted((boundary for boundary in kept if boundary <= self.boundary), reverse=True)
        if not usable:
            self.reason = "the budget of the prefix cache is too small for one depth"
            return None
        entry = self.store.read(self.key(split, usable[0]))
        if entry is None:
            self._fill(split, {boundary for boundary in kept if self.store.read(self.key(split, boundary)) is None})
            entry = self.store.read(self.key(split, usable[0]))
        return entry and self._serve(entry, usable[0], split)

    def _serve(self, entry: Entry, boundary: int, split: Collator) -> Served:
        return Served.of(entry, boundary, split, self.stack.num_layers, self.device, current_hint().budget)

    def _worth_keeping(self) -> set[int]:
        hint = current_hint()
        wanted = dict(hint.wanted.get(self.source.prefix_id, {}))
        deepest = self.source.pristine_layers if self._untrained else self.boundary
        wanted = {depth: trials for depth, trials in wanted.items() if depth <= deepest}
        if self.stack.carries_state or self.stack.layout == "other":
            wanted = {}
        wanted.setdefault(self.boundary, 1)
        budget = sweep_budget(self.store, hint.budget) // max(1, len(hint.wanted))
        return worth_keeping(wanted, {boundary: self._bytes(boundary) for boundary in wanted}, budget)

    def _bytes(self, boundary: int) -> int:
        rows = sum(_vectors(split) for split in self.splits)
        tokens = sum(int(split.encoded.lengths.sum()) for split in self.splits)
        size = kept_dtype(torch.float32, self.source.mixed_precision).itemsize
        return size * self.stack.width * (rows if boundary == self.stack.num_layers else tokens)

    def _fill(self, split: Collator, boundaries: set[int]) -> None:
        if self._replay is not None:
            self._replay.remove()  # it is put back when it is used next
        prefix = Prefix(self.classifier, self.stack, self.autocast, self.source.mixed_precision)
        example = prefix_example(prefix, split, boundaries)
        error = replay_error(prefix, split, boundaries, example.layer_outputs, self._structure())
        if error is not None:
            raise EnvironmentProblem(error)
        with ExitStack() as stack:
            writers = {}
            for boundary in boundaries:
                value = example.values[boundary]
                pooled = boundary == self.stack.num_layers
                count = _vectors(split) if pooled else int(split.encoded.lengths.sum())
                kept = prefix.kept(value)
                writers[boundary] = stack.enter_context(self.store.writer(
                    self.key(split, boundary), (count, value.shape[-1]), array_dtype(kept),
                    self._facts(split, boundary, example.layer_outputs)
                    | {"dtype": str(value.dtype), "kept": str(kept)}))
            seconds = fill(prefix, split, {boundary: writer.array for boundary, writer in writers.items()},
                           self.progress)
            for boundary, writer in writers.items():
                writer.publish(seconds[boundary])
        self.store.evict(disk_budget(self.store, current_hint().budget), keep=[w.key for w in writers.values()])

    def key(self, split: Collator, boundary: int) -> str:
        pooling = self.source.pooling if boundary == self.stack.num_layers else None
        return digest_of([self._identity(split), boundary, pooling])

    def _identity(self, split: Collator) -> list[Any]:
        """Everything that decides the bytes, but for the boundary."""
        source, kind = self.source, self.device.type
        return [FILL_LAYOUT, source.model, source.attention, self.stack.model.config._attn_implementation,
                source.mixed_precision, str(next(self.stack.model.parameters()).dtype), self.stack.path,
                split.encoded.fingerprint, split.pad_token_id, split.side, kind, _hardware(self.device),
                ROWS.get(kind), TOKENS.get(kind), torch.__version__, transformers.__version__, *self._layout(split)]

    def _layout(self, split: Collator) -> list[Any]:
        """Where the bytes are not as they have always been: kept in two bytes, padded to buckets."""
        kept = COMPUTE.get(self.source.mixed_precision)
        return ([str(kept)] if kept is not None else []) + ([split.bucket, split.limit] if split.bucket > 1 else [])

    def _structure(self) -> tuple[Any, ...]:
        """What decides whether a token depends on the padding beside it, besides the side of the padding."""
        source, model = self.source, self.stack.model
        return (source.model, source.attention, source.pooling, source.pristine_layers, type(model).__qualname__,
                model.config._attn_implementation, self.stack.path, self.device.type)

    def _facts(self, split: Collator, boundary: int, layer_outputs: int) -> dict[str, Any]:
        return {"model": self.source.model, "path": self.stack.path, "boundary": boundary,
                "pooled": boundary == self.stack.num_layers, "rows": len(split.encoded),
                "tokens": int(split.encoded.lengths.sum()), "split": split.encoded.fingerprint,
                "layer_outputs": layer_outputs}

    def _replaying(self, entry: Entry) -> Replay:
        if self._replay is None:
            self._replay = Replay(self.stack, int(entry.facts["layer_outputs"]))
        return self._replay


def _vectors(split: Collator) -> int:
    """What the head reads of a split: a vector per row, or per word that the model sees."""
    words = split.encoded.words
    return len(split.encoded) if words is None else int(words.kept.sum())


def prefix_example(prefix: Prefix, split: Collator, boundaries: set[int]) -> Any:
    """A Capture of one row: what the values look like."""
    rows = np.array([int(split.encoded.lengths.argmin())])
    with prefix.watching(boundaries):
        return prefix.capture(to_device(split(rows), prefix.device))


def _hardware(device: torch.device) -> str:
    """Kernels differ between instruction sets and between GPUs, and with them the last digits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
