"""Pooling and the classifier on top of a backbone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from finetune.models.one_token import Reader, install, token_at

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over real tokens: hidden (batch, tokens, width), mask (batch, tokens) of 0/1 -> (batch, width)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def first_token(mask: Tensor) -> Tensor:
    """Where the first real token is, wherever the padding is: mask (batch, tokens) -> (batch,)."""
    return mask.argmax(1)


def last_token(mask: Tensor) -> Tensor:
    """Where the last real token is, wherever the padding is: mask (batch, tokens) -> (batch,)."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)


def very_first(mask: Tensor) -> Tensor:
    """What transformers' poolers read: mask (batch, tokens) -> (batch,) of 0."""
    return torch.zeros(len(mask), dtype=torch.long, device=mask.device)


TOKENS = "tokens"  # no pooling: the first subword of each word


def words_at(hidden: Tensor, position: Tensor) -> Tensor:
    """hidden (batch, tokens, width), position (batch, words), -1 for none -> (batch, words, width), zeros for none."""
    found = hidden.gather(1, position.clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    return found * (position >= 0).unsqueeze(-1).to(found.dtype)


READ = {"cls": first_token, "last": last_token, "pooler": very_first}  # poolings that read one token of each row


class Head(nn.Module):
    """Dropout and a linear layer, with one hidden ReLU layer in between when `hidden` > 0. Logits out.

    `units` (mean, standard deviation) are those of a regression's targets: what the layers predict is standardised,
    what comes out is in the source's units.
    """

    def __init__(
        self, width: int, hidden: int, outputs: int, dropout: float, generator: torch.Generator,
        units: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        self.register_buffer("units", torch.tensor(units, dtype=torch.float32))
        self.standardised = units != (0.0, 1.0)
        # A squared error counts in units squared; divided by that, gradients do not depend on the units.
        self.loss_scale = 1 / units[1] ** 2
        sizes = [width, hidden, outputs] if hidden else [width, outputs]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.dropout = nn.Dropout(dropout)
        for linear in self.linears:
            _initialise(linear, generator)

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled (batch, width) -> logits (batch, outputs)."""
        for linear in self.linears[:-1]:
            pooled = torch.relu(linear(self.dropout(pooled)))
        logits = self.linears[-1](self.dropout(pooled))
        return logits.float() * self.units[1] + self.units[0] if self.standardised else logits


def _initialise(linear: nn.Linear, generator: torch.Generator) -> None:
    """PyTorch's default for a linear layer, from a generator that is passed: same seed, same head at every depth."""
    bound = 1 / math.sqrt(linear.in_features)
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        linear.bias.uniform_(-bound, bound, generator=generator)


class Classifier(nn.Module):
    """A backbone, a pooling and a head. Its parameters are named backbone.* and head.*."""

    def __init__(self, backbone: nn.Module, head: Head, pooling: str):
        super().__init__()
        self.backbone, self.head, self.pooling = backbone, head, pooling
        self.reader: Reader | None = None
        self._walked: dict[str, nn.Parameter] | None = None

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
                         ) -> Iterator[tuple[str, nn.Parameter]]:
        """As every module's, but the modules are walked once: a trial asks a dozen times, which took longer than
        training a head."""
        if prefix or not recurse or not remove_duplicate:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        if self._walked is None:
            self._walked = dict(super().named_parameters())
        return iter(self._walked.items())

    def _apply(self, fn: Any, recurse: bool = True) -> Classifier:
        """Behind `to`, `half` and their kind, which may put other parameters into their place."""
        self._walked = None
        return super()._apply(fn, recurse)

    def read_one_token(self, source: Backbone) -> None:
        """From now on the last layer finishes only the token that the pooling reads; nothing changes for a mean.

        `source`: what this classifier's backbone is a copy of.
        """
        if self.pooling in READ and source.cuttable:
            self.reader = Reader()
            install(self.backbone, source.cuttable, self.reader)

    def pool(self, **inputs: Tensor) -> Tensor:
        """The head's input: (batch, width); (batch, words, width) where each word has a label."""
        if self.pooling == TOKENS:
            position = inputs.pop("words")
            return words_at(self.backbone(**inputs).last_hidden_state, position)
        mask = inputs["attention_mask"]
        if self.pooling == "mean":
            return mean_pool(self.backbone(**inputs).last_hidden_state, mask)
        position = READ[self.pooling](mask)
        with self.reader.at(position, mask.shape[1]) if self.reader else nullcontext():
            output = self.backbone(**inputs)
        if self.pooling == "pooler":
            return output.pooler_output
        return token_at(output.last_hidden_state, position)

    def forward(self, pooled: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """input_ids, attention_mask and where the model has them token_type_ids, all (batch, tokens) -> logits.

        `pooled` (batch, width): what `pool` would give, where it is known already.
        """
        return self.head(self.pool(**inputs) if pooled is None else pooled)
