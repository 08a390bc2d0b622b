"""Training steps as CUDA graphs: forward, backward, clipping and AdamW, recorded once per shape and then replayed.

A step of BERT-base at 32 short rows is 30 ms of launches for 6 ms of work; a replay launches once. Graphs are made per
plan, shape of a batch and boundary. Inputs are copied into tensors that stay where they are; learning rates are tensors
on the device; dropout goes on with the device's generator, which a graph advances as the same kernels do by themselves.
In bf16 whole steps compute with copies of the weights (master_weights.py). Evaluation passes and ragged last batches
are recorded in trials of many epochs. Of a window of several micro-batches each adds its gradients to tensors that stay
where they are; the update is recorded by itself.

`recorders.EagerTwin` runs what it was given: on a CPU it shows that everything but the recording itself leaves the
numbers as they are. Whatever cannot be recorded is computed as ever, after one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.encoding.batches import Collator
from finetune.data.encoding.words import IGNORED
from finetune.data.task_data import TAGGED
from finetune.training.master_weights import LowPrecisionCopies, autocast_dtype, copies_for, same_loss
from finetune.training.memory import is_out_of_memory
from finetune.training.random_state import draws_undone
from finetune.training.recorders import CudaRecorder, Recorder

WORTH_STEPS = 20  # auto: a trial of fewer steps is over before recording has paid
_UPDATE = ("update",)  # key of the update that ends a window of several micro-batches
WORTH_EPOCHS = 5  # for what comes once per epoch: an evaluation, a ragged last batch


class Trained(Protocol):
    """What a recorded step needs of a trainer (`loop.Trainer`)."""

    config: Any
    task: str
    train: Collator
    accelerator: Any
    classifier: nn.Module
    strategy: Any
    optimizer: torch.optim.Optimizer | None
    phases: list
    reached: list
    said: Callable[[str], None]

    @property
    def total_steps(self) -> int: ...

    def starts_at(self, split: Collator) -> int: ...

    def batch(self, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]: ...

    def loss_from(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor: ...

    def logits_from(self, inputs: dict[str, Tensor], split: Collator) -> Tensor: ...


@dataclass
class _Recorded:
    """One shape's step, micro-batch or pass: where its inputs are put, what runs it, and where its summed loss, or its
    logits, are afterwards. `share`: of a micro-batch, by what its summed loss is multiplied; None: it is a step."""

    inputs: dict[str, Tensor]
    labels: Tensor | None = None
    share: Tensor | None = None
    replay: Callable[[], None] | None = None
    found: Tensor | None = None


@dataclass
class StepGraphs:
    """The recorded steps and evaluation passes of one trainer. `refused`: why no step is recorded any more."""

    trainer: Trained
    recorder: Recorder
    refused: str | None = None
    replays: int = 0
    evaluates: bool = True  # passes of an evaluation can be recorded, too
    _steps: dict[tuple, _Recorded] = field(default_factory=dict)
    _passes: dict[tuple, _Recorded] = field(default_factory=dict)
    _held: dict[nn.Parameter, Tensor] = field(default_factory=dict)  # gradients that micro-batches add to
    _copies: LowPrecisionCopies | None = None  # of the weights that whole steps train
    _copies_tried: bool = False  # they wait for the first recording
    _optimizer: torch.optim.Optimizer | None = None
    _of_another: bool = False  # recorded for the trial before, whose tensors this one has taken over

    def step(self, window: list[np.ndarray]) -> Tensor | None:
        """Forward, backward and update over a window's micro-batches; their summed loss, or None: do it yourself.

        Learning rates must be set. The first step of every plan is the caller's: it is audited, and AdamW's moments
        are made in it.
        """
        if self.refused is not None or not self._may():
            return None
        if not self._often and any(len(rows) < self.trainer.config.per_device_train_batch_size for rows in window):
            return None
        loss = self._accumulated(window) if len(window) > 1 else self._whole_step(window[0])
        self.trainer.optimizer.zero_grad(set_to_none=True)  # else an eager step would add to what a graph left
        return loss

    def _whole_step(self, rows: np.ndarray) -> Tensor | None:
        inputs, labels = self.trainer.batch(rows)
        try:
            recorded = self._recorded(inputs, labels)
        except Exception as error:  # whatever a model's own code or the driver raises when it cannot be recorded
            self._give_up(error)
            return None
        self._replay(recorded, inputs, labels)
        self.replays += 1
        return recorded.found.clone()

    def _accumulated(self, window: list[np.ndarray]) -> Tensor:
        """Where a recording fails in the middle, the rest is computed on the gradients that are there."""
        trainer = self.trainer
        share = 1 / max(1, sum(trainer.train.count(rows) for rows in window))
        if self._held:
            torch._foreach_zero_(list(self._held.values()))
        total = torch.zeros((), device=trainer.accelerator.device, dtype=torch.float64)
        for rows in window:
            inputs, labels = trainer.batch(rows)
            total += self._added(inputs, labels, share)
        if self.refused is None:
            try:
                if _UPDATE not in self._steps:
                    self._steps[_UPDATE] = _Recorded({}, replay=self.recorder.record(self._update))
            except Exception as error:
                self._give_up(error)
        if self.refused is None:
            self._steps[_UPDATE].replay()
            self.replays += 1
        else:
            self._update()
            self._held.clear()
        return total

    def _added(self, inputs: dict[str, Tensor], labels: Tensor, share: float) -> Tensor:
        """A micro-batch's gradients are added to the window's; its summed loss."""
        if self.refused is None:
            try:
                recorded = self._recorded(inputs, labels, share)
            except Exception as error:
                self._give_up(error)
            else:
                recorded.share.fill_(share)
                self._replay(recorded, inputs, labels)
                return recorded.found
        made = _Recorded(inputs, labels, _scalar(share, labels))
        return self._add(made)

    @staticmethod
    def _replay(recorded: _Recorded, inputs: dict[str, Tensor], labels: Tensor) -> None:
        _copy(inputs, recorded.inputs)
        recorded.labels.copy_(labels, non_blocking=True)
        recorded.replay()

    def logits(self, inputs: dict[str, Tensor], split: Collator) -> Tensor | None:
        """Of one batch of `split` in eval mode, valid until the next pass; None: compute them yourself.

        From a shape's first batch on: a replay's digits need not be those of kernels that are launched one by one.
        """
        if self.refused is not None or not self.evaluates or not self._often:
            return None
        if "pooled" in inputs:  # a head alone is launched as fast
            return None
        key, forward = self._key(inputs, split), partial(self._forward, split)
        try:
            if key not in self._passes:
                self._passes[key] = self._made(_Recorded(_copies(inputs)), forward, forward)
        except Exception as error:
            self._passes.clear()
            self.evaluates = False
            self.recorder.forget_failure()
            self.trainer.said("evaluation is not recorded as CUDA graphs, but computed batch by batch: "
                              f"{_reason(error)}")
            return None
        recorded = self._passes[key]
        _copy(inputs, recorded.inputs)
        recorded.replay()
        return recorded.found

    def hand_over(self, trainer: Trained | None) -> None:
        """What was recorded serves the next trial (None: it waits for one), whose model lies where this one's lay."""
        self.trainer, self._of_another = trainer, True
        self.replays = self.replays if trainer is None else 0

    def with_fresh_moments(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """`optimizer` as it is, or the one of the trial before with its rates, as if it had never stepped: what was
        recorded updates that one's moments. Where the two differ in more than rates, nothing recorded is of use.
        """
        before = self._optimizer
        if not self._of_another or before is None:
            return optimizer
        self._of_another = False
        if _structure(before) != _structure(optimizer):
            self.forget()
            return optimizer
        for group, new in zip(before.param_groups, optimizer.param_groups, strict=True):
            group |= {name: new[name] for name in ("peak_lr", "born")}
        for state in before.state.values():
            for tensor in state.values():
                tensor.zero_()
        return before

    def forget(self) -> None:
        """From here on nothing that was recorded is used."""
        self._let_go()
        self._passes.clear()
        self._optimizer, self._of_another = None, False

    def _let_go(self) -> None:
        """Of the steps that one optimizer takes."""
        self._steps.clear()
        self._held.clear()
        self._copies, self._copies_tried = None, False

    def close(self) -> None:
        """Let go of what was recorded: its memory on the device is no other trial's until then."""
        self.forget()
        self.recorder.close()

    @property
    def _often(self) -> bool:
        return self.trainer.config.num_train_epochs >= WORTH_EPOCHS

    def _may(self) -> bool:
        trainer = self.trainer
        if trainer.optimizer is not self._optimizer:  # another plan: what was recorded trains something else
            self._let_go()
            self._optimizer = trainer.optimizer
        return len(trainer.reached) == len(trainer.phases) and bool(trainer.optimizer.state)

    def _recorded(self, inputs: dict[str, Tensor], labels: Tensor, share: float | None = None) -> _Recorded:
        key = (share is not None, *self._key(inputs, self.trainer.train))
        if key not in self._steps:
            where = None if share is None else _scalar(share, labels)
            self._steps[key] = self._made(_Recorded(_copies(inputs), labels.clone(), where),
                                          self._try if share is None else self._backward,
                                          self._whole if share is None else self._add)
        return self._steps[key]

    def _key(self, inputs: dict[str, Tensor], split: Collator) -> tuple:
        return (self.trainer.starts_at(split), *((name, tuple(value.shape), value.dtype)
                                                 for name, value in sorted(inputs.items())))

    def _made(self, made: _Recorded, aside: Callable[[_Recorded], Any],
              whole: Callable[[_Recorded], Any]) -> _Recorded:
        """`whole` recorded, after `aside` has run once; nothing that is the trainer's has changed."""
        self._no_gradients()
        with draws_undone(next(iter(made.inputs.values())).device) as drawn:
            self.recorder.aside(lambda: aside(made))
        if drawn.on_host:
            raise RuntimeError("it draws random numbers on the host")
        if made.share is not None:
            self._hold()
        self._no_gradients()
        made.replay = self.recorder.record(lambda: whole(made))
        self._no_gradients()
        return made

    def _hold(self) -> None:
        """A place for the gradient of every parameter that the pass aside has reached: AdamW leaves the others be."""
        for group in self.trainer.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter not in self._held:
                    self._held[parameter] = torch.zeros_like(parameter.grad)

    def _no_gradients(self) -> None:
        if self.trainer.optimizer is not None:
            self.trainer.optimizer.zero_grad(set_to_none=True)

    def _forward(self, split: Collator, made: _Recorded) -> None:
        made.found = self.trainer.logits_from(made.inputs, split)

    def _backward(self, made: _Recorded) -> Tensor:
        loss = self.trainer.loss_from(made.inputs, made.labels).sum()
        share = 1 / self._counted(made.labels) if made.share is None else made.share
        self.trainer.accelerator.backward(loss * self.trainer.classifier.head.loss_scale * share)
        made.found = loss.detach().double()
        return made.found

    def _counted(self, labels: Tensor) -> int | Tensor:
        """What the loss is a mean over: rows, or words."""
        return len(labels) if self.trainer.task != TAGGED else (labels != IGNORED).sum().clamp(min=1)

    def _try(self, made: _Recorded) -> None:
        """A step's passes, aside; before the first ones, whether copies of the weights leave its digits alone."""
        if not self._copies_tried:
            self._copies_tried, trainer = True, self.trainer
            copies = copies_for(trainer.classifier, trainer.optimizer, autocast_dtype(trainer.accelerator))
            if copies is not None and same_loss(copies, partial(self._backward, made), self._no_gradients):
                self._copies = copies
        self._on_copies(made)

    def _on_copies(self, made: _Recorded) -> None:
        with nullcontext() if self._copies is None else self._copies.in_place():
            self._backward(made)

    def _whole(self, made: _Recorded) -> None:
        self._on_copies(made)
        self._clip_and_step()

    def _add(self, made: _Recorded) -> Tensor:
        self._take_up()
        return self._backward(made)

    def _update(self) -> None:
        self._take_up()
        self._clip_and_step()

    def _clip_and_step(self) -> None:
        clip_gradients(self.trainer.optimizer, self.trainer.config.max_grad_norm)
        self.trainer.optimizer.step()

    def _take_up(self) -> None:
        for parameter, gradient in self._held.items():
            parameter.grad = gradient

    def _give_up(self, error: Exception) -> None:
        """Nothing of a recording has run: the weights are as they were. From here on every step is eager."""
        self._steps.clear()
        self.recorder.forget_failure()
        self._no_gradients()
        self.refused = _reason(error)
        self.trainer.said(f"training steps are not recorded as CUDA graphs, but computed one by one: {self.refused}")


def _reason(error: Exception) -> str:
    """In one line."""
    reason = "no memory is left for it" if is_out_of_memory(error) else str(error).strip().partition("\n")[0]
    return reason or type(error).__name__


def _structure(optimizer: torch.optim.Optimizer) -> list[tuple]:
    """All that a recorded update has in it but the rates, which are tensors."""
    return [([id(parameter) for parameter in group["params"]], group["weight_decay"], group["betas"], group["eps"])
            for group in optimizer.param_groups]


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> None:
    if limit:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit)


