"""TrialRecord and its store. Imports no torch: analysis, the command line and other tools read results with it.

OUTPUT_DIR/trials/<trial_id>/record.json       one per trial, published atomically, with a checksum
OUTPUT_DIR/trials/<trial_id>/predictions.npz   per-example logits, labels and ids of validation and test
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from finetune.files import atomic_write, canonical_json, sha256_file

SCHEMA = 1
RECORD_FILE = "record.json"
PREDICTIONS_FILE = "predictions.npz"

State = Literal["complete", "failed", "pruned"]


def frozen_rank(freeze_depth: int) -> int:
    """Where a depth stands in the order of what is frozen: 0 < -1 < 1 < … < L (0, 1, 2, …)."""
    return {0: 0, -1: 1}.get(freeze_depth, freeze_depth + 1)


CHECKPOINTS = "checkpoints"  # the folder beside the trials'
RETRIED = "-float32"  # the folder of a second attempt's checkpoints ends so


class TrialRecord(BaseModel):
    """One trial's result. Fractions are 0..1, times are seconds, memory is bytes; epochs count from 1."""

    model_config = ConfigDict(extra="allow")

    schema_version: int = SCHEMA
    trial_id: str
    setting_id: str
    sweep: str | None = None
    protocol: dict[str, Any] = {}  # {"phase": "tune" | "confirm", ...}: what the sweep meant this trial for
    state: State
    error: dict[str, str] | None = None  # {"kind", "message"}
    config: dict[str, Any]  # as asked for, with defaults
    effective: dict[str, Any] = {}  # canonical: strategy and freeze_depth resolved, inert knobs None
    task: str = "classification"  # classification | regression | multilabel
    metric: str = "accuracy"  # metric_for_best_model as resolved
    num_layers: int | None = None
    parameters: dict[str, int] = {}  # total, trainable (most that trained in any phase)
    deepest_trainable_layer: int | None = None  # -1 embeddings, L top or head only
    freeze_plan: list[dict[str, Any]] = []  # per phase
    baseline: dict[str, Any] = {}
    prefix: dict[str, Any] = {"used": False, "saved_seconds": 0.0}
    metrics: dict[str, dict[str, Any]] = {}  # validation, test
    details: dict[str, dict[str, Any]] = {}  # validation, test: {"per_class": [{label, rows, …}], "confusion"}
    last_epoch_metrics: dict[str, dict[str, Any]] = {}
    best_epoch: int | None = None
    history: list[dict[str, Any]] = []  # {"epoch", "train": {...}, "validation": {...}, ...}
    cost: dict[str, float | None] = {}
    data: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    model: dict[str, Any] = {}  # what was kept of it: kind (delta | full | none), folder, bytes or reason
    files: dict[str, str] = {}
    weights: str | None = None  # sha256 over the best epoch's weights, of everything that has trained
    micro_batch: int | None = None  # rows per pass where memory ran out and auto_micro_batch halved it
    resumes: list[dict[str, Any]] = []  # per resume: {"step", "changed": {name: [before, now]}} of the environment
    retried: dict[str, Any] | None = None  # the first attempt's mixed_precision, error and cost, where this is a second
    wandb_run: dict[str, Any] | None = None
    checksum: str | None = None

    def __repr__(self) -> str:
        """One line, for a shell or a notebook; `as_json` has everything."""
        test = ", ".join(f"test {name} {value:.4f}" for name, value in self.metrics.get("test", {}).items()
                         if name == self.metric)
        strategy = self.effective.get("strategy") or self.config.get("strategy")
        facts = [self.state, str(strategy), f"seed {self.config.get('seed')}", f"best epoch {self.best_epoch}", test]
        return f"<TrialRecord {self.trial_id[:12]}: {', '.join(fact for fact in facts if fact)}>"

    __str__ = __repr__

    def as_json(self) -> dict[str, Any]:
        """The record as it stands in record.json, where the version's key is `schema`."""
        content = self.model_dump(mode="json")
        return {"schema": content.pop("schema_version"), **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrialRecord:
        content = dict(content)
        return cls(schema_version=content.pop("schema"), **content)


def checksum_of(content: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a record without its checksum."""
    body = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


class CorruptRecord(Exception):
    """A record or its predictions cannot be trusted; the message says why."""


class RecordStore:
    """The trials of one output directory."""

    def __init__(self, output_dir: Path | str):
        self.root = Path(output_dir)
        self.trials = self.root / "trials"

    def folder(self, trial_id: str) -> Path:
        return self.trials / trial_id

    def publish(self, record: TrialRecord, predictions: Mapping[str, np.ndarray] | None = None) -> TrialRecord:
        """Write predictions, then the record that names their digest. Returns the sealed record.

        Raises EnvironmentProblem when the disk refuses; nothing half-written stays behind.
        """
        folder = self.folder(record.trial_id)
        files = dict(record.files)
        if predictions:
            payload = predictions_bytes(predictions)
            atomic_write(folder / PREDICTIONS_FILE, payload, "predictions")
            files[PREDICTIONS_FILE] = hashlib.sha256(payload).hexdigest()
        content = record.model_copy(update={"files": files, "checksum": None}).as_json()
        content["checksum"] = checksum_of(content)
        atomic_write(folder / RECORD_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n", "a record")
        if record.state != "failed":  # a trial that was killed or ran out of time goes on when it is tried again
            self.forget_checkpoints(record.trial_id)
        return TrialRecord.from_json(content)

    def load(self, trial_id: str) -> TrialRecord | None:
        """The record, or None when there is none. Raises CorruptRecord when its bytes are not what was written."""
        path = self.folder(trial_id) / RECORD_FILE
        try:
            content = json.loads(path.read_bytes())
            if content.get("schema") != SCHEMA:
                raise CorruptRecord(f"{path}: schema {content.get('schema')!r}, this version reads {SCHEMA}")
            if content.get("checksum") != checksum_of(content):
                raise CorruptRecord(f"{path}: checksum does not match")
            return TrialRecord.from_json(content)
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CorruptRecord(f"{path}: not a record ({error.__class__.__name__})") from error

    def load_complete(self, trial_id: str) -> TrialRecord | None:
        """The record if it and its predictions are intact; a damaged one is set aside and None returned."""
        try:
            record = self.load(trial_id)
            if record is not None:
                self.check_files(record)
            return record
        except CorruptRecord:
            self.quarantine(trial_id)
            return None

    def check_files(self, record: TrialRecord) -> None:
        """Raises CorruptRecord when a file named by the record is missing or changed."""
        for name, digest in record.files.items():
            path = self.folder(record.trial_id) / name
            if not path.is_file() or sha256_file(path) != digest:
                raise CorruptRecord(f"{path}: missing or not what the record describes")

    def forget_checkpoints(self, trial_id: str) -> None:
        """The trial has its result, or shall begin anew."""
        folder = self.root / CHECKPOINTS
        for name in (trial_id, trial_id + RETRIED):
            shutil.rmtree(folder / name, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # where it was the last one

    def quarantine(self, trial_id: str) -> Path:
        """Move a damaged trial aside, so that it is neither used nor lost."""
        source = self.folder(trial_id)
        target = self.root / "quarantine" / f"{trial_id}.{os.getpid()}.{len(list(self.root.glob('quarantine/*')))}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        return target

    def trial_ids(self) -> list[str]:
        if not self.trials.is_dir():
            return []
        return sorted(path.parent.name for path in self.trials.glob(f"*/{RECORD_FILE}"))

    def __iter__(self) -> Iterator[TrialRecord]:
        """Every intact record, by trial_id. Raises CorruptRecord at a damaged one."""
        for trial_id in self.trial_ids():
            record = self.load(trial_id)
            if record is not None:
                yield record

    def predictions(self, record: TrialRecord) -> dict[str, np.ndarray]:
        """{split}_logits (rows, outputs), {split}_labels (rows,), {split}_ids (rows,) for validation and test.

        Raises CorruptRecord when the file is missing or is not the one that the record describes.
        """
        path = self.folder(record.trial_id) / PREDICTIONS_FILE
        try:
            payload = path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptRecord(f"{path}: missing") from error
        if hashlib.sha256(payload).hexdigest() != record.files.get(PREDICTIONS_FILE):
            raise CorruptRecord(f"{path}: checksum does not match")
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def predictions_bytes(predictions: Mapping[str, np.ndarray]) -> bytes:
    """The same arrays give the same bytes: np.savez_compressed stamps the time, this does not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(predictions):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(predictions[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, content.getvalue(), compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
