"""A data file, or a folder of them. Nothing outside the folder is read, nothing in it is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.formats.compressed import inner_name
from finetune.data.formats.jsonfile import WHOLE
from finetune.data.formats.readers import ALLOWED, is_data_file, read_file
from finetune.data.formats.table import Table
from finetune.data.sources import glue
from finetune.data.sources.source import Source
from finetune.data.splits.split_names import EXACT, choose_splits, meaning_of, missing_parts, without_shard
from finetune.display import plain
from finetune.errors import DataError, did_you_mean, shown

INFO_FILES = {"info.json", "dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
DEPTH = 3  # folders below the one that was named
MAX_INFO_BYTES = 1 << 22


def open_local(path: Path, name: str, config_name: str | None = None) -> Source:
    """The tables of a file or folder, by split name. `config_name` names a subfolder with its own splits.

    Raises DataError that says what is there instead of what was looked for.
    """
    if path.is_dir():
        return _open_folder(path, name, config_name)
    if config_name is not None:
        raise DataError(f"dataset_config_name = {shown(config_name)}: a file has no configurations; leave it out")
    if not path.is_file():
        raise DataError(f"dataset_name = {shown(name)}: neither a regular file nor a folder")
    source = Source(name, {})
    source.tables = _by_meaning(read_file(path, plain(path.name)), source.notes)
    return source


def stamp(path: Path) -> list[Any]:
    """Changes when a file of the data set does."""
    files = [path] if path.is_file() else [file for file in _walk(path) if file.is_file()]
    return [[str(file), file.stat().st_mtime_ns, file.stat().st_size] for file in sorted(files)]


def configurations(folder: Path) -> list[str]:
    """Subfolders that each hold the splits of one configuration, as GLUE's download does."""
    if not folder.is_dir() or any(folder.glob("*.parquet")) or any(is_data_file(f) for f in folder.iterdir()
                                                                     if f.name not in INFO_FILES):
        return []
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.is_symlink()]
    if any(meaning_of(child.name) or child.name == "data" for child in inside):
        return []
    return [child.name for child in inside if any(is_data_file(f) for f in _walk(child))]


def _open_folder(folder: Path, name: str, config_name: str | None) -> Source:
    available = configurations(folder)
    if config_name is not None:
        if config_name not in available:
            there = f"the configurations are {', '.join(available)}" if available else "there are none; leave it out"
            raise DataError(f"dataset_config_name = {shown(config_name)}: {there}"
                            + did_you_mean(config_name, available))
        folder = folder / config_name
    elif available:
        raise DataError(f"dataset_name = {shown(name)}: it holds several data sets; choose one with "
                        f"dataset_config_name: {', '.join(available)}")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from finetune.data.sources.hub import open_saved

        return open_saved(folder, name)
    source = Source(name, {}, config_name)
    source.tables = _read_splits(folder, source.notes)
    source.glue_metric = glue.metric_of(folder)
    _apply_info(source, folder / "info.json")
    return source


def _read_splits(folder: Path, notes: list[str]) -> dict[str, Table]:
    files = _inside(folder, notes)
    if not files:
        raise DataError(f"{folder}: no data file in it; allowed: {ALLOWED}")
    tables: dict[str, Table] = {}
    for split, members in _by_split(folder, files, notes).items():
        missing = missing_parts([_stem(file) for file in members])
        notes += [f"{missing} of {split} are not there"] if missing else []
        for file in members:
            parts = _by_meaning(read_file(file, plain(file.relative_to(folder))), notes)
            # A file that is divided itself says its splits; one that is not is of the split that its name says.
            for key, table in ({split: parts["train"]} if len(parts) == 1 else parts).items():
                tables[key] = _joined(tables[key], table) if key in tables else table
    return tables


def _by_meaning(parts: dict[str, Table], notes: list[str]) -> dict[str, Table]:
    """The tables of one file as train, validation and test."""
    if list(parts) == [WHOLE]:
        return {"train": parts[WHOLE]}
    chosen, unused = choose_splits(list(parts))
    notes += unused
    return {split: parts[name] for split, name in chosen.items()}


def _walk(folder: Path) -> Iterator[Path]:
    """Data files of a folder, without hidden ones and without following links to folders."""
    for place, folders, files in os.walk(folder, followlinks=False):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and depth < DEPTH)
        for name in sorted(files):
            if not name.startswith(".") and name not in INFO_FILES and is_data_file(Path(place) / name):
                yield Path(place) / name


