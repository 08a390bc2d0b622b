"""A trial's checkpoints: what is in one, when it is written, and how a trial goes on from the newest intact one."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import accelerate
import torch

from finetune.errors import Interrupted
from finetune.training import signals
from finetune.training.checkpoint import Checkpoint, DamagedCheckpoint
from finetune.training.resume import audit_report, restore_trainer, trainer_state
from finetune.training.stopwatch import Stopwatch
from finetune.trial.build import build_trainer
from finetune.trial.environment import differences, environment
from finetune.trial.state import TrialRun

LITTLE_TO_DO_AGAIN_SECONDS = 30.0  # the record follows at once
SHORT_EPOCH_SECONDS = 5.0  # on a GPU, where copying weights and moments to the host takes as long as such an epoch
WRITES_BESIDE = frozenset({"cuda"})  # kinds of device that train on while the host writes a checkpoint


def save_checkpoint(run: TrialRun) -> None:
    """Between two steps. Every process takes part, the main one writes; what it costs is no training time."""
    if not run.keeps_checkpoints:
        return
    watch = Stopwatch()
    with watch:
        trainer_part, tensors = trainer_state(run.trainer)
        if run.accelerator.is_main_process:
            _write(run, _as_checkpoint(run, trainer_part, tensors))
    run.state.safe_seconds = run.state.spent_seconds
    run.state.cost["checkpoint_seconds"] += watch.seconds
    run.state.clock.leave_out(watch.seconds)


def _write(run: TrialRun, checkpoint: Checkpoint) -> None:
    """Beside training on a GPU, whose tensors have come to the host as copies; whoever needs it there waits."""
    device = run.accelerator.device.type
    if device not in WRITES_BESIDE:
        run.checkpoints.save(checkpoint)
        return
    own = replace(checkpoint, state=copy.deepcopy(checkpoint.state))
    if device == "cpu":
        own = replace(own, tensors={name: tensor.clone() for name, tensor in own.tensors.items()})
    run.background.run(lambda: run.checkpoints.save(own))


def save_unless_over(run: TrialRun, over: bool) -> None:
    """After an epoch. `over`: the record follows at once, so that a checkpoint is left out where doing the work since
    the newest one again would take less than writing is worth; between short epochs on a GPU likewise (a signal still
    has one written). Several processes write together: a signal to one of them could not make up for it."""
    at_risk, alone = run.state.spent_seconds - run.state.safe_seconds, run.accelerator.num_processes == 1
    run.left_out = over and alone and at_risk < LITTLE_TO_DO_AGAIN_SECONDS
    short = run.accelerator.device.type in WRITES_BESIDE and alone and at_risk < SHORT_EPOCH_SECONDS
    if not run.left_out and not short:
        save_checkpoint(run)


def _as_checkpoint(run: TrialRun, trainer_part: dict, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    state = run.state
    best = {name: value for name, value in state.best.items() if name != "logits"}
    content = {"trainer": trainer_part, "history": state.history, "best": best, "cost": state.cost,
               "audit": asdict(state.audit), "resumes": state.resumes, "environment": environment(run.accelerator),
               "epoch_seconds": state.clock.seconds}
    if state.best:
        tensors = tensors | {"best_logits": torch.from_numpy(state.best["logits"])}
    return Checkpoint(run.trainer.step, len(state.history), content, tensors)


def resume(run: TrialRun) -> bool:
    """Bring run.trainer and run.state to the newest intact checkpoint; False where there is none that fits."""
    checkpoint = _newest(run)
    if checkpoint is None:
        return False
    try:
        _restore(run, checkpoint)
    except DamagedCheckpoint as error:
        run.observer.said(f"checkpoint {checkpoint.name} is not used: {error}; the trial starts again")
        run.trainer = build_trainer(run)
        return False
    return True


def _newest(run: TrialRun) -> Checkpoint | None:
    """The same one on every process; damaged ones are skipped, and that is said."""
    if run.checkpoints is None:
        return None
    checkpoint = None
    if run.accelerator.is_main_process:
        checkpoint, skipped = run.checkpoints.newest()
        for sentence in skipped:
            run.observer.said(sentence)
    if run.accelerator.num_processes > 1:
        name = accelerate.utils.broadcast_object_list([checkpoint and checkpoint.name])[0]
        checkpoint = checkpoint or (run.checkpoints.read(name) if name else None)
    return checkpoint


def _restore(run: TrialRun, checkpoint: Checkpoint) -> None:
    """Raises DamagedCheckpoint when it does not fit this trial."""
    content, tensors, state = checkpoint.state, checkpoint.tensors, run.state
    restore_trainer(run.trainer, content["trainer"], tensors)
    state.history, state.audit = list(content["history"]), audit_report(content["audit"])
    state.best = {**content["best"], "logits": tensors["best_logits"].numpy()} if content["best"] else {}
    state.cost |= content["cost"]
    state.clock.seconds = content["epoch_seconds"]
    state.safe_seconds = state.spent_seconds
    changed = differences(content["environment"], environment(run.accelerator))
    state.resumes = [*content["resumes"], {"step": checkpoint.step, "changed": changed}]
    if changed:
        told = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
        run.observer.said(f"resumed with {told}: the result may differ in the last digits from an uninterrupted run's")


def keep_for_later(run: TrialRun, interruption: Interrupted) -> str:
    """A signal has come: keep what is done. Returns "pruned" where it means that the trial shall end with a record."""
    save_checkpoint(run)
    run.background.wait()
    if run.progress.interrupted(interruption.signum) == "prune" and run.state.history:
        signals.forget()
        return "pruned"
    note = "" if not run.keeps_checkpoints else (f"a checkpoint is kept at step {run.trainer.step} of "
                                               f"{run.trainer.total_steps}, the same command goes on from there")
    raise Interrupted(interruption.signum, note)
