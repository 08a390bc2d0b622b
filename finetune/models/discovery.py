"""How a LayerStack is found: candidates by structure, then verified by what hooks see in a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import nn

from finetune.models.layers import EMBEDDINGS, TOP, LayerStack, Layout, UnsupportedBackbone, layer_part
from finetune.models.tracing import (
    ROWS,
    TOKENS,
    Call,
    attends_ahead,
    final_hidden,
    is_noisy,
    probe_inputs,
    segment_users,
    watch_calls,
)


def discover_stack(model: nn.Module) -> LayerStack:
    """Find the layers, watch them in a forward pass, and place every parameter.

    Raises UnsupportedBackbone, with the reason and what to do, for a model that has no such stack.
    """
    _refuse_by_kind(model)
    lists = _outermost_lists(model)
    try:
        return _probe(model, lists)
    except UnsupportedBackbone:
        raise
    except Exception as error:  # whatever the model's own code raises when it is given token ids, or hooked
        reason = f"a trial run on a few tokens fails ({(str(error).strip() or repr(error)).splitlines()[0][:160]})"
        raise UnsupportedBackbone(model, reason, "choose a model that reads text") from error


def _probe(model: nn.Module, lists: Mapping[str, nn.ModuleList]) -> LayerStack:
    outside = {name: module for name, module in model.named_modules()
               if not any(_inside(name, path) for path in lists) and next(module.parameters(), None) is None}
    watched = {f"{path}.{name}": module for path, layers in lists.items() for name, module in _leaves(layers)} | outside
    inputs = probe_inputs(model)
    output, calls = watch_calls(model, watched, inputs)
    hidden = final_hidden(output)
    path = _choose(model, lists, calls)
    own = [call for call in calls if call.name.rpartition(".")[0] == path]
    users = segment_users(model, list(lists[path]), inputs)
    parts = _partition(model, path, users)
    module_parts = _place_modules(model, path, parts, [call.name for call in calls], outside)
    noisy = is_noisy(model, module_parts, inputs)
    return LayerStack(
        model=model, path=path, parts=parts, width=hidden.shape[-1],
        causal=not attends_ahead(model, inputs, hidden), layout=_layout(own[0]),
        returns_tuple=own[0].returns_tuple, carries_state=_carries_state(own),
        unread=frozenset(name for name, segments in users.items() if not segments),
        module_parts=module_parts | (_span_parts(model, path, module_parts) if noisy else {}),
    )


def _refuse_by_kind(model: nn.Module) -> None:
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        raise UnsupportedBackbone(
            model, "an encoder-decoder has two stacks, and the decoder reads the whole encoder",
            "save its encoder alone, if it has a class for that, e.g. "
            "T5EncoderModel.from_pretrained(NAME).save_pretrained(FOLDER), and give that folder",
        )
    reads = getattr(model, "main_input_name", "input_ids")
    if reads != "input_ids":
        raise UnsupportedBackbone(model, f"it reads {reads}, not token ids", "choose a model that reads text")


def _outermost_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Every ModuleList that is not inside another one. Raises UnsupportedBackbone when there is none."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not any(_inside(name, path) for path in found):
            found[name] = module
    if not found:
        raise UnsupportedBackbone(model, "it has no list of layers")
    return found


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def _leaves(layers: nn.ModuleList, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules of a list that can be called, with their names; lists in it are opened."""
    found = []
    for name, module in layers.named_children():
        nested = isinstance(module, nn.ModuleList)
        found += _leaves(module, f"{prefix}{name}.") if nested else [(prefix + name, module)]
    return found


def _choose(model: nn.Module, lists: Mapping[str, nn.ModuleList], calls: list[Call]) -> str:
    """The longest list that runs; it must pass every check and be the only one that looks like a stack."""
    running = {path: [call for call in calls if _inside(call.name, path)] for path in lists}
    running = {path: own for path, own in running.items() if own}
    if not running:
        raise UnsupportedBackbone(model, "none of its lists of layers runs when it reads tokens")
    longest = max(running, key=lambda path: len(_leaves(lists[path])))
    if reason := _problem(longest, lists[longest], running[longest]):
        raise UnsupportedBackbone(model, reason)
    for path, own in running.items():
        if path != longest and len(lists[path]) > 1 and not _problem(path, lists[path], own):
            raise UnsupportedBackbone(model, f"it has more than one list of layers: {longest} and {path}")
    return longest


