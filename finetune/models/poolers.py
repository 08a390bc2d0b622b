"""The pretrained pooler, and whether a pooling suits a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from finetune.errors import ConfigError, Problem
from finetune.models.tracing import probe_inputs, watch_calls

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone
    from finetune.models.layers import LayerStack


_calls_absent_pooler: dict[type, bool] = {}  # a few models call their pooler without asking whether there is one


def chosen_pooling(pooling: str | None, stack: LayerStack) -> str:
    """What is asked for; by default the last real token of a decoder (no other has seen the text) and an encoder's
    mean."""
    return pooling or ("last" if stack.causal else "mean")


def pooling_of(pooling: str | None, stack: LayerStack, task: str) -> str:
    """`chosen_pooling`; "tokens" where each word has a label, and nothing is pooled."""
    return "tokens" if task == "token_classification" else chosen_pooling(pooling, stack)


def strip_unused_pooler(model: nn.Module, pooling: str) -> None:
    """Drop a pooler that `pooling` does not use, in place: it would count as trainable and never learn."""
    if pooling == "pooler" or getattr(model, "pooler", None) is None:
        return
    model.pooler = None
    if type(model) not in _calls_absent_pooler:
        try:
            watch_calls(model, {}, probe_inputs(model))
            _calls_absent_pooler[type(model)] = False
        except TypeError:
            _calls_absent_pooler[type(model)] = True
    if _calls_absent_pooler[type(model)]:
        model.pooler = nn.Identity()


def check_pooling(pooling: str | None, backbone: Backbone) -> list[Problem]:
    """Why this pooling makes no sense for this backbone: at most one problem."""
    if pooling == "pooler" and not backbone.has_pretrained_pooler:
        return [_problem(pooling, f"{backbone.name} has no pretrained pooler; use mean or cls")]
    if pooling == "cls" and backbone.stack.causal:
        return [_problem(pooling, f"in {backbone.name} the first token does not see the text after it; "
                                  "use last or mean")]
    if pooling == "cls" and not _marks_first(backbone):
        return [_problem(pooling, f"the tokenizer of {backbone.name} puts no special token first; use mean or last")]
    return []


def _problem(pooling: str, allowed: str) -> Problem:
    return Problem("pooling", pooling, allowed)


def _marks_first(backbone: Backbone) -> bool:
    """Whether the tokenizer opens every text with a special token, such as [CLS] or <s>."""
    tokens = backbone.tokenizer("a").input_ids
    return bool(tokens) and tokens[0] in backbone.tokenizer.all_special_ids


def require_pooling(pooling: str | None, backbone: Backbone) -> None:
    """Raises ConfigError when `check_pooling` finds a problem."""
    if problems := check_pooling(pooling, backbone):
        raise ConfigError(problems)
