"""What a trial keeps of its model, as `save_model` says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from finetune.errors import EnvironmentProblem
from finetune.models.head import Classifier
from finetune.models.poolers import pooling_of
from finetune.results import RecordStore, TrialRecord
from finetune.saving.manifest import MODEL_FOLDER, Base, HeadShape, KeptModel
from finetune.saving.write import room_for_delta, save_delta, save_full
from finetune.training.resume import digest_of_tensors
from finetune.trial.resolve import ResolvedTrial
from finetune.trial.state import TrialRun


def with_weights(run: TrialRun, record: TrialRecord) -> TrialRecord:
    """The record of a trial that is not failed, with the digest of its best weights, and its model where it is complete
    and has a folder: hashing the one and writing the other wait for nothing but the disk."""
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(digest_of_tensors, run.trainer.best)
        if record.state == "complete" and run.output_dir and run.accelerator.is_main_process:
            target = RecordStore(run.output_dir).folder(record.trial_id) / MODEL_FOLDER
            kept = save_model(run.resolved, run.trainer.classifier, record, target)
            record = record.model_copy(update={"model": kept})
        return record.model_copy(update={"weights": digest.result()})


def save_model(resolved: ResolvedTrial, classifier: Classifier, record: TrialRecord, target: Path) -> dict[str, Any]:
    """Write the classifier as it stands to `target` -> what the record says: kind, folder, bytes, or why not.

    A delta is a by-product: a disk that is full does not fail the trial. Raises EnvironmentProblem when a whole model,
    which somebody asked for, cannot be written.
    """
    asked = resolved.config.save_model
    if asked is False:
        return {"kind": "none", "reason": "save_model is false"}
    manifest = describe(resolved, classifier, record)
    if asked is True:
        return save_full(classifier, resolved.backbone, manifest, target)
    if not room_for_delta(classifier, target):
        return {"kind": "none", "reason": "the disk is almost full"}
    try:
        return save_delta(classifier, resolved.backbone, manifest, target)
    except EnvironmentProblem as error:
        return {"kind": "none", "reason": str(error)}


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the places of the machine that trained: the folder may be given to others."""
    return {name: value for name, value in config.items() if name != "output_dir"}


def describe(resolved: ResolvedTrial, classifier: Classifier, record: TrialRecord) -> KeptModel:
    backbone, data, head = resolved.backbone, resolved.data, classifier.head
    name = str(Path(backbone.name).expanduser().resolve()) if backbone.source == "path" else backbone.name
    return KeptModel(
        kind="delta", trial_id=record.trial_id,
        base=Base(name=name, source=backbone.source, revision=backbone.revision, digest=backbone.digest),
        config=_portable(record.config) | {"model_name_or_path": name}, strategy=resolved.strategy.canonical,
        pooling=pooling_of(resolved.config.pooling, backbone.stack, data.task),
        head=HeadShape(size=resolved.config.head_size, outputs=data.num_outputs,
                       units=tuple(float(value) for value in head.units)),
        task=data.task, label_names=data.label_names, scheme=data.scheme, text_columns=list(data.text_columns),
        max_length=resolved.max_length, metric=record.metric, metrics=record.metrics, best_epoch=record.best_epoch,
        data={"name": data.name, "fingerprint": data.fingerprint,
              "rows": {split: len(rows) for split, rows in data.splits.items()}},
        versions=record.environment["versions"], parameters=record.parameters,
    )
