"""A folder that is whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from finetune.files import disk_errors, fsync_folder

_pool: list[ThreadPoolExecutor] = []


@contextmanager
def whole_folder(target: Path, what: str, durable: Literal["now", "soon"] = "now") -> Iterator[Path]:
    """An empty folder to fill, renamed to `target` at the end of the block; what stood there is replaced.

    `durable`: whether it would survive a power cut from the end of the block on, or once the disk has kept up, for
    which nobody waits (`keep_up` does): until then a file may be torn, which its digest shows to whoever reads it.
    Raises EnvironmentProblem when the disk refuses; then `target` is as it was and nothing half-written stays.
    """
    with disk_errors(what, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            os.chmod(staging, 0o755)
            yield staging
            for path in staging.iterdir():
                os.chmod(path, 0o644)
            if durable == "now":
                _to_disk(staging)
            _swap(staging, target)
            if durable == "soon":
                _soon(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    old = staging.with_suffix(".old")
    if target.exists():
        os.replace(target, old)
    os.replace(staging, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    fsync_folder(folder)


def _soon(folder: Path) -> None:
    if not _pool:
        _pool.append(ThreadPoolExecutor(1, thread_name_prefix="to-disk"))
    _pool[0].submit(_kept_up, folder)


def _kept_up(folder: Path) -> None:
    with suppress(OSError):  # replaced or removed meanwhile
        _to_disk(folder)


def keep_up() -> None:
    """Wait until everything that was to be durable soon is."""
    while _pool:
        _pool.pop().shutdown(wait=True)
