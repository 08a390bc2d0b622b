"""Files that are whole or absent: atomic writes, digests, and a lock that dies with its holder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune.errors import EnvironmentProblem


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Digests are taken of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: object) -> str:
    """sha256 (hex) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root() -> Path:
    """Where what can be computed again is kept: $FINETUNE_CACHE, by default ~/.cache/finetune."""
    return Path(os.environ.get("FINETUNE_CACHE") or "~/.cache/finetune").expanduser()


@contextmanager
def disk_errors(what: str, path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence (exit 5)."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "permission denied",
            errno.EPERM: "permission denied",
        }
        reason = reasons.get(error.errno, error.strerror or str(error))
        raise EnvironmentProblem(f"cannot write {what} to {path}: {reason}") from error


def atomic_write(path: Path, data: bytes | str, what: str = "a file") -> None:
    """Write `path` so that a reader sees the old content or the new one, never a part.

    Raises EnvironmentProblem when the disk refuses; then `path` is as it was and no temporary file stays.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    with disk_errors(what, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        fsync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Find out before the work that results can be written. Raises EnvironmentProblem."""
    with disk_errors("results", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileLock:
    """An exclusive lock on a path that the kernel drops when its holder dies.

    `acquire(wait=False)` returns False when somebody else holds it; `holder()` reads who that is. By hand, since
    `filelock` says neither who holds a lock nor keeps what its holder wrote.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._handle: int | None = None

    def acquire(self, *, wait: bool = True, note: str = "") -> bool:
        with disk_errors("a lock", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # O_CLOEXEC (Python's default) keeps the lock out of children, so that it dies with its holder.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        with suppress(OSError):  # a full disk or quota: the lock holds all the same, and says not whose it is
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"pid {os.getpid()} {note}".strip().encode(), 0)
        return True

    def holder(self) -> str:
        with suppress(OSError):
            return self.path.read_text().strip()
        return ""

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