def graphs_for(trainer: Trained, recorder: Recorder | None = None) -> StepGraphs | None:
    """What records a trainer's steps, or None where that is not asked for, impossible or not worth while."""
    config, device = trainer.config, trainer.accelerator.device
    if recorder is None and device.type != "cuda" or not worth_recording(config.cuda_graphs, trainer.total_steps):
        return None
    reason = _impossible(trainer)
    if reason is None:
        return StepGraphs(trainer, recorder or CudaRecorder(device))
    if config.cuda_graphs == "true":
        trainer.said(f"training steps are not recorded as CUDA graphs, but computed one by one: {reason}")
    return None


def _impossible(trainer: Trained) -> str | None:
    """What of a trial cannot be recorded."""
    config, accelerator = trainer.config, trainer.accelerator
    reasons = {
        "several processes wait for each other": accelerator.num_processes > 1,
        "fp16's loss scaler looks at the gradients on the host (bf16 needs none)": accelerator.scaler is not None,
        "gradient_checkpointing computes layers again": config.gradient_checkpointing,
        "auto_micro_batch may change the size of a batch": config.auto_micro_batch,
        "the strategy reads gradient norms": trainer.strategy.needs_gradient_norms,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def worth_recording(asked: str, steps: int) -> bool:
    """`asked`: the knob cuda_graphs; `steps` of the whole trial."""
    return asked == "true" or (asked == "auto" and steps >= WORTH_STEPS)


def make_recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Learning rates as tensors on the device, which a recorded step reads anew each time."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        group["capturable"] = device.type == "cuda"


def _scalar(value: float, beside: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=beside.device)


def _copies(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in values.items()}


def _copy(values: dict[str, Tensor], places: dict[str, Tensor]) -> None:
    for name, value in values.items():
        places[name].copy_(value, non_blocking=True)
