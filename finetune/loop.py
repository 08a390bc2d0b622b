"""The training loop: Accelerate runs it on one process or many, with the same numbers."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional

from finetune.config import TrialConfig
from finetune.data.batches import Collator, evaluation_batches, padding_share, shares, to_device, training_batches
from finetune.errors import TrialFailed
from finetune.freezing import FreezePlan
from finetune.schedule import carry_state, make_optimizer, set_learning_rates

REPORT_EVERY_SECONDS = 0.5


def per_example_loss(task: str, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """logits (batch, outputs), labels as in Split -> (batch,): cross-entropy, squared error or mean binary CE."""
    logits = logits.float()
    if task == "classification":
        return functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    if task == "regression":
        return (logits.squeeze(-1) - labels) ** 2
    return functional.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="none").mean(1)


@dataclass
class Trainer:
    """What one trial trains. `plan_at(epoch)` says what trains in an epoch; `scales(name)` is layer-wise decay."""

    config: TrialConfig
    accelerator: Accelerator
    classifier: nn.Module
    train: Collator
    task: str
    class_weights: Tensor | None
    plan_at: Callable[[int], FreezePlan]
    scales: Callable[[str], float]
    plan: FreezePlan | None = None
    optimizer: torch.optim.Optimizer | None = None
    model: nn.Module | None = None  # the classifier as Accelerate wrapped it for the present plan
    step: int = 0

    def __post_init__(self) -> None:
        self._born: dict[str, int] = {}

    @property
    def rows_per_step(self) -> int:
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        return self.config.num_train_epochs * math.ceil(len(self.train.encoded) / self.rows_per_step)

    def enter_epoch(self, epoch: int) -> None:
        """Apply the epoch's plan; where it differs from the last, wrap the model and build the optimizer anew."""
        plan = self.plan_at(epoch)
        if self.plan is None or plan.trainable != self.plan.trainable:
            plan.apply(self.classifier)
            self._born = {name: self._born.get(name, self.step) for name in plan.trainable}
            optimizer = make_optimizer(self.classifier, self.config, self._born, self.scales)
            carry_state(self.optimizer, optimizer)
            self.optimizer = optimizer
            # Wrapped anew for each plan: DDP registers its gradient hooks on what trains when it is built.
            self.model = self.accelerator.prepare_model(self.classifier)
        self.plan = plan

    def train_epoch(self, epoch: int, report: Callable[[int, int, float], None]) -> dict[str, float]:
        """One pass; returns loss (mean per example as trained), learning_rate, padding_share."""
        self.enter_epoch(epoch)
        self.classifier.train()
        self.plan.apply(self.classifier)
        batches = training_batches(self.train.encoded.lengths, self._global_batch, self.config.seed, epoch)
        loss_sum = torch.zeros((), device=self.accelerator.device, dtype=torch.float64)
        reported = time.monotonic()
        for window in _windows(batches, self.config.gradient_accumulation_steps):
            loss_sum += self._step(window)
            if time.monotonic() - reported > REPORT_EVERY_SECONDS:
                reported = time.monotonic()
                report(self.step, self.total_steps, float(loss_sum))
        total = float(self.accelerator.reduce(loss_sum, "sum"))
        rows = len(self.train.encoded)
        if not math.isfinite(total):
            raise TrialFailed("non-finite", f"the training loss is {total / rows} in epoch {epoch}; "
                              "try a smaller learning_rate or head_learning_rate")
        return {"loss": total / rows, "learning_rate": self.optimizer.param_groups[0]["lr"],
                "padding_share": padding_share(self.train.encoded.lengths, batches)}

    @property
    def _global_batch(self) -> int:
        return self.config.per_device_train_batch_size * self.accelerator.num_processes

    def _step(self, window: list[np.ndarray]) -> Tensor:
        """One optimizer step over the micro-batches of a window; returns this process's summed loss."""
        config, accelerator = self.config, self.accelerator
        set_learning_rates(self.optimizer, config, self.step, self.total_steps)
        rows_in_window = sum(len(rows) for rows in window)
        loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        for index, rows in enumerate(window):
            last = index == len(window) - 1
            mine = list(shares(rows, accelerator.num_processes))[accelerator.process_index]
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.micro_loss(mine).sum()
                # Ranks average their gradients, so each scales its sum up by their number.
                accelerator.backward(loss * accelerator.num_processes / rows_in_window)
            loss_sum += loss.detach().double()
        if config.max_grad_norm:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            accelerator.clip_grad_norm_(trained, config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss_sum

    def micro_loss(self, rows: np.ndarray) -> Tensor:
        """Per-example loss of some training rows."""
        if not len(rows):  # a tail smaller than the number of processes: take part with nothing
            rows, empty = np.zeros(1, np.int64), True
        else:
            empty = False
        device = self.accelerator.device
        with self.accelerator.autocast():
            logits = self.model(**to_device(self.train(rows), device))
        loss = per_example_loss(self.task, logits, self.train.labels(rows).to(device), self.class_weights)
        return loss * 0 if empty else loss

    @torch.no_grad()
    def logits(self, split: Collator) -> np.ndarray:
        """Logits (rows, outputs) of a whole split, in its own order, on every process."""
        self.classifier.eval()
        accelerator = self.accelerator
        mine: list[tuple[np.ndarray, np.ndarray]] = []
        batches = evaluation_batches(split.encoded.lengths, self.config.per_device_eval_batch_size)
        for rows in batches[accelerator.process_index::accelerator.num_processes]:
            with accelerator.autocast():
                logits = self.classifier(**to_device(split(rows), accelerator.device))
            mine.append((rows, logits.float().cpu().numpy()))
        parts = gather_object(mine) if accelerator.num_processes > 1 else mine
        out = np.empty((len(split.encoded), parts[0][1].shape[1]), np.float32)
        for rows, logits in parts:
            out[rows] = logits
        if not np.isfinite(out).all():
            raise TrialFailed("non-finite", "the model's logits are not finite; try a smaller learning_rate")
        return out


def _windows(batches: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(batches), size):
        yield batches[start:start + size]
