"""A cached hidden state takes the place of the layers below it. The forward pass stays the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from finetune.models.layers import LayerStack
from finetune.models.tracing import find_hidden, with_hidden


class Replay:
    """Hooks on one model. While a hidden state is set, layers below the boundary hand on what they are given.

    `outputs`: how many values a layer returns, 0 for a bare tensor: a layer that is skipped returns as many.
    Masks, position biases, rotary embeddings, final norms and poolers are computed as ever.
    """

    def __init__(self, stack: LayerStack, outputs: int):
        self.stack, self.outputs = stack, outputs
        self._boundary = 0
        self._hidden: Tensor | None = None
        self._installed: list[Callable[[], None]] = []

    def set(self, boundary: int, hidden: Tensor | None) -> None:
        """From now on layer `boundary` (from 1) reads `hidden` (rows, tokens, width); None: everything runs.

        It stays until the next call, because checkpointed layers run again in the backward pass.
        """
        if hidden is not None and boundary != self._boundary:
            self.remove()
            self._install(boundary)
        self._hidden = hidden

    def remove(self) -> None:
        for undo in self._installed:
            undo()
        self._installed.clear()
        self._boundary, self._hidden = 0, None

    def _install(self, boundary: int) -> None:
        assert 1 <= boundary < self.stack.num_layers, "layer `boundary` must exist and be above the first"
        self._boundary = boundary
        for layer in self.stack.layers[:boundary]:
            self._pass_through(layer)
        handle = self.stack.layers[boundary].register_forward_pre_hook(self._put_in, with_kwargs=True)
        self._installed.append(handle.remove)

    def _pass_through(self, layer: nn.Module) -> None:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._hidden is None:
                return own(*args, **kwargs)
            hidden = find_hidden(args, kwargs)[1]
            return (hidden, *[None] * (self.outputs - 1)) if self.outputs else hidden

        layer.forward = forward
        self._installed.append(lambda: layer.__dict__.pop("forward", None))

    def _put_in(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self._hidden is None:
            return None
        hidden = self._hidden
        if self.stack.layout == "tokens_first":
            hidden = hidden.transpose(0, 1).contiguous()
        return with_hidden(find_hidden(args, kwargs)[0], hidden, args, kwargs)
