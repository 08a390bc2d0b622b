"""A folder with one file per split, or a single file."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.data.readers import read_table
from finetune.data.source import Source
from finetune.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def open_local(path: Path, name: str) -> Source:
    if path.is_file():
        return Source(name, {"train": read_table(path, path.name)})
    tables = {file.stem: read_table(file, file.name) for file in sorted(path.iterdir())
              if file.suffix in SUFFIXES and file.stem in ("train", "validation", "test")}
    if not tables:
        raise DataError(f"{path}: no data file found; allowed: {', '.join(SUFFIXES)}")
    source = Source(name, tables)
    if (path / "info.json").is_file():
        _apply_info(source, json.loads((path / "info.json").read_text()))
    return source


def _apply_info(source: Source, info: dict) -> None:
    source.label_names = info.get("label_names")
    if info.get("text_keys"):
        source.known = {"text": tuple(info["text_keys"]), "reason": "named in info.json"}
