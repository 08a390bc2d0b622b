"""Training steps as CUDA graphs: forward, backward, clipping and AdamW, recorded once per shape and then replayed.

A step of BERT-base at 32 short rows is 30 ms of launches for 6 ms of work; a replay launches once. Graphs are made per
plan, shape of a batch and boundary. Inputs are copied into tensors that stay where they are; learning rates are tensors
on the device; dropout goes on with the device's generator, which a graph advances as the same kernels do by themselves.
The forward passes of an evaluation and ragged last batches are recorded likewise in trials of many epochs.

`EagerTwin` has the same interface and runs what it was given: on a CPU it shows that everything but the recording
itself leaves the numbers as they are. Whatever cannot be recorded is computed as ever, after one sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.encoding.batches import Collator
from finetune.data.encoding.words import IGNORED
from finetune.data.task_data import TAGGED
from finetune.training.memory import is_out_of_memory
from finetune.training.random_state import random_states, set_random_states

UNUSED_BYTES = 4 * 2**30  # on the device, that a worker holds on to before it gives them back
WORTH_STEPS = 20  # auto: a trial of fewer steps is over before recording has paid
WORTH_EPOCHS = 5  # for what comes once per epoch: an evaluation, a ragged last batch


class Recorder(Protocol):
    """Runs something aside, records it, and says how to run it again."""

    def aside(self, run: Callable[[], None]) -> None: ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]: ...

    def forget_failure(self) -> None: ...

    def close(self) -> None: ...


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


class EagerTwin:
    """Records nothing: a replay runs it again."""

    def aside(self, run: Callable[[], None]) -> None:
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return run

    def forget_failure(self) -> None:
        pass

    def close(self) -> None:
        pass


class CudaRecorder:
    """One memory pool for all graphs of a trial: they never run at the same time."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pool: Any = None
        self._state: Tensor | None = None

    def aside(self, run: Callable[[], None]) -> None:
        """On a stream of its own, as libraries that set themselves up at their first call want it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        self._state = torch.cuda.get_rng_state(self.device)
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        self._pool = graph.pool()
        return graph.replay

    def forget_failure(self) -> None:
        """A recording that broke off leaves the generator believing that it is being recorded."""
        with contextlib.suppress(Exception):  # then the next draw says what is wrong
            torch.cuda.synchronize(self.device)
        if self._state is not None:
            index = self.device.index if self.device.index is not None else torch.cuda.current_device()
            fresh = torch.Generator(self.device)
            fresh.set_state(self._state)
            torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())

    def close(self) -> None:
        if self._pool is None:
            return
        self._pool = None
        # The pool of a graph that is gone serves nobody. Giving it back takes 0.3 s (H200): not after every trial.
        if torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device) > UNUSED_BYTES:
            torch.cuda.empty_cache()


@dataclass
class _Recorded:
    """One shape's step or pass: where its inputs are put, what runs it, and where its summed loss, or its logits, are
    afterwards."""

    inputs: dict[str, Tensor]
    labels: Tensor | None = None
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
    _optimizer: torch.optim.Optimizer | None = None
    _of_another: bool = False  # recorded for the trial before, whose tensors this one has taken over

    def step(self, rows: np.ndarray) -> Tensor | None:
        """Forward, backward and update over one batch; its summed loss, or None: do it yourself.

        Learning rates must be set. The first step of every plan is the caller's: it is audited, and AdamW's moments
        are made in it.
        """
        if self.refused is not None or not self._may():
            return None
        if len(rows) < self.trainer.config.per_device_train_batch_size and not self._often:
            return None
        inputs, labels = self.trainer.batch(rows)
        try:
            recorded = self._recorded(inputs, labels)
        except Exception as error:  # whatever a model's own code or the driver raises when it cannot be recorded
            self._give_up(error)
            return None
        _copy(inputs, recorded.inputs)
        recorded.labels.copy_(labels, non_blocking=True)
        recorded.replay()
        self.trainer.optimizer.zero_grad(set_to_none=True)  # else an eager step would add to what a graph left
        self.replays += 1
        return recorded.found.clone()

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
                self._passes[key] = self._made(inputs, None, forward, forward)
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
        self._steps.clear()
        self._passes.clear()
        self._optimizer, self._of_another = None, False

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
            self._steps.clear()
            self._optimizer = trainer.optimizer
        return len(trainer.reached) == len(trainer.phases) and bool(trainer.optimizer.state)

    def _recorded(self, inputs: dict[str, Tensor], labels: Tensor) -> _Recorded:
        key = self._key(inputs, self.trainer.train)
        if key not in self._steps:
            self._steps[key] = self._made(inputs, labels, self._backward, self._whole)
        return self._steps[key]

    def _key(self, inputs: dict[str, Tensor], split: Collator) -> tuple:
        return (self.trainer.starts_at(split), *((name, tuple(value.shape), value.dtype)
                                                 for name, value in sorted(inputs.items())))

    def _made(self, inputs: dict[str, Tensor], labels: Tensor | None, aside: Callable[[_Recorded], None],
              whole: Callable[[_Recorded], None]) -> _Recorded:
        """`whole` recorded, after `aside` has run once; nothing that is the trainer's has changed."""
        made = _Recorded({name: value.clone() for name, value in inputs.items()},
                         None if labels is None else labels.clone())
        with _same_randomness_afterwards(inputs) as drawn:
            self.recorder.aside(lambda: aside(made))
        if drawn.on_host:
            raise RuntimeError("it draws random numbers on the host")
        self._no_gradients()
        made.replay = self.recorder.record(lambda: whole(made))
        self._no_gradients()
        return made

    def _no_gradients(self) -> None:
        if self.trainer.optimizer is not None:
            self.trainer.optimizer.zero_grad(set_to_none=True)

    def _forward(self, split: Collator, made: _Recorded) -> None:
        made.found = self.trainer.logits_from(made.inputs, split)

    def _backward(self, made: _Recorded) -> None:
        loss = self.trainer.loss_from(made.inputs, made.labels).sum()
        share = 1 / self._counted(made.labels)
        self.trainer.accelerator.backward(loss * self.trainer.classifier.head.loss_scale * share)
        made.found = loss.detach().double()

    def _counted(self, labels: Tensor) -> int | Tensor:
        """What the loss is a mean over: rows, or words."""
        return len(labels) if self.trainer.task != TAGGED else (labels != IGNORED).sum().clamp(min=1)

    def _whole(self, made: _Recorded) -> None:
        self._backward(made)
        clip_gradients(self.trainer.optimizer, self.trainer.config.max_grad_norm)
        self.trainer.optimizer.step()

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
        "gradient_accumulation_steps is more than 1": config.gradient_accumulation_steps > 1,
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


def _copy(values: dict[str, Tensor], places: dict[str, Tensor]) -> None:
    for name, value in values.items():
        places[name].copy_(value, non_blocking=True)


@dataclass
class _Drawn:
    on_host: bool = False


@contextlib.contextmanager
def _same_randomness_afterwards(inputs: dict[str, Tensor]) -> Iterator[_Drawn]:
    """Put every generator back, and say whether one of the host's was used while the batch lay on a GPU."""
    device, before, drawn = next(iter(inputs.values())).device, random_states(), _Drawn()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield drawn
        after = random_states()
    on_host = ("torch", "python", "numpy") if device.type == "cuda" else ("python", "numpy")
    drawn.on_host = any(not torch.equal(before[name], after[name]) for name in on_host)
    set_random_states(before)
