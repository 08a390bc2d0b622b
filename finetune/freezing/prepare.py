"""What happens to a fresh backbone before a head is put on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Problem
from finetune.models.backbone import Backbone
from finetune.models.layers import TOP, LayerStack, layer_part
from finetune.models.poolers import chosen_pooling, require_pooling, strip_unused_pooler

if TYPE_CHECKING:
    from finetune.freezing.strategies import Strategy

REINIT_STREAM = 0x5EED_1  # keeps re-initialisation apart from the seed's other uses


def prepare_backbone(backbone: Backbone, config: TrialConfig, strategy: Strategy) -> LayerStack:
    """The stack of a fresh model (`stack.model`), changed as the configuration asks.

    Without a pooler that `pooling` leaves unused, the top layers re-initialised, adapters added. Raises ConfigError
    for a pooling that the backbone cannot give and for more layers than it has.
    """
    require_pooling(config.pooling, backbone)
    model = backbone.fresh_model(_never_trained(backbone, config, strategy))
    strip_unused_pooler(model, chosen_pooling(config.pooling, backbone.stack))
    stack = backbone.stack.rebind(model)
    if config.reinit_layers:
        reinit_layers(stack, config.reinit_layers, config.seed)
    return strategy.adapt(stack, config.seed)


def _never_trained(backbone: Backbone, config: TrialConfig, strategy: Strategy) -> frozenset[str]:
    """What stays as pretrained from the first step to the last: known for plain freeze depths."""
    from finetune.freezing.rules import above_depth

    if strategy.freeze_depth is None or config.reinit_layers:
        return frozenset()
    return frozenset(backbone.stack.part_of) - above_depth(backbone.stack, strategy.freeze_depth)


def checkpoint_layers(model: nn.Module) -> None:
    """From now on layers keep their input only, and compute the rest again in the backward pass.

    The non-reentrant kind: the other one drops gradients above a frozen prefix.
    """
    # transformers 6 knows the first name only, early 5 the second one only.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def reinit_layers(stack: LayerStack, count: int, seed: int) -> None:
    """Draw the top `count` layers and what follows them anew, with the model's own initialisation, in place.

    Zhang et al. 2021 (arXiv:2006.05987). Raises ConfigError when there are fewer layers.
    """
    if count > stack.num_layers:
        raise ConfigError([Problem("reinit_layers", count, f"allowed: 0 to {stack.num_layers}, the model has "
                                                           f"{stack.num_layers} layers")])
    parts = [*map(layer_part, range(stack.num_layers - count, stack.num_layers)), TOP]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed((seed << 20) ^ REINIT_STREAM)  # not the GPU's, which dropout draws from
        for module in [inner for part in parts for outer in stack.modules[part] for inner in outer.modules()]:
            for tensor in module.parameters(recurse=False):
                tensor._is_hf_initialized = False  # transformers leaves tensors that bear its mark as they are
            stack.model._init_weights(module)
