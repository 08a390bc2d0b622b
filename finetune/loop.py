"""The training loop: Accelerate runs it on one process or many, with the same numbers."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn
from torch.nn import functional

from finetune.config import TrialConfig
from finetune.data.batches import Collator, evaluation_batches, padding_share, shares, to_device, training_batches
from finetune.errors import TrialFailed
from finetune.freezing import (
    AuditReport,
    FreezePlan,
    Moment,
    Strategy,
    audit_gradients,
    check_frozen,
    frozen_digests,
    layer_scales,
    part_gradient_norms,
)
from finetune.freezing.plan import BACKBONE_PREFIX
from finetune.models import LayerStack
from finetune.prefix.reuse import PrefixReuse
from finetune.schedule import carry_state, make_optimizer, set_learning_rates

REPORT_EVERY_SECONDS = 0.5


def per_example_loss(task: str, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """logits (batch, outputs), labels as in Split -> (batch,): cross-entropy, squared error or mean binary CE."""
    logits = logits.float()
    if task == "classification":
        return functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    if task == "regression":
        return (logits.squeeze(-1) - labels) ** 2
    return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none").mean(1)


@dataclass
class Trainer:
    """What one trial trains, and the state of its training."""

    config: TrialConfig
    accelerator: Accelerator
    classifier: nn.Module
    stack: LayerStack  # bound to the classifier
    strategy: Strategy
    train: Collator
    task: str
    class_weights: Tensor | None = None
    prefix: PrefixReuse | None = None
    step: int = 0  # optimizer steps done
    plan: FreezePlan | None = None
    phases: list[FreezePlan] = field(default_factory=list)  # every plan so far, in order
    reached: list[AuditReport] = field(default_factory=list)  # per plan, what its first backward pass reached
    optimizer: torch.optim.Optimizer | None = None
    model: nn.Module | None = None  # the classifier as Accelerate wrapped it for the present plan
    gradient_norms: list[dict[str, float]] = field(default_factory=list)  # per finished epoch, where a strategy asks

    def __post_init__(self) -> None:
        self._born: dict[str, int] = {}  # parameter -> the step at which it began to train
        self._phase: Hashable = None
        self._frozen: dict[str, str] = {}  # name -> digest, as the present plan found them
        self._scales = layer_scales(self.stack, self.config.layer_decay)

    @property
    def rows_per_step(self) -> int:
        return self._global_batch * self.config.gradient_accumulation_steps

    @property
    def _global_batch(self) -> int:
        return self.config.per_device_train_batch_size * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        return self.config.num_train_epochs * math.ceil(len(self.train.encoded) / self.rows_per_step)

    def enter(self, epoch: int) -> None:
        """Before every step: where the strategy's phase has changed, plan, wrap and build the optimizer anew."""
        moment = Moment(epoch, self.step, self.config.num_train_epochs, self.total_steps, self.config.seed,
                        tuple(self.gradient_norms))
        phase = self.strategy.phase(moment)
        if self.plan is not None and phase == self._phase:
            return
        self.check_frozen()
        self._phase, self.plan = phase, self.strategy.plan(self.stack, moment)
        self.phases.append(self.plan)
        self.plan.apply(self.classifier)
        if self.prefix is not None:
            self.prefix.enter(self.phases)
        self._frozen = frozen_digests(self.classifier, self.plan)
        self._born = {name: self._born.get(name, self.step) for name in self.plan.trainable}
        optimizer = make_optimizer(self.classifier, self.config, self._born, self._scales)
        carry_state(self.optimizer, optimizer)
        self.optimizer = optimizer
        self._wrap()

    def _wrap(self) -> None:
        """Anew for each plan: DDP registers its gradient hooks on what trains when it is built."""
        accelerator = self.accelerator
        if self.model is not None and accelerator.num_processes == 1:
            return  # then nothing depends on the plan
        if self.model is not None:
            accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model = None
            accelerator.free_memory()
        # DDP waits for every gradient that it was not told to expect in vain.
        unread = any(BACKBONE_PREFIX + name in self.plan.trainable for name in self.stack.unread)
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unread)
        self.model = accelerator.prepare_model(self.classifier)

    def plans_in(self, epoch: int) -> list[FreezePlan]:
        """What held in an epoch (from 1), in order."""
        first = (epoch - 1) * (self.total_steps // self.config.num_train_epochs)
        earlier = [plan for plan in self.phases if plan.from_step <= first]
        return [*earlier[-1:], *(plan for plan in self.phases if plan.from_step > first and plan.from_epoch == epoch)]

    def check_frozen(self) -> None:
        """Raises TrialFailed("leak") when a parameter that the present plan freezes has changed since it began."""
        if self.plan is not None:
            check_frozen(self.classifier, self.plan, self._frozen)

    def train_epoch(self, epoch: int, report: Callable[[int, int, float], None]) -> dict[str, float]:
        """One pass; returns loss (mean per example as trained), learning_rate, padding_share."""
        self.enter(epoch)
        config, accelerator, first = self.config, self.accelerator, self.step
        batches = training_batches(self.train.encoded.lengths, self._global_batch, config.seed, epoch)
        loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        reported = time.monotonic()
        norms: dict[str, float] = {}
        for window in _windows(batches, config.gradient_accumulation_steps):
            self.enter(epoch)
            self.classifier.train()
            self.plan.apply(self.classifier)
            loss_sum += self._step(window, norms)
            if time.monotonic() - reported > REPORT_EVERY_SECONDS:
                reported = time.monotonic()
                done = sum(len(rows) for rows in batches[:(self.step - first) * config.gradient_accumulation_steps])
                report(self.step, self.total_steps, float(loss_sum) * accelerator.num_processes / done)
        if self.strategy.needs_gradient_norms:
            self.gradient_norms.append(norms)
        total = float(accelerator.reduce(loss_sum, "sum"))
        rows = len(self.train.encoded)
        if not math.isfinite(total):
            raise TrialFailed("non-finite", f"the training loss is {total / rows} in epoch {epoch}; "
                              "try a smaller learning_rate or head_learning_rate")
        return {"loss": total / rows, "learning_rate": self.optimizer.param_groups[0]["lr"],
                "padding_share": padding_share(self.train.encoded.lengths, batches)}

    def _step(self, window: list[np.ndarray], norms: dict[str, float]) -> Tensor:
        """One optimizer step over the micro-batches of a window; returns this process's summed loss."""
        config, accelerator = self.config, self.accelerator
        set_learning_rates(self.optimizer, config, self.step, self.total_steps, self.strategy.period)
        rows_in_window = sum(len(rows) for rows in window)
        loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        for index, rows in enumerate(window):
            last = index == len(window) - 1
            mine = list(shares(rows, accelerator.num_processes))[accelerator.process_index]
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.micro_loss(mine).sum()
                # Ranks average their gradients, so each scales its sum up by their number.
                share = accelerator.num_processes / rows_in_window
                accelerator.backward(loss * self.classifier.head.loss_scale * share)
            loss_sum += loss.detach().double()
        if len(self.reached) < len(self.phases):
            self.reached.append(audit_gradients(self.classifier, self.plan, self.stack))
        if self.strategy.needs_gradient_norms:
            for part, norm in part_gradient_norms(self.stack).items():
                norms[part] = norms.get(part, 0.0) + norm
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
            logits = self._forward(self.model, self.train, rows)
        loss = per_example_loss(self.task, logits, self.train.labels(rows).to(device), self.class_weights)
        return loss * 0 if empty else loss

    def _forward(self, model: nn.Module, split: Collator, rows: np.ndarray) -> Tensor:
        if self.prefix is not None:
            return self.prefix.logits(model, split, rows)
        return model(**to_device(split(rows), self.accelerator.device))

    @torch.no_grad()
    def logits(self, split: Collator) -> np.ndarray:
        """Logits (rows, outputs) of a whole split, in its own order, on every process."""
        self.classifier.eval()
        accelerator = self.accelerator
        mine: list[tuple[np.ndarray, np.ndarray]] = []
        batches = evaluation_batches(split.encoded.lengths, self.config.per_device_eval_batch_size)
        for rows in batches[accelerator.process_index::accelerator.num_processes]:
            with accelerator.autocast():
                logits = self._forward(self.classifier, split, rows)
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
