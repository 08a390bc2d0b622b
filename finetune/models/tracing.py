"""What a model does with a few tokens, seen through hooks: which layers run, in which order, and who reads what.

A probe changes nothing: training mode, `requires_grad`, gradients and random numbers are as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

ROWS, TOKENS = 2, 7  # different from each other, so that the axes of a hidden state can be told apart


@dataclass(frozen=True)
class Call:
    """One call of a layer: its hidden state in and out, and every other tensor that came in or went out."""

    name: str
    hidden: torch.Tensor | None
    result: torch.Tensor | None
    returns_tuple: bool
    taken: tuple[torch.Tensor, ...]
    given: tuple[torch.Tensor, ...]


def probe_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Token ids (ROWS, TOKENS) and a mask with one padded position, on the model's device."""
    device = next(model.parameters()).device
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or ROWS * TOKENS
    ids = (torch.arange(ROWS * TOKENS) * 3 + 5) % vocabulary
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[1, -1] = 0
    inputs = {"input_ids": ids.view(ROWS, TOKENS).to(device), "attention_mask": mask.to(device)}
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    return inputs


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards every module is in the mode it had."""
    with _modes_restored(model):
        model.eval()
        yield


@contextmanager
def _modes_restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def removed_afterwards(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks for the block; afterwards they are gone."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch_calls(
    model: nn.Module, watched: Mapping[str, nn.Module], inputs: dict[str, torch.Tensor]
) -> tuple[Any, list[Call]]:
    """Run the model once without gradients -> (its output, the watched modules' calls in order)."""
    calls: list[Call] = []

    def record(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            calls.append(_call(name, args, kwargs, output))
        return hook

    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in watched.items()]
    with removed_afterwards(handles), in_eval_mode(model), torch.no_grad():
        return model(**inputs), calls


def segment_users(model: nn.Module, layers: list[nn.Module], inputs: dict[str, torch.Tensor]) -> dict[str, set[int]]:
    """Which segments of the forward pass read each parameter: {name: {segment, …}}.

    Segment -1 makes the first layer's input, segment i what layer i + 1 reads (layer i and whatever stands between
    the two), segment L the output. The hidden state is cut from the graph before every layer, so a segment is
    connected to the parameters that it reads itself and to no other. Connection counts, not the gradient's value.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    required = [parameter.requires_grad for parameter in parameters]
    users: dict[str, set[int]] = {name: set() for name in names}
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for segment, result in enumerate(_segment_results(model, layers, inputs), start=-1):
            gradients = torch.autograd.grad(result.sum(), parameters, retain_graph=True, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    users[name].add(segment)
    finally:
        for parameter, flag in zip(parameters, required, strict=True):
            parameter.requires_grad_(flag)
    return users


def _segment_results(model: nn.Module, layers: list[nn.Module], inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The hidden state at the end of each segment, each with the graph of its own segment only."""
    results: list[torch.Tensor] = []

    def cut_input(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        where, hidden = find_hidden(args, kwargs)
        results.append(hidden)
        return with_hidden(where, hidden.detach().requires_grad_(), args, kwargs)

    def cut_output(module: nn.Module, args: tuple, output: Any) -> Any:
        hidden = _first_tensor(output)
        results.append(hidden)
        cut = hidden.detach().requires_grad_()
        return cut if isinstance(output, torch.Tensor) else (cut, *output[1:])

    handles = [layer.register_forward_pre_hook(cut_input, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(cut_output))
    with removed_afterwards(handles), in_eval_mode(model), torch.enable_grad():
        output = model(**inputs)
    return [*results, _everything(output)]


def _everything(output: Any) -> torch.Tensor:
    """One number that depends on the final hidden state and, where there is one, on the pooler's output."""
    total = final_hidden(output).sum()
    pooled = getattr(output, "pooler_output", None)
    return total if pooled is None else total + pooled.sum()


def final_hidden(output: Any) -> torch.Tensor:
    """The last hidden state (rows, tokens, width) of a model's output. Raises TypeError when there is none."""
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
        raise TypeError("its output does not begin with one vector per token")
    return hidden


def attends_ahead(model: nn.Module, inputs: dict[str, torch.Tensor], first_output: torch.Tensor) -> bool:
    """Whether the first token sees the second; False for decoders. `first_output`: hidden state for `inputs`."""
    changed = inputs["input_ids"].clone()
    changed[0, 1] = changed[0, 0]
    with in_eval_mode(model), torch.no_grad():
        other = final_hidden(model(**{**inputs, "input_ids": changed}))
    return not torch.allclose(first_output[0, 0], other[0, 0], rtol=1e-5, atol=1e-7)


def is_noisy(model: nn.Module, placed: Iterable[str], inputs: dict[str, torch.Tensor]) -> bool:
    """Whether the model still draws random numbers with all of `placed` in eval mode and the rest in train mode."""
    quiet = set(placed)
    outputs = []
    with _modes_restored(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, module in model.named_modules():
            module.training = name not in quiet
        for seed in (0, 1):
            torch.default_generator.manual_seed(seed)
            outputs.append(final_hidden(model(**inputs)))
    return not torch.equal(*outputs)


def _call(name: str, args: tuple, kwargs: dict, output: Any) -> Call:
    where, hidden = find_hidden(args, kwargs)
    result = _first_tensor(output)
    others = tuple(_tensors((args, kwargs)))
    return Call(name, hidden, result, not isinstance(output, torch.Tensor),
                tuple(t for t in others if t is not hidden), tuple(t for t in _tensors(output) if t is not result))


def find_hidden(args: tuple, kwargs: dict) -> tuple[int | str, torch.Tensor | None]:
    """Where a layer gets its hidden state: the position or the keyword, and the tensor."""
    if args and isinstance(args[0], torch.Tensor):
        return 0, args[0]
    for name in ("hidden_states", "hidden_state", "x"):
        if isinstance(kwargs.get(name), torch.Tensor):
            return name, kwargs[name]
    return 0, None


def with_hidden(where: int | str, hidden: torch.Tensor, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if where == 0:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, where: hidden}


def _first_tensor(output: Any) -> torch.Tensor | None:
    return next(iter(_tensors(output)), None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
