"""What training is made of between two steps, as JSON and tensors, and back: a resumed trial goes on bit for bit.

Tensors: model/<parameter> of all that has ever trained (the rest is the pretrained model's), optimizer/<parameter>/…,
best/<parameter>, random/<process>/…. Plans are not stored: they are made again from the moments at which they began.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from finetune.files import digest_of
from finetune.freezing import AuditReport
from finetune.freezing.audit import digest_kind
from finetune.training.checkpoint import DamagedCheckpoint
from finetune.training.loop import Trainer
from finetune.training.random_state import random_states, set_random_states
from finetune.training.schedule import set_learning_rates

Tensors = dict[str, Tensor]


def trainer_state(trainer: Trainer) -> tuple[dict[str, Any], Tensors]:
    """The trainer between two steps. Every process calls it; the answer is the main process's to keep."""
    mine = [(float(trainer.loss_sum), random_states())]
    ranks = gather_object(mine) if trainer.accelerator.num_processes > 1 else mine
    scaler = trainer.accelerator.scaler
    state = {
        "micro_batch": trainer.micro_batch, "step": trainer.step, "windows_done": trainer.windows_done,
        "norms": trainer.norms, "born": trainer.born,
        "gradient_norms": trainer.gradient_norms, "frozen": digest_of(trainer.frozen),
        "frozen_by": digest_kind(trainer.accelerator.device),
        "reached": [asdict(report) for report in trainer.reached],
        "loss_sums": [loss for loss, _ in ranks],
        "phases": [[plan.from_epoch, plan.from_step] for plan in trainer.phases],
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    tensors = _named("model", trainer.weights()) | _named("best", trainer.best) | _named("optimizer", _moments(trainer))
    for rank, (_, states) in enumerate(ranks):
        tensors |= _named(f"random/{rank}", states)
    return state, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def restore_trainer(trainer: Trainer, state: Mapping[str, Any], tensors: Tensors) -> None:
    """A fresh trainer, as it was when `trainer_state` looked at it; the random states too.

    Raises DamagedCheckpoint, before anything has changed for good, when the state is not this trial's.
    """
    parameters = dict(trainer.classifier.named_parameters())
    trainer.gradient_norms = [dict(norms) for norms in state["gradient_norms"]]
    for epoch, step in state["phases"]:
        trainer.plan_at(trainer.moment(epoch, step))
    _require_fit(parameters, trainer, tensors)
    with torch.no_grad():
        for name, tensor in _part("model", tensors).items():
            parameters[name].copy_(tensor)
    trainer.micro_batch = state["micro_batch"]
    trainer.step, trainer.windows_done = state["step"], state["windows_done"]
    trainer.reached = [audit_report(fields) for fields in state["reached"]]
    trainer.norms, trainer.born = dict(state["norms"]), dict(state["born"])
    trainer.loss_sum = state["loss_sums"][trainer.accelerator.process_index]
    device = trainer.accelerator.device
    trainer.best = {name: tensor.to(device) for name, tensor in _part("best", tensors).items()}
    if trainer.graphs is not None:
        trainer.graphs.forget()  # they would go on with moments that lie elsewhere
    trainer.put_into_effect()
    comparable = state.get("frozen_by", "xxh3") == digest_kind(device)
    if comparable and digest_of(trainer.frozen) != state["frozen"]:
        raise DamagedCheckpoint("what is frozen is not what was frozen when it was written")
    _restore_moments(trainer, parameters, tensors)
    if trainer.step:  # as the last step left them: where only the evaluation is left, the history still reads them
        set_learning_rates(trainer.optimizer, trainer.config, trainer.step - 1, trainer.total_steps,
                           trainer.strategy.period)
    if trainer.accelerator.scaler is not None and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    set_random_states(_part(f"random/{trainer.accelerator.process_index}", tensors))


def _require_fit(parameters: Mapping[str, Tensor], trainer: Trainer, tensors: Tensors) -> None:
    expected = {name: parameters[name].shape for plan in trainer.phases for name in plan.trainable}
    found = {name: tensor.shape for name, tensor in _part("model", tensors).items()}
    if found != expected:
        raise DamagedCheckpoint("its weights are not this model's")


def _moments(trainer: Trainer) -> Tensors:
    """AdamW's state by parameter name: <parameter>/step, /exp_avg, /exp_avg_sq."""
    state = trainer.optimizer.state
    return {f"{name}/{key}": value for name, parameter in trainer.classifier.named_parameters()
            for key, value in state.get(parameter, {}).items()}


def _restore_moments(trainer: Trainer, parameters: Mapping[str, Tensor], tensors: Tensors) -> None:
    for name, tensor in _part("optimizer", tensors).items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        # Moments lie in memory as their parameter does; the step count is a scalar on the same device.
        place = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(
            tensor, device=parameter.device)
        trainer.optimizer.state[parameter][key] = place.copy_(tensor)


def audit_report(fields: Mapping[str, Any]) -> AuditReport:
    """From its JSON, where tuples are lists."""
    return AuditReport(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def digest_of_tensors(tensors: Tensors) -> str:
    """sha256 over names and bytes, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _part(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix + "/"): tensor for name, tensor in tensors.items()
            if name.startswith(prefix + "/")}
