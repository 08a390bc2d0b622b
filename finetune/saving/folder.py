"""A folder that is whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.files import disk_errors, fsync_folder


@contextmanager
def whole_folder(target: Path, what: str) -> Iterator[Path]:
    """An empty folder to fill, renamed to `target` at the end of the block; what stood there is replaced.

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
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            fsync_folder(staging)
            _swap(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    old = staging.with_suffix(".old")
    if target.exists():
        os.replace(target, old)
    os.replace(staging, target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
