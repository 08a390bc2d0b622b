"""Is a replay sound for this model, this tokenizer and these texts? Tried on a few rows before anything is kept.

Activations are kept without their padding. That assumes that what a token becomes does not depend on how much padding
stands beside it. It is not so everywhere: with padding on the left and learned absolute positions a row's positions
shift with its batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finetune.data.encoding.batches import Collator, to_device
from finetune.prefix.fill import Prefix
from finetune.prefix.replay import Replay

ROWS_EACH = 2
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest value; lower precision:
COARSE = 0.05


def replay_error(prefix: Prefix, split: Collator, boundaries: set[int], layer_outputs: int) -> str | None:
    """Why the prefix must not be replayed, or None. Short rows alone, then beside long ones."""
    order = np.argsort(split.encoded.lengths, kind="stable")
    short, both = order[:ROWS_EACH], np.concatenate([order[:ROWS_EACH], order[-ROWS_EACH:]])
    num_layers = prefix.stack.num_layers
    with prefix.watching({*boundaries, num_layers}):
        alone = prefix.capture(to_device(split(short), prefix.device)).values
        expected = prefix.capture(to_device(split(both), prefix.device)).values
        limit = TOLERANCE.get(expected[num_layers].dtype, COARSE) * float(expected[num_layers].abs().max())
        replay = Replay(prefix.stack, layer_outputs)
        try:
            for boundary in sorted(boundaries):
                value = _replayed(prefix, replay, split, short, both, boundary, alone, expected)
                difference = float((value.float() - expected[num_layers].float()).abs().max())
                if not difference <= limit:
                    return (f"a replay from layer {boundary} differs from the full forward by {difference:.1e}: "
                            "in this model a token's vector depends on the padding beside it")
        finally:
            replay.remove()
    return None


def _replayed(prefix: Prefix, replay: Replay, split: Collator, short: np.ndarray, both: np.ndarray, boundary: int,
              alone: dict[int, Tensor], expected: dict[int, Tensor]) -> Tensor:
    """The pooled vectors of `both`, with what the short rows were alone in place of what they are beside long ones."""
    if boundary == prefix.stack.num_layers:
        return torch.cat([alone[boundary], expected[boundary][len(short):]])
    inputs = to_device(split(both), prefix.device)
    hidden = torch.zeros_like(expected[boundary])
    for position, row in enumerate(both):
        length = int(split.encoded.lengths[row])
        source = alone[boundary][position] if position < len(short) else expected[boundary][position]
        if split.side == "left":
            hidden[position, -length:] = source[-length:]
        else:
            hidden[position, :length] = source[:length]
    replay.set(boundary, hidden)
    value = prefix.capture(inputs).values[prefix.stack.num_layers]
    replay.set(boundary, None)
    return value
