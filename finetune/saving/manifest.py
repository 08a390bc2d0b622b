"""model.json: what a kept model is, and the digests of its files. Imports no torch.

A folder is complete when model.json is in it: the folder is written beside its place and renamed in last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import ConfigError, EnvironmentProblem
from finetune.files import sha256_file

MANIFEST, DELTA, HEAD, CARD = "model.json", "delta.safetensors", "head.safetensors", "README.md"
MODEL_FOLDER = "model"  # inside a trial's folder
SCHEMA = 1
_REMEDY = "copy the folder anew, or train the trial again with --force"


class Base(BaseModel):
    """The pretrained backbone that a model was trained from."""

    name: str
    source: str
    revision: str | None
    digest: str  # sha256 over its weights, config and tokenizer


class HeadShape(BaseModel):
    size: int
    outputs: int
    units: tuple[float, float]  # mean and deviation of a regression's targets


class KeptModel(BaseModel):
    """The content of model.json."""

    model_config = ConfigDict(protected_namespaces=())

    schema_version: int = SCHEMA
    kind: Literal["delta", "full"]
    trial_id: str
    base: Base
    config: dict[str, Any]  # the trial's knobs
    strategy: str
    pooling: str
    head: HeadShape
    task: str
    label_names: list[str] | None
    scheme: str | None = None  # of tags, by seqeval's name
    text_columns: list[str]
    max_length: int
    metric: str
    metrics: dict[str, dict[str, Any]]
    best_epoch: int | None
    data: dict[str, Any]
    versions: dict[str, Any]
    parameters: dict[str, int]
    files: dict[str, str] = {}  # name -> sha256


def find_kept(path: Path) -> tuple[Path, KeptModel]:
    """The folder of a kept model and its manifest; `path` is that folder or the trial's. The files are checked.

    Raises ConfigError when there is none, EnvironmentProblem when a file is missing or not what was written.
    """
    folder = next((place for place in (path, path / MODEL_FOLDER) if (place / MANIFEST).is_file()), None)
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    if folder is None:
        kept = "the trial kept none; train it again with --save_model=delta --force" if (
            path / "record.json").is_file() else "give the folder of a trial, or one that `finetune export` wrote"
        raise ConfigError(f"{path} holds no trained model: {kept}")
    try:
        manifest = KeptModel.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise EnvironmentProblem(f"{folder / MANIFEST} is damaged ({where}{first['msg']}); {_REMEDY}") from error
    if manifest.schema_version != SCHEMA:
        raise EnvironmentProblem(f"{folder / MANIFEST} has schema {manifest.schema_version}, this version reads "
                                 f"{SCHEMA}")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise EnvironmentProblem(f"{folder / name} is missing; {_REMEDY}")
        if sha256_file(folder / name) != digest:
            raise EnvironmentProblem(f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}; {_REMEDY}")
    return folder, manifest


def manifest_text(manifest: KeptModel) -> str:
    return json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
