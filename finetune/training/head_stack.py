"""Heads over one frozen backbone, trained together: their weights lie in one stack, a step is a few batched products.

Sixty heads of 126 steps take 10 s one after the other on a GPU, and 0.2 s like this. The number of slots is fixed by
what the heads have in common, and empty slots are computed too: a head's numbers do not depend on which others train
beside it. Each has its own order of rows, its own stream of dropout, its own rates, decay, clipping and AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout

from finetune.data.encoding.batches import training_batches
from finetune.models.head import Head
from finetune.training.losses import per_example_loss
from finetune.training.random_state import generator_state, same_generator_afterwards, set_generator_state
from finetune.training.recorders import EagerTwin, Recorder
from finetune.training.schedule import shape

MOST_SLOTS = 64  # more of them gain little: 64 products of one head already fill a GPU
STACK_BYTES = 4 * 2**30  # weights, gradients, moments of all slots at most
MASK_BYTES = 2**28  # dropout masks of all slots, drawn for as many steps as fit
_COPIES = 4  # of each weight: itself, its gradient, AdamW's two moments


@dataclass(frozen=True)
class Common:
    """What all heads of a stack have in common. `width` of the pooled vectors, `hidden`: the widest head's, 0 for
    none; it decides the shapes, so it is rounded up the same way for whoever is in the stack."""

    task: str
    rows: int
    width: int
    hidden: int
    outputs: int
    batch: int
    epochs: int
    config: object = field(compare=False)  # a TrialConfig, for what is neither seed, rate, decay, dropout nor size
    units: tuple[float, float] = (0.0, 1.0)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def input_sizes(self) -> list[int]:
        """Of the linear layers, of which each has a dropout before it."""
        return [self.width, self.hidden] if self.hidden else [self.width]

    @property
    def slots(self) -> int:
        """A power of two, so many that they fit; 1 means that stacking is of no use."""
        weights = self.width * (self.hidden or self.outputs) + self.hidden * self.outputs
        fit = max(1, STACK_BYTES // (4 * _COPIES * weights))
        return min(MOST_SLOTS, 1 << (fit.bit_length() - 1))

    @property
    def mask_steps(self) -> int:
        """For how many steps masks are drawn at a time: no trial's own numbers decide it, so its stream is its own."""
        one = self.slots * self.batch * (self.width + self.hidden)
        return max(1, min(self.steps_per_epoch, MASK_BYTES // one))


def common_width(head_size: int) -> int:
    """The hidden width of the stack that a head of this size trains in: 0, or the next power of two from 32."""
    return 0 if not head_size else max(32, 1 << (head_size - 1).bit_length())


@dataclass(frozen=True)
class Member:
    """What is one head's own. `head` is fresh, on the CPU; it is not changed. `stream`: the state of torch's generator
    from which its dropout draws, as it would be before its first step if it trained alone."""

    seed: int
    learning_rate: float
    weight_decay: float
    dropout: float
    head: Head
    stream: Tensor


@dataclass(frozen=True)
class TrainedHead:
    """Per epoch the head's parameters, named and shaped as `Head` has them, and its mean loss per row as trained."""

    weights: list[dict[str, Tensor]]
    losses: list[float]
    slots: int
    epoch_seconds: float = 0.0  # its share of what the stack took, per epoch

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for weights in self.weights for tensor in weights.values())


@dataclass
class _Places:
    """What a step reads and writes, where it stays from step to step."""

    pooled: Tensor  # (slots, batch, width)
    labels: Tensor  # (slots * batch, …)
    real: Tensor  # (batch,) 0 for the rows that a short batch lacks
    masks: list[Tensor]
    rates: Tensor  # (slots, 1, 1)
    first: Tensor  # AdamW's corrections of its two moments
    second: Tensor
    loss: Tensor  # (slots,)


class HeadStack:
    """`slots` heads in training. `vectors(rows)` gives pooled vectors (len(rows), width) of training rows (an int64
    array) on the device; `labels` are those of all training rows there. `recorder`: as for single steps."""

    def __init__(self, common: Common, members: Sequence[Member], vectors: Callable[[np.ndarray], Tensor],
                 labels: Tensor, lengths: np.ndarray, autocast: Callable[[], AbstractContextManager],
                 class_weights: Tensor | None = None, recorder: Recorder | None = None):
        if not 1 <= len(members) <= common.slots:
            raise ValueError(f"{len(members)} heads for {common.slots} slots")
        self.common, self.members = common, members
        self.vectors, self.labels, self.lengths = vectors, labels, lengths
        self.autocast, self.class_weights, self.device = autocast, class_weights, labels.device
        self.recorder = recorder or EagerTwin()
        self.weights = self._stacked_weights()
        self.moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in self.weights]
        # Before anything is recorded: nothing may come from the host in between.
        self._decay = self._per_slot([member.weight_decay for member in members])
        self._kept_scale = self._per_slot([1 / (1 - member.dropout) if member.dropout < 1 else 0.0
                                           for member in members])
        self._rates = self._scheduled_rates()
        self._streams = [member.stream for member in members]
        self.step = 0
        self._replay: Callable[[], None] | None = None

    def train(self, between: Callable[[], None] = lambda: None) -> list[TrainedHead]:
        """All epochs; `between` is called after each and may raise. One result per member, in order."""
        began = time.monotonic()
        found = [TrainedHead([], [], self.common.slots) for _ in self.members]
        try:
            for epoch in range(1, self.common.epochs + 1):
                losses = self._epoch(epoch).tolist()
                for slot, trained in enumerate(found):
                    trained.weights.append(self._weights_of(slot))
                    trained.losses.append(losses[slot] / self.common.rows)
                between()
        finally:
            self._replay = None
            self.recorder.close()
        share = (time.monotonic() - began) / self.common.epochs / len(found)
        return [replace(trained, epoch_seconds=share) for trained in found]

    # -- one epoch -----------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> Tensor:
        """(slots,) summed loss over the rows."""
        rows, real = self._rows(epoch)
        total = torch.zeros(self.common.slots, dtype=torch.float64, device=self.device)
        for index, masks in enumerate(self._masks()):
            total += self._step(rows[:, index].reshape(-1), real[index], masks)
        return total

    def _rows(self, epoch: int) -> tuple[np.ndarray, Tensor]:
        """(slots, steps, batch) rows, and (steps, batch) 1 where there is one: the last batch may be short."""
        common = self.common
        rows = np.zeros((common.slots, common.steps_per_epoch * common.batch), np.int64)
        for slot, member in enumerate(self.members):
            rows[slot, :common.rows] = np.concatenate(
                training_batches(self.lengths, common.batch, member.seed, epoch))
        real = np.zeros(rows.shape[1], np.float32)
        real[:common.rows] = 1
        return (rows.reshape(common.slots, common.steps_per_epoch, common.batch),
                torch.from_numpy(real.reshape(-1, common.batch)).to(self.device))

    def _masks(self) -> Iterator[list[Tensor]]:
        """Per step of an epoch what is multiplied with the input of each linear layer: (slots, batch, its width).

        Each head's own, whatever lies in the other slots: what dropout would have drawn had it trained alone.
        """
        common = self.common
        for start in range(0, common.steps_per_epoch, common.mask_steps):
            steps = range(start, min(start + common.mask_steps, common.steps_per_epoch))
            drawn = [torch.ones(len(steps), common.slots, common.batch, size, dtype=torch.bool, device=self.device)
                     for size in common.input_sizes]
            with same_generator_afterwards(self.device):
                for slot, member in enumerate(self.members):
                    if member.dropout:
                        self._draw(slot, member, steps, drawn)
            yield from ([mask[index] for mask in drawn] for index in range(len(steps)))

    def _draw(self, slot: int, member: Member, steps: range, drawn: list[Tensor]) -> None:
        """Into a slot's share of the masks; on with its own stream, which only torch's global generator can give."""
        set_generator_state(self.device, self._streams[slot])
        ones = [torch.ones(self.common.batch, linear.in_features, dtype=dtype, device=self.device)
                for linear, dtype in zip(member.head.linears, self._input_dtypes, strict=True)]
        kept: list[list[Tensor]] = [[] for _ in ones]
        for step in steps:
            rows = min(self.common.batch, self.common.rows - step * self.common.batch)
            for found, one in zip(kept, ones, strict=True):
                found.append(_kept_by_dropout(one[:rows], member.dropout))
        for mask, found in zip(drawn, kept, strict=True):
            rows, size = found[-1].shape
            if rows < self.common.batch:  # the last batch of an epoch
                last = found.pop()
                mask[len(found), slot, :rows, :size] = last
            if found:
                mask[:len(found), slot, :, :size] = torch.stack(found)
        self._streams[slot] = generator_state(self.device)

    @property
    def _input_dtypes(self) -> list[torch.dtype]:
        """Of what a head's dropouts are given; what they draw depends on it."""
        with self.autocast():
            hidden = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(
                self.device.type) else torch.float32
        return [self._places.pooled.dtype, hidden][:len(self.common.input_sizes)]

    def _step(self, rows: np.ndarray, real: Tensor, masks: list[Tensor]) -> Tensor:
        """One step of every head at once; (slots,) summed losses, valid until the next one."""
        places = self._places
        places.pooled.copy_(self.vectors(rows).view(places.pooled.shape))
        places.labels.copy_(self.labels.index_select(0, torch.from_numpy(rows).to(self.device, non_blocking=True)))
        places.real.copy_(real)
        for place, mask in zip(places.masks, masks, strict=True):
            place.copy_(mask)
        self.step += 1
        constants = self.common.config.optimizer
        places.rates.copy_(self._rates[self.step - 1])
        places.first.fill_(1 - constants.beta1 ** self.step)
        places.second.fill_(1 - constants.beta2 ** self.step)
        if self._replay is None:
            self._replay = self._recorded()
        self._replay()
        return places.loss

    def _recorded(self) -> Callable[[], None]:
        """What runs a step on what lies in its places. Where it cannot be recorded it runs kernel by kernel."""
        try:
            self.recorder.aside(self._backward)
            return self.recorder.record(self._whole)
        except Exception:  # whatever the driver raises; nothing of a step has been applied yet
            self.recorder.forget_failure()
            return self._whole

    @cached_property
    def _places(self) -> _Places:
        common, device = self.common, self.device
        batch = (common.slots, common.batch)
        pooled = torch.empty(*batch, common.width, dtype=self.vectors(np.zeros(1, np.int64)).dtype, device=device)
        return _Places(
            pooled, torch.empty(batch[0] * batch[1], *self.labels.shape[1:], dtype=self.labels.dtype, device=device),
            torch.empty(common.batch, device=device),
            [torch.empty(*batch, size, dtype=torch.bool, device=device) for size in common.input_sizes],
            torch.empty(common.slots, 1, 1, device=device), torch.empty((), device=device),
            torch.empty((), device=device), torch.empty(common.slots, dtype=torch.float64, device=device))

    def _whole(self) -> None:
        self._backward()
        self._update()

    def _backward(self) -> None:
        """Gradients of every head's mean loss per row; its summed loss into its place."""
        common, places = self.common, self._places
        for weight in self.weights:
            weight.grad = None
        with self.autocast():
            logits = self._logits(places.pooled, places.masks)
        loss = per_example_loss(common.task, logits.flatten(0, 1), places.labels, self.class_weights)
        loss = loss.view(common.slots, common.batch) * places.real
        (loss.sum() * self._loss_scale / places.real.sum()).backward()
        places.loss.copy_(loss.detach().double().sum(1))

    def _logits(self, hidden: Tensor, masks: list[Tensor]) -> Tensor:
        """(slots, batch, width) -> (slots, batch, outputs), as `Head` does."""
        for layer, mask in enumerate(masks):
            weight, bias = self.weights[2 * layer], self.weights[2 * layer + 1]
            dropped = hidden * (mask * self._kept_scale).to(hidden.dtype)
            hidden = torch.baddbmm(bias, dropped, weight)
            if layer < len(masks) - 1:
                hidden = torch.relu(hidden)
        mean, deviation = self.common.units
        return hidden.float() * deviation + mean if self.common.units != (0.0, 1.0) else hidden

    @torch.no_grad()
    def _update(self) -> None:
        """Each slot's own clipping, then AdamW as torch.optim has it; decay on matrices only."""
        config, places = self.common.config, self._places
        gradients = [weight.grad for weight in self.weights]
        if config.max_grad_norm:
            norms = torch.stack([gradient.square().sum((1, 2)) for gradient in gradients]).sum(0).sqrt()
            scale = (config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
            gradients = [gradient * scale for gradient in gradients]
        beta1, beta2, epsilon = config.optimizer.beta1, config.optimizer.beta2, config.optimizer.epsilon
        for index, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            mean, square = self.moments[index]
            if index % 2 == 0:  # a matrix, then its bias
                weight.mul_(1 - places.rates * self._decay)
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight.sub_(places.rates / places.first * mean / (square.sqrt() / places.second.sqrt() + epsilon))

    # -- the slots -----------------------------------------------------------------------------------------------------

    def _stacked_weights(self) -> list[Tensor]:
        """Per linear layer (slots, in, out) and (slots, 1, out). Zeros beyond a narrower head's size, to which no
        gradient comes, and in empty slots, whose rates are 0."""
        common = self.common
        sizes = [*common.input_sizes, common.outputs]
        stacked = []
        for layer, (wide, out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            weight, bias = torch.zeros(common.slots, wide, out), torch.zeros(common.slots, 1, out)
            for slot, member in enumerate(self.members):
                linear = member.head.linears[layer]
                weight[slot, :linear.in_features, :linear.out_features] = linear.weight.detach().T
                bias[slot, 0, :linear.out_features] = linear.bias.detach()
            stacked += [weight, bias]
        return [tensor.to(self.device).requires_grad_() for tensor in stacked]

    def _weights_of(self, slot: int) -> dict[str, Tensor]:
        found = {}
        for layer, linear in enumerate(self.members[slot].head.linears):
            weight, bias = self.weights[2 * layer], self.weights[2 * layer + 1]
            found[f"linears.{layer}.weight"] = weight.detach()[
                slot, :linear.in_features, :linear.out_features].T.contiguous().clone()
            found[f"linears.{layer}.bias"] = bias.detach()[slot, 0, :linear.out_features].clone()
        return found

    def _per_slot(self, values: list[float]) -> Tensor:
        """(slots, 1, 1) float32; empty slots have the last one's."""
        padded = [*values, *[values[-1]] * (self.common.slots - len(values))]
        return torch.tensor(padded, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    def _scheduled_rates(self) -> Tensor:
        """(steps, slots, 1, 1)"""
        total = self.common.total_steps
        factors = torch.tensor([shape(self.common.config, step, total) for step in range(total)], dtype=torch.float64)
        peaks = torch.tensor([member.learning_rate for member in self.members], dtype=torch.float64)
        rates = torch.zeros(total, self.common.slots, dtype=torch.float64)
        rates[:, :len(peaks)] = factors[:, None] * peaks[None, :]
        return rates.float().to(self.device).view(total, self.common.slots, 1, 1)

    @property
    def _loss_scale(self) -> float:
        return 1 / self.common.units[1] ** 2


def _kept_by_dropout(ones: Tensor, share: float) -> Tensor:
    """Which of `ones` dropout leaves; on a GPU its own kernel says so (PyTorch's fused one), without a comparison."""
    return torch.native_dropout(ones, share, True)[1] if ones.is_cuda else dropout(ones, share) != 0
