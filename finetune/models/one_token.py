"""Where a head reads one token per row (pooling cls, last, pooler), the last layer finishes only that token.

What follows its attention (output projection, feed-forward, norms: three quarters of a BERT layer's multiplications)
treats each token by itself, so that all but one token's share is computed for nothing. The modules whose input may be
cut to the one token are found by trial and not by name: with the cut, the layer must still give the same vector there.
The forward pass stays the model's own. Dropout then draws for the one token only: another draw, the same distribution.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from finetune.models.layers import LayerStack
from finetune.models.tracing import TOKENS, find_hidden, in_eval_mode, probe_inputs, removed_afterwards, with_hidden

SAME = 3e-5  # of the vector's root mean square: above rounding, below what another token's vector differs by
SCALES = (1.0, 30.0)  # of the noise: with large inputs attention is sharp, and keys matter even where weights are small


class Reader(threading.local):
    """The token that is read of each row, in the forward pass that this thread runs; None: all are computed."""

    position: Tensor | None = None  # (rows,)
    tokens: int = 0
    has_cut = False  # since it was made

    @contextmanager
    def at(self, position: Tensor, tokens: int) -> Iterator[None]:
        self.position, self.tokens = position, tokens
        try:
            yield
        finally:
            self.position = None

    def __deepcopy__(self, memo: dict) -> Reader:
        """The hooks of a copied model ask this reader."""
        return self

    def cut(self, value: Any) -> Any:
        """(rows, tokens, width) -> (rows, 1, width); anything else as it is."""
        if not isinstance(value, Tensor) or value.dim() != 3 or value.shape[:2] != (len(self.position), self.tokens):
            return value
        self.has_cut = True
        return token_at(value, self.position).unsqueeze(1)

    def hook(self) -> Callable:
        """A forward pre-hook with keyword arguments. A function: a model that is copied takes it along."""
        def cut_inputs(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            if self.position is None:
                return None
            return tuple(map(self.cut, args)), {name: self.cut(value) for name, value in kwargs.items()}

        return cut_inputs


def token_at(hidden: Tensor, position: Tensor) -> Tensor:
    """(rows, tokens, width), or (rows, 1, width) where all but the read token were cut; (rows,) -> (rows, width)."""
    if hidden.shape[1] == 1:
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), position.to(hidden.device)]


def install(model: nn.Module, names: Sequence[str], reader: Reader) -> list[RemovableHandle]:
    """Cut the inputs of these modules of `model` wherever `reader` says at which token."""
    return [model.get_submodule(name).register_forward_pre_hook(reader.hook(), with_kwargs=True) for name in names]


def cuttable_modules(stack: LayerStack) -> tuple[str, ...]:
    """Names of modules in the last layer whose input may be cut to the token that is read; empty where none may.

    In the order in which they run; what follows a cut module in the layer gets one token by itself.
    """
    if stack.layout != "rows_first":
        return ()
    with in_eval_mode(stack.model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the GPU's is the trial's
        trials = _Trials(stack)
        chosen: list[str] = []
        for name in trials.order:
            if not any(name.startswith(f"{outer}.") for outer in chosen) and trials.same([*chosen, name]):
                chosen.append(name)
    return tuple(f"{stack.path}.{stack.num_layers - 1}.{name}" for name in chosen)


class _Trials:
    """The last layer alone, on noise, with and without cuts. `order`: its modules as they are called."""

    def __init__(self, stack: LayerStack):
        self.layer = stack.layers[-1]
        seen: list[tuple[tuple, dict]] = []
        called: dict[str, None] = {}

        def note(name: str) -> Callable:
            return lambda module, args: called.setdefault(name)

        handles = [self.layer.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)),
                                                        with_kwargs=True)]
        handles += [module.register_forward_pre_hook(note(name)) for name, module in self.layer.named_modules() if name]
        with removed_afterwards(handles):
            stack.model(**probe_inputs(stack.model))
        self.order = list(called)
        where, hidden = find_hidden(*seen[0])
        self.calls = [with_hidden(where, scale * torch.randn_like(hidden), *seen[0]) for scale in SCALES]
        self.position = torch.tensor([TOKENS - 2, 1], device=hidden.device)
        self.expected = [_read(self.layer, call, self.position) for call in self.calls]

    def same(self, names: list[str]) -> bool:
        """Whether the layer's vector at the read token survives these cuts, of which the last one cuts something."""
        earlier, newest = Reader(), Reader()
        handles = install(self.layer, names[:-1], earlier) + install(self.layer, names[-1:], newest)
        with removed_afterwards(handles), earlier.at(self.position, TOKENS), newest.at(self.position, TOKENS):
            try:
                found = [_read(self.layer, call, self.position) for call in self.calls]
            except Exception:  # whatever a model's own code raises when shapes do not fit
                return False
        return newest.has_cut and all(map(_close, found, self.expected))


def _read(layer: nn.Module, call: tuple[tuple, dict], position: Tensor) -> Tensor:
    """(rows, width): the layer's output at the token that is read."""
    output = layer(*call[0], **call[1])
    return token_at(output if isinstance(output, Tensor) else output[0], position)


def _close(found: Tensor, expected: Tensor) -> bool:
    scale = expected.square().mean().sqrt()
    return found.shape == expected.shape and bool(((found - expected).abs() <= SAME * scale).all())
