"""Backbones: where they come from, which parts they have, and the head on top.

The names below are imported on first use, because `finetune layers --help` must not wait for torch.
"""

from finetune.lazy import lazy_names

__getattr__ = lazy_names(__name__, {
    "Backbone": "backbone", "forget_backbones": "backbone", "load_backbone": "backbone",
    "LayerStack": "layers", "discover_stack": "discovery", "UnsupportedBackbone": "layers",
    "check_pooling": "poolers", "chosen_pooling": "poolers", "strip_unused_pooler": "poolers",
})
