"""Backbones: where they come from, which parts they have, and the head on top.

The names below are imported on first use, because `finetune layers --help` must not wait for torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Backbone": "backbone", "forget_backbones": "backbone", "load_backbone": "backbone",
    "LayerStack": "layers", "discover_stack": "discovery", "UnsupportedBackbone": "layers",
    "check_pooling": "poolers", "chosen_pooling": "poolers", "strip_unused_pooler": "poolers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
