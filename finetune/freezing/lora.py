"""LoRA through peft: low-rank adapters beside every linear layer of the stack."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.errors import EnvironmentProblem
from finetune.models.discovery import discover_stack
from finetune.models.layers import LayerStack

LORA_STREAM = 0x10_7A  # keeps the adapters' initialisation apart from the seed's other uses


def add_lora(stack: LayerStack, rank: int, seed: int) -> LayerStack:
    """Put adapters of `rank` (scaled by alpha / rank = 2) into the model, in place -> the changed model's stack.

    Every linear layer inside the layers gets one; at the start they add nothing. Raises EnvironmentProblem when peft
    is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EnvironmentProblem("strategy lora:r needs peft: pip install 'stellar-finetuning[lora]'") from error
    targets = [f"{stack.path}.{name}" for name, module in stack.model.get_submodule(stack.path).named_modules()
               if isinstance(module, nn.Linear | Conv1D)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed((seed << 20) ^ LORA_STREAM)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), stack.model)
    return discover_stack(stack.model)


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside and remove them, in place: the model's own names again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
