"""A trained token classifier as transformers' own class of it, where there is one that computes the same."""

from __future__ import annotations

import torch
from torch import nn
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from finetune.models.head import Head
from finetune.models.tracing import probe_inputs

TOLERANCE = 1e-4  # of logits, as wherever the project says "equal"


def as_token_classifier(backbone: nn.Module, head: Head) -> nn.Module | None:
    """The model that AutoModelForTokenClassification loads, with these weights; None where there is none.

    It has one linear layer on the last hidden state, so a hidden layer in the head rules it out, as does an
    architecture without such a class, or one that does more between backbone and classifier. `backbone` in eval mode,
    `head` on the same device.
    """
    kind = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(backbone.config), None)
    if len(head.linears) > 1 or kind is None or type(backbone).__name__.endswith("EncoderModel"):
        return None
    with torch.random.fork_rng(devices=[]):
        model = kind(backbone.config).eval()
    inner = getattr(model, model.base_model_prefix, None)
    classifier = _only_linear(model, inner)
    if type(inner) is not type(backbone) or classifier is None:
        return None
    if not set(inner.state_dict()) <= set(backbone.state_dict()):
        return None
    if classifier.weight.shape != head.linears[0].weight.shape:
        return None
    inner.load_state_dict(backbone.state_dict(), strict=False)  # what is left over is a pooler
    classifier.load_state_dict(head.linears[0].state_dict())
    inputs = probe_inputs(backbone)
    with torch.inference_mode():
        same = torch.allclose(model(**inputs).logits, head(backbone(**inputs).last_hidden_state), atol=TOLERANCE)
    return model if same else None


def _only_linear(model: nn.Module, inner: nn.Module | None) -> nn.Linear | None:
    """The linear layer beside the backbone, where nothing else there has parameters."""
    beside = [module for name, module in model.named_children()
              if module is not inner and any(True for _ in module.parameters())]
    return beside[0] if len(beside) == 1 and isinstance(beside[0], nn.Linear) and beside[0].bias is not None else None
