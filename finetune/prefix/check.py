"""Is a replay sound for this model, this tokenizer and these texts? Tried on a few rows before anything is kept.

Two questions, apart from each other. Of structure: activations are kept without their padding, which assumes that what
a token becomes does not depend on how much padding stands beside it. It is not so everywhere: with padding on the left
and learned absolute positions a row's positions shift with its batch. That is asked in full precision, where such a
difference cannot be mistaken for rounding, and once per model. Of rounding: in mixed precision a replay may differ from
the full forward pass by about as much as that pass differs from the one in full precision, or from itself with other
padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.data.encoding.batches import Collator, to_device
from finetune.prefix.fill import Prefix
from finetune.prefix.precision import COMPUTE, rounded
from finetune.prefix.replay import Replay

ROWS_EACH = 2
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest value; lower precision:
COARSE = 0.05
ROUNDINGS = 4  # a replay rounds once more than the full pass, and layers above carry that on
_sound: set[tuple] = set()  # (what decides the structure, side, boundary) that this process has found sound


@dataclass
class _Tried:
    """Pooled vectors of a few rows. `alone` and `beside` are full passes, without and with long rows beside them."""

    alone: Tensor  # (short rows, width)
    beside: Tensor  # (rows, width)
    replayed: dict[int, Tensor]  # per boundary, of the same rows as `beside`

    def error(self, boundary: int) -> float:
        return _largest(self.replayed[boundary], self.beside)


def replay_error(prefix: Prefix, split: Collator, boundaries: set[int], layer_outputs: int, structure: tuple = ()
                 ) -> str | None:
    """Why the prefix must not be replayed, or None. Short rows alone, then beside long ones.

    `structure`: whatever decides the answer to the first question; empty: ask anew.
    """
    mixed = prefix.mixed_precision in COMPUTE
    asked = {boundary for boundary in boundaries if (structure, split.side, boundary) not in _sound}
    if not asked and not mixed:
        return None
    exact = _in_full_precision(prefix, split, asked, layer_outputs)
    limit = TOLERANCE.get(exact.beside.dtype, COARSE) * float(exact.beside.abs().max())
    for boundary in sorted(asked):
        if not exact.error(boundary) <= limit:
            return (f"a replay from layer {boundary} differs from the full forward by {exact.error(boundary):.1e}: "
                    "in this model a token's vector depends on the padding beside it")
        if structure and len(set(split.encoded.lengths.tolist())) > 1:  # else there was no padding to depend on
            _sound.add((structure, split.side, boundary))
    return _rounding_error(prefix, split, boundaries, layer_outputs, exact) if mixed else None


def _rounding_error(prefix: Prefix, split: Collator, boundaries: set[int], layer_outputs: int, exact: _Tried
                    ) -> str | None:
    """Why replays in mixed precision are too coarse, or None."""
    tried = _try(prefix, split, boundaries, layer_outputs)
    step = torch.finfo(COMPUTE[prefix.mixed_precision]).eps * float(tried.beside.abs().max())
    own = max(step, _largest(tried.beside, exact.beside),
              _largest(tried.alone, _cut(tried.beside[:len(tried.alone)], tried.alone)))
    for boundary in sorted(boundaries):
        if not tried.error(boundary) <= ROUNDINGS * own:
            return (f"a replay from layer {boundary} in {prefix.mixed_precision} differs from the full forward by "
                    f"{tried.error(boundary):.1e}, where {prefix.mixed_precision} itself rounds by {own:.1e}")
    return None


def _in_full_precision(prefix: Prefix, split: Collator, boundaries: set[int], layer_outputs: int) -> _Tried:
    plain = Prefix(prefix.classifier, prefix.stack, _without_rounding(prefix))
    return _try(plain, split, boundaries, layer_outputs)


def _without_rounding(prefix: Prefix) -> Callable[[], contextlib.AbstractContextManager]:
    """No autocast, and no tensor cores that drop digits of float32."""
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with (_without_tf32() if prefix.device.type == "cuda" else contextlib.nullcontext(),
              torch.autocast(prefix.device.type, enabled=False)):
            yield

    return context


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def _try(prefix: Prefix, split: Collator, boundaries: set[int], layer_outputs: int) -> _Tried:
    order = np.argsort(split.encoded.lengths, kind="stable")
    short, both = order[:ROWS_EACH], np.concatenate([order[:ROWS_EACH], order[-ROWS_EACH:]])
    num_layers = prefix.stack.num_layers
    with prefix.watching({*boundaries, num_layers}):
        alone = prefix.capture(to_device(split(short), prefix.device)).values
        beside = prefix.capture(to_device(split(both), prefix.device)).values
        replay = Replay(prefix.stack, layer_outputs)
        try:
            replayed = {boundary: _replayed(prefix, replay, split, short, both, boundary, alone, beside)
                        for boundary in sorted(boundaries)}
        finally:
            replay.remove()
    return _Tried(alone[num_layers], beside[num_layers], replayed)


def _replayed(prefix: Prefix, replay: Replay, split: Collator, short: np.ndarray, both: np.ndarray, boundary: int,
              alone: dict[int, Tensor], expected: dict[int, Tensor]) -> Tensor:
    """The pooled vectors of `both`, with what the short rows were alone in place of what they are beside long ones."""
    kept = rounded(alone[boundary], prefix.mixed_precision), rounded(expected[boundary], prefix.mixed_precision)
    if boundary == prefix.stack.num_layers:
        return torch.cat([_widened(kept[0], kept[1]), kept[1][len(short):]])
    inputs = to_device(split(both), prefix.device)
    hidden = torch.zeros_like(expected[boundary])
    for position, row in enumerate(both):
        length = int(split.encoded.lengths[row])
        source = kept[position >= len(short)][position]
        if split.side == "left":
            hidden[position, -length:] = source[-length:]
        else:
            hidden[position, :length] = source[:length]
    replay.set(boundary, hidden)
    value = prefix.capture(inputs).values[prefix.stack.num_layers]
    replay.set(boundary, None)
    return value


def _cut(value: Tensor, like: Tensor) -> Tensor:
    """(rows, words, width) of as many words as `like` has; pooled vectors as they are."""
    return value[:, :like.shape[1]] if value.dim() == 3 else value


def _widened(value: Tensor, like: Tensor) -> Tensor:
    """(rows, words, width) with zeros up to the words of `like`; pooled vectors as they are."""
    if value.dim() == 2:
        return value
    return torch.nn.functional.pad(value, (0, 0, 0, like.shape[1] - value.shape[1]))


def _largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference; not a number where one of them is none."""
    return float((found.float() - expected.float()).abs().max())