def _problem(path: str, layers: nn.ModuleList, calls: list[Call]) -> str | None:
    """Why this list is no stack, or None. `calls`: what hooks saw of its modules, in order."""
    if any(isinstance(layer, nn.ModuleList) for layer in layers):
        return f"its layers come in blocks ({path}), between which the number of tokens changes"
    kinds = sorted({type(layer).__name__ for layer in layers})
    if len(kinds) > 1:
        return f"its layers are of different kinds: {', '.join(kinds)}"
    order = [int(call.name.rpartition(".")[2]) for call in calls]
    repeated = next((index for index in order if order.count(index) > 1), None)
    if repeated is not None:
        return (f"{path}.{repeated} runs {order.count(repeated)} times in one forward pass: layers share their "
                "weights, so that none can be frozen without the others")
    if order != list(range(len(layers))):
        return f"its layers {path} do not run once each, in order"
    shapes = {tuple(tensor.shape) for call in calls for tensor in (call.hidden, call.result) if tensor is not None}
    if len(shapes) != 1 or any(call.hidden is None for call in calls):
        return f"its layers {path} do not hand on one hidden state of one shape"
    return None


def _partition(model: nn.Module, path: str, users: Mapping[str, set[int]]) -> dict[str, tuple[str, ...]]:
    """Place every parameter (the rule stands in layers.py). Raises UnsupportedBackbone when a layer owns nothing."""
    num_layers = len(model.get_submodule(path))
    names = [EMBEDDINGS, *map(layer_part, range(num_layers)), TOP]
    parts: dict[str, list[str]] = {name: [] for name in names}
    layers_seen = False
    for name, segments in users.items():
        layers_seen = layers_seen or _inside(name, path)
        own = _layer_index(name, path)
        if own is not None and segments <= {own}:
            place = own
        elif segments:
            in_layers = segments & set(range(num_layers))
            place = -1 if len(in_layers) > 1 else min(segments)
        else:
            place = num_layers if layers_seen else -1
        parts[names[place + 1]].append(name)
    for index in range(num_layers):
        if not parts[layer_part(index)]:
            raise UnsupportedBackbone(model, f"layer {index} has no weights that other layers do not read as well")
    return {part: tuple(found) for part, found in parts.items()}


def _layer_index(name: str, path: str) -> int | None:
    """In which layer a parameter or module is stored, or None."""
    return int(name[len(path) + 1:].partition(".")[0]) if name.startswith(path + ".") else None


def _place_modules(model: nn.Module, path: str, parts: Mapping[str, tuple[str, ...]], order: list[str],
                   outside: Mapping[str, nn.Module]) -> dict[str, str]:
    """The part of every module that lies in one part as a whole; modules without parameters by when they first run."""
    part_of = {name: part for part, names in parts.items() for name in names}
    placed: dict[str, str] = {}
    for name, module in model.named_modules():
        held = {part_of[f"{name}.{parameter}" if name else parameter] for parameter, _ in module.named_parameters()
                if (f"{name}.{parameter}" if name else parameter) in part_of}
        layer = _layer_index(name, path)
        parent = placed.get(name.rpartition(".")[0])
        if layer is not None and layer_part(layer) in held:
            placed[name] = layer_part(layer)
        elif len(held) == 1:
            placed[name] = held.pop()
        elif parent is not None:
            placed[name] = parent
        elif name in outside and name in order:
            placed[name] = _part_at(order, order.index(name), path)
    return placed


def _part_at(order: list[str], position: int, path: str) -> str:
    """The part that is running at a position in the order of calls."""
    before = [_layer_index(name, path) for name in order[:position] if name.startswith(path + ".")]
    after = any(name.startswith(path + ".") for name in order[position:])
    if not before:
        return EMBEDDINGS
    return layer_part(before[-1]) if after else TOP


def _span_parts(model: nn.Module, path: str, placed: Mapping[str, str]) -> dict[str, str]:
    """Containers of several parts, each with its lowest part: for models that drop values in a container's own code."""
    ranks = {EMBEDDINGS: -1, TOP: 10**9}
    spans: dict[str, str] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        inner = [part for other, part in placed.items() if other.startswith(prefix)]
        if name not in placed and inner and module is not model.get_submodule(path):
            spans[name] = min(inner, key=lambda part: ranks.get(part) or int(part.partition(".")[2] or 0))
    return spans


def _layout(call: Call) -> Layout:
    assert call.hidden is not None
    shape = tuple(call.hidden.shape)
    if shape[:2] == (ROWS, TOKENS):
        return "rows_first"
    return "tokens_first" if shape[:2] == (TOKENS, ROWS) else "other"


def _carries_state(calls: list[Call]) -> bool:
    """Whether a layer reads something, besides the hidden state, that the layer before it made."""
    return any(given is taken for one, following in zip(calls, calls[1:], strict=False)
               for given in one.given for taken in following.taken)
