"""Checkpoints on disk: whole or absent, verified before use, never a pickle.

OUTPUT_DIR/checkpoints/<trial_id>/step-00000012-epoch-0003/state.json           numbers and names, with a checksum
OUTPUT_DIR/checkpoints/<trial_id>/step-00000012-epoch-0003/tensors.safetensors  its sha256 is in state.json

A checkpoint is staged in a folder of its own, fsynced and renamed in; the one before is removed only then.
(Accelerate's `save_state` deletes the oldest before it writes the new one, and reads random states that are pickled.)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from finetune.files import canonical_json, disk_errors, fsync_folder, sha256_file
from finetune.results import CHECKPOINTS

SCHEMA = 1
STATE_FILE, TENSORS_FILE = "state.json", "tensors.safetensors"
_STAGED, _REMOVED = ".staged-", ".removed-"


@dataclass(frozen=True)
class Checkpoint:
    """`step` optimizer steps and `epochs` whole epochs are behind it. `state` is JSON-able."""

    step: int
    epochs: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def name(self) -> str:
        return f"step-{self.step:08}-epoch-{self.epochs:04}"


class DamagedCheckpoint(Exception):
    """A checkpoint that must not be used; the message says why."""


class Checkpoints:
    """The checkpoints of one trial, of which the newest is kept."""

    def __init__(self, output_dir: Path | str, trial_id: str):
        self.trial_id = trial_id
        self.folder = Path(output_dir) / CHECKPOINTS / trial_id

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write it, then remove the ones before it.

        Raises EnvironmentProblem when the disk refuses; what was there is intact then, and nothing half-written stays.
        """
        target = self.folder / checkpoint.name
        with disk_errors("a checkpoint", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=_STAGED, dir=self.folder))
            try:
                self._write(staged, checkpoint)
                if target.exists():  # damaged, or from a run that went back to an older one
                    self._remove(target)
                os.rename(staged, target)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            fsync_folder(self.folder)
        for old in self._names():
            if old != checkpoint.name:
                self._remove(self.folder / old)
        return target

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        tensors = folder / TENSORS_FILE
        with _safetensors_errors():
            safetensors.torch.save_file(checkpoint.tensors, tensors)
        _fsync(tensors)
        state = {"schema": SCHEMA, "trial_id": self.trial_id, "step": checkpoint.step, "epochs": checkpoint.epochs,
                 "files": {TENSORS_FILE: sha256_file(tensors)}, "state": checkpoint.state}
        state["checksum"] = _checksum(state)
        (folder / STATE_FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        _fsync(folder / STATE_FILE)
        fsync_folder(folder)

    def newest(self, *, sweep_up: bool = True) -> tuple[Checkpoint | None, list[str]]:
        """The newest one that is intact, and a sentence for each damaged one that was skipped on the way."""
        if sweep_up:
            self._sweep_up()
        skipped: list[str] = []
        for name in reversed(self._names()):
            try:
                return self.read(name), skipped
            except DamagedCheckpoint as error:
                skipped.append(f"checkpoint {self.folder / name} is skipped: {error}")
        return None, skipped

    def read(self, name: str) -> Checkpoint:
        """Raises DamagedCheckpoint unless every byte is what was written for this trial."""
        folder = self.folder / name
        try:
            content = json.loads((folder / STATE_FILE).read_bytes())
            if content["checksum"] != _checksum(content):
                raise DamagedCheckpoint(f"{STATE_FILE} does not match its checksum")
            if (content["schema"], content["trial_id"]) != (SCHEMA, self.trial_id):
                raise DamagedCheckpoint("it belongs to another trial or another version")
            payload = (folder / TENSORS_FILE).read_bytes()
            if hashlib.sha256(payload).hexdigest() != content["files"][TENSORS_FILE]:
                raise DamagedCheckpoint(f"{TENSORS_FILE} does not match its checksum")
            checkpoint = Checkpoint(content["step"], content["epochs"], content["state"],
                                    safetensors.torch.load(payload))
        except OSError as error:
            raise DamagedCheckpoint(f"it is not complete ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise DamagedCheckpoint(f"it cannot be read ({type(error).__name__})") from error
        if checkpoint.name != name:
            raise DamagedCheckpoint("its folder has another one's name")
        return checkpoint

    def remove(self) -> None:
        """All of them: the trial has its record. A disk that refuses leaves them there; they do no harm."""
        with suppress(OSError):
            self._remove(self.folder)
            self.folder.parent.rmdir()  # where it was the last trial's

    def _names(self) -> list[str]:
        """From the oldest to the newest."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.folder) if entry.name.startswith("step-"))

    def _remove(self, path: Path) -> None:
        """Renamed first: a removal that is cut short leaves nothing that looks like a checkpoint."""
        doomed = path.with_name(f"{_REMOVED}{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _sweep_up(self) -> None:
        """What a kill has left half-written or half-removed."""
        if self.folder.is_dir():
            for entry in list(os.scandir(self.folder)):
                if entry.name.startswith((_STAGED, _REMOVED)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _checksum(state: Mapping[str, Any]) -> str:
    body = {key: value for key, value in state.items() if key != "checksum"}
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _fsync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _safetensors_errors() -> Iterator[None]:
    """safetensors reports a refusing disk as an error of its own."""
    try:
        yield
    except SafetensorError as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            if f"os error {number}" in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise OSError(errno.EIO, str(error)) from error
