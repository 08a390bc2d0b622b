"""Norms and biases, found by what they are."""

from __future__ import annotations

from torch import nn

TORCH_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer: torch's own, or a model's (RMSNorm, T5LayerNorm, …), with vectors as its only weights."""
    if isinstance(module, TORCH_NORMS):
        return True
    parameters = list(module.parameters(recurse=False))
    vectors = bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)
    return vectors and "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def norm_names(model: nn.Module) -> frozenset[str]:
    """The parameters of norms."""
    return frozenset(_join(name, parameter) for name, module in model.named_modules() if is_norm(module)
                     for parameter, _ in module.named_parameters(recurse=False))


def bias_names(model: nn.Module) -> frozenset[str]:
    """Every additive bias: `bias`, and a model's own such as DeBERTa's `q_bias`.

    Not the weight of a table that is called a bias (`relative_attention_bias`): that is an embedding.
    """
    return frozenset(name for name, _ in model.named_parameters()
                     if (leaf := name.rpartition(".")[2]) == "bias" or leaf.endswith("_bias"))


def _join(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
