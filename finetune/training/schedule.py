"""Learning rates: the shape over the steps, the groups of an optimizer, and what happens when the plan changes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from finetune.config import TrialConfig

REWARM_SHARE = 0.02  # of all steps: how long a newly trainable parameter's learning rate rises
REWARM_PERIOD_SHARE = 0.2  # at most this share of the steps for which it trains


def shape(config: TrialConfig, step: int, total_steps: int) -> float:
    """Factor on the peak learning rate for optimizer step `step` (counted from 0)."""
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if config.lr_scheduler_type == "linear":
        return 1 - progress
    if config.lr_scheduler_type == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def make_optimizer(
    model: nn.Module, config: TrialConfig, born: Mapping[str, int], scales: Mapping[str, float]
) -> torch.optim.AdamW:
    """AdamW over the parameters named in `born` (name -> step at which it began to train); nothing else is in it.

    No decay on biases and norms: everything with fewer than two dimensions. `scales` gives layer-wise decay.
    """
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in born:
            peak = config.head_learning_rate if name.startswith("head.") else config.learning_rate * scales[name]
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((peak, decay, born[name]), []).append(parameter)
    constants = config.optimizer
    return torch.optim.AdamW(
        [{"params": params, "peak_lr": peak, "weight_decay": decay, "born": step}
         for (peak, decay, step), params in groups.items()],
        lr=0.0, betas=(constants.beta1, constants.beta2), eps=constants.epsilon, fused=True,
    )


def rewarm_steps(total_steps: int, period: int | None = None) -> int:
    """How many steps the learning rate of newly trainable parameters rises; `period`: how long they will train."""
    longest = total_steps if period is None else REWARM_PERIOD_SHARE * period
    return max(1, round(min(REWARM_SHARE * total_steps, longest)))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, config: TrialConfig, step: int, total_steps: int, period: int | None = None
) -> None:
    """For optimizer step `step` (from 0), in place. Groups born at step 0 follow the schedule alone."""
    factor = shape(config, step, total_steps)
    rewarm = rewarm_steps(total_steps, period)
    for group in optimizer.param_groups:
        rising = min(1.0, (step - group["born"] + 1) / rewarm) if group["born"] else 1.0
        rate = group["peak_lr"] * factor * rising
        if isinstance(group["lr"], torch.Tensor):  # a recorded step reads it where it is
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def carry_state(old: torch.optim.Optimizer | None, new: torch.optim.Optimizer) -> None:
    """Parameters that go on training keep their moments; the others start fresh."""
    if old is not None:
        for group in new.param_groups:
            for parameter in group["params"]:
                if parameter in old.state:
                    new.state[parameter] = old.state[parameter]
