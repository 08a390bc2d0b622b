"""Which data sets are on this machine: bundled ones, and hub data sets in the caches of `datasets` and the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from finetune.data.formats.readers import is_data_file

BUNDLED = ("rotten_tomatoes_mini", "wnut17_mini")
# Folders that `datasets` keeps for its file loaders, not for a hub data set.
_LOADERS = {"csv", "json", "parquet", "text", "arrow", "generator", "sql", "xml", "downloads"}


def bundled_folder(name: str) -> Path:
    return Path(__file__).parents[1] / name


def listing() -> list[dict[str, Any]]:
    """Every data set on this machine: {"name", "where": "bundled" | "cache", "configurations"}."""
    bundled = [{"name": name, "where": "bundled", "configurations": []} for name in BUNDLED]
    return bundled + [{"name": name, "where": "cache", "configurations": configurations}
                      for name, configurations in cached_datasets().items()]


def cached_datasets(*, prepared_only: bool = False) -> dict[str, list[str]]:
    """Hub ids that are ready for use offline, with the configurations that are known to be.

    `prepared_only` leaves out what was downloaded as a repository and not yet loaded.
    """
    found: dict[str, set[str]] = {}
    if not prepared_only:
        for folder in _folder("HF_HUB_CACHE", "hub").glob("datasets--*"):
            hub_id = folder.name.removeprefix("datasets--").replace("--", "/")
            if snapshot_folder(hub_id):
                found[hub_id] = set()
    for info in _folder("HF_DATASETS_CACHE", "datasets").glob("*/*/*/*/dataset_info.json"):
        folder = info.parts[-5]
        if folder not in _LOADERS:
            found.setdefault(folder.replace("___", "/"), set()).add(_configuration(info))
    return {name: sorted(configs) for name, configs in sorted(found.items())}


def _configuration(info: Path) -> str:
    """The configuration's name; the folder's name has the reading options behind it."""
    try:
        return str(json.loads(info.read_bytes())["config_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return info.parts[-4]


def snapshot_folder(hub_id: str) -> Path | None:
    """The newest downloaded copy of a data set's repository, if there is one."""
    place = _folder("HF_HUB_CACHE", "hub") / f"datasets--{hub_id.replace('/', '--')}" / "snapshots"
    folders = [folder for folder in place.glob("*") if any(is_data_file(file) for file in folder.rglob("*"))]
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def _folder(variable: str, name: str) -> Path:
    """Where the Hugging Face libraries keep things; as their own constants say it, without importing them."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get(variable) or os.path.join(home, name)).expanduser()
