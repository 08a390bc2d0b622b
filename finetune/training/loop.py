"""The training loop: Accelerate runs it on one process or many, with the same numbers."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor, nn

from finetune.config import TrialConfig
from finetune.data.encoding.batches import (
    Collator,
    evaluation_batches,
    padding_share,
    shares,
    to_device,
    training_batches,
)
from finetune.errors import Interrupted, TrialFailed
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
from finetune.training import signals
from finetune.training.graphs import StepGraphs, clip_gradients, graphs_for, make_recordable
from finetune.training.head_stack import TrainedHead
from finetune.training.losses import per_example_loss
from finetune.training.memory import asked_for, is_out_of_memory
from finetune.training.schedule import carry_state, make_optimizer, set_learning_rates

POOLED_ROWS = 4096  # evaluated at a time where a row is one vector: a head's batches are mostly their launching


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
    micro_batch: int | None = None  # rows that fit into memory, where fewer do than were asked for
    said: Callable[[str], None] = lambda sentence: None
    # The running epoch: windows (one optimizer step each) done, this process's summed loss, summed gradient norms.
    windows_done: int = 0
    loss_sum: Tensor | float = 0.0
    norms: dict[str, float] = field(default_factory=dict)
    stacked: TrainedHead | None = None  # the head, where it has trained in a stack with others (head_stack.py)
    frozen_before: dict[str, str] | None = None  # as the trial before left it, where the model is that one's
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch, of all that has ever trained

    def __post_init__(self) -> None:
        self.born: dict[str, int] = {}  # parameter -> the step at which it began to train
        self.frozen: dict[str, str] = {}  # name -> digest, as the present plan found them
        self._phase: Hashable = None
        self._scales = layer_scales(self.stack, self.config.layer_decay)
        self.graphs: StepGraphs | None = graphs_for(self)

    @property
    def rows_per_step(self) -> int:
        return self._global_batch * self.config.gradient_accumulation_steps

    @property
    def _global_batch(self) -> int:
        return self.config.per_device_train_batch_size * self.accelerator.num_processes

    @property
    def total_steps(self) -> int:
        return self.config.num_train_epochs * self.windows_per_epoch

    @property
    def windows_per_epoch(self) -> int:
        return math.ceil(len(self.train.encoded) / self.rows_per_step)

    def enter(self, epoch: int) -> bool:
        """Before every step: where the strategy's phase has changed, plan, wrap and build the optimizer anew.

        Returns whether it has changed.
        """
        moment = self.moment(epoch, self.step)
        if self.plan is not None and self.strategy.phase(moment) == self._phase:
            return False
        self.check_frozen()
        self.plan_at(moment)
        self.born = {name: self.born.get(name, self.step) for name in self.plan.trainable}
        if self.best:
            self.best = self.weights() | self.best
        self.put_into_effect()
        return True

    def moment(self, epoch: int, step: int) -> Moment:
        """Where training stood at `step` of `epoch`; the norms are those of the epochs before it."""
        return Moment(epoch, step, self.config.num_train_epochs, self.total_steps, self.config.seed,
                      tuple(self.gradient_norms[:epoch - 1]))

    def plan_at(self, moment: Moment) -> None:
        self._phase, self.plan = self.strategy.phase(moment), self.strategy.plan(self.stack, moment)
        self.phases.append(self.plan)

    def put_into_effect(self) -> None:
        """Put the present plan into effect: what trains, a digest of what does not, optimizer, Accelerate."""
        self.plan.apply(self.classifier)
        if self.prefix is not None:
            self.prefix.enter(self.phases)
        known, self.frozen_before = self.frozen_before, None
        if known is None or known.keys() != self.plan.frozen:
            known = frozen_digests(self.classifier, self.plan)
        self.frozen = known
        optimizer = make_optimizer(self.classifier, self.config, self.born, self._scales)
        carry_state(self.optimizer, optimizer)
        if self.graphs is not None:
            make_recordable(optimizer, self.accelerator.device)
            optimizer = self.graphs.with_fresh_moments(optimizer)
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
            check_frozen(self.classifier, self.plan, self.frozen)

    def weights(self) -> dict[str, Tensor]:
        """A copy of every parameter that has trained in any phase so far; the others are as they were at the start."""
        trained = frozenset().union(*(plan.trainable for plan in self.phases))
        return {name: parameter.detach().clone() for name, parameter in self.classifier.named_parameters()
                if name in trained}

    def train_epoch(self, epoch: int, stepped: Callable[[], None]) -> dict[str, float]:
        """To the end of the epoch from where it stands; returns loss (mean per example as trained), learning_rate,
        padding_share. `stepped` is called after each step, and may raise: the next call goes on from there.
        """
        lengths = self.train.encoded.lengths
        batches = training_batches(lengths, self._global_batch, self.config.seed, epoch)
        if self.stacked is not None:
            loss = self._trained_in_stack(epoch, stepped)
            return self._entry(loss, batches)
        windows = list(_windows(batches, self.config.gradient_accumulation_steps))
        modes_set = False
        for window in windows[self.windows_done:]:
            if self.enter(epoch) or not modes_set:
                self.classifier.train()
                self.plan.apply(self.classifier)
                modes_set = True
            self.loss_sum = self.loss_sum + self._step(window)  # stays on the device: no wait for it at each step
            self.windows_done += 1
            stepped()
        total = torch.as_tensor(self.loss_sum, device=self.accelerator.device, dtype=torch.float64)
        mean = float(self.accelerator.reduce(total, "sum")) / self.train.count(np.arange(len(self.train.encoded)))
        return self._entry(_finite(mean, epoch), batches)

    def _entry(self, loss: float, batches: list[np.ndarray]) -> dict[str, float]:
        return {"loss": loss, "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
                "padding_share": padding_share(self.train.encoded.lengths, batches, self.train.width)}

    def _trained_in_stack(self, epoch: int, stepped: Callable[[], None]) -> float:
        """Take over the head as it was after this epoch; returns its loss."""
        self.classifier.head.load_state_dict(self.stacked.weights[epoch - 1], strict=False)  # `units` stays
        self.windows_done = self.windows_per_epoch
        self.step = epoch * self.windows_per_epoch
        set_learning_rates(self.optimizer, self.config, self.step - 1, self.total_steps, self.strategy.period)
        self.loss_sum = self.stacked.losses[epoch - 1] * len(self.train.encoded)
        self.prefix.count(self.train, len(self.train.encoded))
        stepped()
        return _finite(self.stacked.losses[epoch - 1], epoch)

    @property
    def loss_so_far(self) -> float:
        """Mean loss per example in the running epoch, as this process sees it."""
        done = min(self.windows_done * self.rows_per_step, len(self.train.encoded))
        return float(self.loss_sum) * self.accelerator.num_processes / max(1, done)

    def end_epoch(self) -> None:
        """The epoch is trained and evaluated; the next one starts from nothing."""
        if self.strategy.needs_gradient_norms:
            self.gradient_norms.append(self.norms)
        self.windows_done, self.loss_sum, self.norms = 0, 0.0, {}

    def close(self) -> None:
        """The trial is over. Graphs and trainer refer to each other, and would wait for the garbage collector."""
        if self.graphs is not None:
            self.graphs.close()
            self.graphs = None

    def heed_signals(self) -> None:
        """Between two steps: raises Interrupted on every process when a signal has come to one of them."""
        if self.accelerator.num_processes > 1:
            if signals.pending():
                self.accelerator.set_trigger()
            if self.accelerator.check_trigger():
                raise Interrupted(signals.pending() or signal.SIGTERM)
        signals.check()

    def _step(self, window: list[np.ndarray]) -> Tensor:
        """One optimizer step over the micro-batches of a window; returns this process's summed loss."""
        set_learning_rates(self.optimizer, self.config, self.step, self.total_steps, self.strategy.period)
        if self.graphs is not None:
            recorded = self.graphs.step(window)
            if recorded is not None:
                self.step += 1
                return recorded
        loss_sum = self._gradients_that_fit(window) if self._may_halve else self._gradients(window)
        self._update()
        return loss_sum

    def _gradients(self, window: list[np.ndarray]) -> Tensor:
        """Forward and backward over a window; the gradients are those of its mean loss per row."""
        accelerator, in_window = self.accelerator, max(1, sum(self.train.count(rows) for rows in window))
        loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        mine = [list(shares(rows, accelerator.num_processes))[accelerator.process_index] for rows in window]
        pieces = [piece for rows in mine for piece in self._pieces(rows)]
        for index, rows in enumerate(pieces):
            last = index == len(pieces) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.micro_loss(rows).sum()
                # Ranks average their gradients, so each scales its sum up by their number.
                share = accelerator.num_processes / in_window
                accelerator.backward(loss * self.classifier.head.loss_scale * share)
            loss_sum += loss.detach().double()
        return loss_sum

    # -- less memory -------------------------------------------------------------------------------------------------

    @property
    def _may_halve(self) -> bool:
        """Of several processes one would be out of memory while the others wait for its gradients."""
        return self.config.auto_micro_batch and self.accelerator.num_processes == 1

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """A micro-batch as it fits: whole, unless memory has run out before."""
        if self.micro_batch is None or len(rows) <= self.micro_batch:
            return [rows]
        return [rows[start:start + self.micro_batch] for start in range(0, len(rows), self.micro_batch)]

    def _gradients_that_fit(self, window: list[np.ndarray]) -> Tensor:
        """`_gradients`, with half the micro-batch as often as memory runs out; from the same random state each time."""
        while True:
            device = self.accelerator.device
            before = torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None
            try:
                return self._gradients(window)
            except (RuntimeError, MemoryError) as error:
                size = self.micro_batch or self.config.per_device_train_batch_size
                if not is_out_of_memory(error) or size == 1:
                    raise
                asked = asked_for(error)
            # Outside of the handler: the error holds on to what the failed pass had allocated.
            self.micro_batch = (size + 1) // 2
            self.optimizer.zero_grad(set_to_none=True)
            torch.set_rng_state(before[0])
            if before[1] is not None:
                torch.cuda.empty_cache()
                torch.cuda.set_rng_state(before[1])
            self.said(f"out of memory ({asked} could not be had) at step {self.step + 1}: from here on "
                      f"{self.micro_batch} rows at a time instead of {size}, with the same effective batch")

    # -- the step ----------------------------------------------------------------------------------------------------

    def _update(self) -> None:
        """The optimizer's step on the gradients that are there."""
        config, accelerator = self.config, self.accelerator
        if len(self.reached) < len(self.phases):
            self.reached.append(audit_gradients(self.classifier, self.plan, self.stack))
        scaler = accelerator.scaler  # fp16 only; Accelerate unscales the optimizers that it wrapped, and ours is bare
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.strategy.needs_gradient_norms:
            for part, norm in part_gradient_norms(self.stack).items():
                self.norms[part] = self.norms.get(part, 0.0) + norm
        clip_gradients(self.optimizer, config.max_grad_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def micro_loss(self, rows: np.ndarray) -> Tensor:
        """Per-example loss of some training rows."""
        if not len(rows):  # a tail smaller than the number of processes: take part with nothing
            rows, empty = np.zeros(1, np.int64), True
        else:
            empty = False
        loss = self.loss_from(*self.batch(rows))
        return loss * 0 if empty else loss

    def batch(self, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """What the model reads of some training rows, and their labels, on the device."""
        return self._inputs(self.train, rows), self.train.labels(rows).to(self.accelerator.device, non_blocking=True)

    def loss_from(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Per-example loss of a batch."""
        with self.accelerator.autocast():
            logits = self._run(self.model, inputs, self.train)
        return per_example_loss(self.task, logits, labels, self.class_weights)

    def logits_from(self, inputs: dict[str, Tensor], split: Collator) -> Tensor:
        """(rows, outputs) of a batch of `split`, in the mode in which the classifier is."""
        with self.accelerator.autocast():
            return self._run(self.classifier, inputs, split)

    def starts_at(self, split: Collator) -> int:
        """The layer from which batches of a split are computed; 0: from their texts."""
        return self.prefix.starts_at(split) if self.prefix is not None else 0

    def _inputs(self, split: Collator, rows: np.ndarray) -> dict[str, Tensor]:
        if self.prefix is not None:
            return self.prefix.inputs(split, rows)
        return to_device(split(rows), self.accelerator.device)

    def _run(self, model: nn.Module, inputs: dict[str, Tensor], split: Collator) -> Tensor:
        return model(**inputs) if self.prefix is None else self.prefix.run(model, inputs, split)

    @torch.no_grad()
    def logits(self, split: Collator) -> np.ndarray:
        """Logits (rows, outputs) of a whole split, in its own order, on every process."""
        if self.classifier.training:
            self.classifier.eval()
        accelerator = self.accelerator
        mine: list[tuple[np.ndarray, np.ndarray]] = []
        size = self.config.per_device_eval_batch_size
        if self.prefix is not None and self.prefix.serves_pooled(split):
            size = max(size, POOLED_ROWS)
        batches = evaluation_batches(split.encoded.lengths, size)
        for rows in batches[accelerator.process_index::accelerator.num_processes]:
            inputs = self._inputs(split, rows)
            logits = self.graphs.logits(inputs, split) if self.graphs is not None else None
            if logits is None:
                logits = self.logits_from(inputs, split)
            mine.append((rows, logits.float().cpu().numpy()))
            if accelerator.num_processes == 1:  # several would have to agree, and they have different batches
                signals.check()
        parts = gather_object(mine) if accelerator.num_processes > 1 else mine
        if not all(np.isfinite(logits).all() for _, logits in parts):
            raise TrialFailed("non-finite", "the model's logits are not finite; try a smaller learning_rate")
        return split.joined(parts)


def _windows(batches: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(batches), size):
        yield batches[start:start + size]


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise TrialFailed("non-finite", f"the training loss is {loss} in epoch {epoch}; "
                          "try a smaller learning_rate or head_learning_rate")
    return loss
