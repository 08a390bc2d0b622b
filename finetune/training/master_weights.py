"""Linear layers' weights in bf16 beside their float32 ones, for steps that are recorded.

Autocast casts every weight by a kernel of its own, and every gradient back: of the 1,700 kernels of a BERT-base step
400, a sixth of its time (H200). Copies are cast together, by a few kernels. The digits are autocast's: the same values
are rounded, in the same way. The float32 parameters stay what optimizer, clipping and checkpoints see ("master copy of
weights", Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.training.random_state import same_randomness_afterwards


@dataclass
class LowPrecisionCopies:
    """`places`: (module, name in it, float32 parameter, its copy), one for each trained weight and bias."""

    places: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules compute with the copies, which are brought up to date first; then the gradients are their
        float32 parameters'."""
        with torch.no_grad():
            torch._foreach_copy_([copy for *_, copy in self.places], [parameter for *_, parameter, _ in self.places])
        for module, name, _, copy in self.places:
            module._parameters[name] = copy
        try:
            yield
            self._hand_back()
        finally:
            for module, name, parameter, copy in self.places:
                module._parameters[name], copy.grad = parameter, None

    def _hand_back(self) -> None:
        reached = [(parameter, copy.grad) for *_, parameter, copy in self.places if copy.grad is not None]
        if not reached:
            return
        gradients = [torch.empty_like(parameter) for parameter, _ in reached]
        torch._foreach_copy_(gradients, [found for _, found in reached])
        for (parameter, _), gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient


def copies_for(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None
               ) -> LowPrecisionCopies | None:
    """Of the plain linear layers that `optimizer` trains, where autocast computes in `dtype`; None: there are none.

    What several modules share, or is no float32, is left to autocast.
    """
    if dtype is None:
        return None
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    places = [(module, name, parameter, nn.Parameter(torch.empty_like(parameter, dtype=dtype)))
              for module in model.modules() if type(module) is nn.Linear
              for name, parameter in module._parameters.items()
              if parameter in trained and parameter.dtype == torch.float32 and uses[id(parameter)] == 1]
    return LowPrecisionCopies(places) if places else None


def autocast_dtype(accelerator: Any) -> torch.dtype | None:
    """What autocast computes products in; None where it is off."""
    kind = accelerator.device.type
    with accelerator.autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def same_loss(copies: LowPrecisionCopies, backward: Callable[[], Tensor], no_gradients: Callable[[], None]) -> bool:
    """Whether a batch's loss is the same to the last bit with the copies as with autocast alone.

    It is not in a model that multiplies by a linear layer's weight in float32 on purpose (a router of experts).
    """
    with same_randomness_afterwards():
        expected = backward().clone()
    no_gradients()
    try:
        with same_randomness_afterwards(), copies.in_place():
            found = backward()
    except (RuntimeError, TypeError):  # a product of float32 and bf16, say
        return False
    finally:
        no_gradients()
    return torch.equal(found, expected)