def _inside(folder: Path, notes: list[str]) -> list[Path]:
    """The folder's data files, less links that lead out of it (a hub snapshot's links lead to its blobs)."""
    home = folder.resolve()
    allowed = home.parent.parent if home.parent.name == "snapshots" else home
    files = []
    for file in _walk(folder):
        if file.is_file() and file.resolve().is_relative_to(allowed):
            files.append(file)
        else:
            where = plain(file.relative_to(folder))
            notes.append(f"{where} is not used: it leads out of the folder or is no regular file")
    return files


@dataclass(frozen=True)
class _Match:
    """What a file's place says: its split, how surely (0 is surest), and the whole that it is a part of."""

    split: str
    rank: int
    whole: str


def _match(file: Path, folder: Path) -> _Match | None:
    """An exact name beats an exact folder, which beats a word in a name, which beats a word in a folder's name."""
    inside = file.relative_to(folder)
    for place, name in enumerate([_stem(file), *reversed(inside.parts[:-1])]):
        meaning = meaning_of(name)
        if meaning:
            rank = (0 if meaning[1] == EXACT else 2) + min(place, 1)
            whole = inside.parent / without_shard(_stem(file)) if place == 0 else inside.parent / "*"
            return _Match(meaning[0], rank, plain(whole) + file.suffix)
    return None


def _by_split(folder: Path, files: list[Path], notes: list[str]) -> dict[str, list[Path]]:
    """Files by split. The best matches are used, the rest is noted; two wholes for one split are an error."""
    if len({(file.parent, without_shard(_stem(file)), file.suffix) for file in files}) == 1:
        return {"train": files}
    matches = {file: match for file in files if (match := _match(file, folder))}
    if not matches:
        names = ", ".join(plain(file.relative_to(folder)) for file in files[:10])
        raise DataError(f"{folder}: no file's name says its split (train, validation or dev, test): {names}; "
                        "rename them, or give one file as dataset_name")
    chosen: dict[str, list[Path]] = {}
    for split in dict.fromkeys(match.split for match in matches.values()):
        of_split = {file: match for file, match in matches.items() if match.split == split}
        matched = {file: match for file, match in of_split.items() if "mismatched" not in _stem(file).lower()}
        of_split = matched or of_split  # MNLI's second validation and test split, from other genres than train
        best = min(match.rank for match in of_split.values())
        chosen[split] = [file for file, match in of_split.items() if match.rank == best]
        wholes = sorted({matches[file].whole for file in chosen[split]})
        if len(wholes) > 1:
            raise DataError(f"{folder}: several files could be the {split} split: {', '.join(wholes[:10])}; keep one")
    used = {file for members in chosen.values() for file in members}
    notes += [f"{plain(file.relative_to(folder))} is not used" for file in files if file not in used]
    return chosen


def _joined(first: Table, second: Table) -> Table:
    """Shards of one split as one table."""
    if set(first.columns) != set(second.columns):
        raise DataError(f"{second.source}: its columns are not those of {first.source}")
    order = [second.columns.index(name) for name in first.columns]
    offset = len(first.rows)
    return Table(
        source=first.source, columns=first.columns, delimiter=first.delimiter, label_names=first.label_names,
        rows=[*first.rows, *([row[index] for index in order] for row in second.rows)],
        lines=[*first.lines, *second.lines], rejected=[*first.rejected, *second.rejected],
        spilled={**first.spilled, **{row + offset: values for row, values in second.spilled.items()}},
        notes=[*first.notes, *second.notes], parts=[*first.parts, (offset, second.source)],
    )


def _apply_info(source: Source, path: Path) -> None:
    """`info.json` may name labels, text columns and task: {"label_names": […], "text_keys": […], "task": …}."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_INFO_BYTES:
        return
    try:
        info = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        source.notes.append("info.json is not used: it is not JSON")
        return
    if not isinstance(info, dict):
        return
    if _is_names(info.get("label_names")):
        source.label_names = info["label_names"]
    if _is_names(info.get("text_keys")) and len(info["text_keys"]) <= 2:
        source.known = {"text": tuple(info["text_keys"]), "reason": "named in info.json"}
    for task in ("multilabel", "regression", "classification"):
        if str(info.get("task", "")).endswith(task):
            source.task = task


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _stem(file: Path) -> str:
    """The name without its endings, a compression's among them."""
    return inner_name(file).stem
