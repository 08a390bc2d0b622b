"""Activations on disk. Imports no torch.

FINETUNE_CACHE/prefix/<key>/data.npy        one array, memory-mapped
FINETUNE_CACHE/prefix/<key>/manifest.json   what it is, its size and its checksum; renamed in last, touched when used

An entry is what its manifest says, or it is not there. The checksum is for accidents (a torn write, a flipped bit, a
file from elsewhere), not for adversaries, so it is xxh3: reading 1 GB for sha256 takes a second, for xxh3 a tenth.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from finetune.errors import EnvironmentProblem
from finetune.files import FileLock, atomic_write, cache_root, disk_errors

LAYOUT = 1
MANIFEST, DATA = "manifest.json", "data.npy"
ABANDONED_SECONDS = 86400
_CHUNK = 1 << 24
_verified: dict[Path, tuple[int, int, int]] = {}  # data file -> (inode, size, mtime_ns) as this process found it whole


@dataclass(frozen=True)
class Entry:
    """One array and what it cost. `seconds` computed it; `facts` are the filler's."""

    key: str
    folder: Path
    array: np.ndarray
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Listing:
    """An entry as `finetune cache` shows it; times in seconds since 1970."""

    key: str
    folder: Path
    size: int  # bytes
    used: float
    facts: Mapping[str, Any]


class PrefixStore:
    """All entries below one folder."""

    def __init__(self, root: Path | None = None):
        self.root = root or cache_root() / "prefix"

    def folder(self, key: str) -> Path:
        return self.root / key

    def read(self, key: str) -> Entry | None:
        """The entry, or None when it is missing or is not what its manifest describes."""
        folder = self.folder(key)
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            if manifest["layout"] != LAYOUT or manifest["key"] != key:
                return None
            if not _is_whole(folder / DATA, manifest):
                return None
            # Copy on write: torch takes no read-only arrays, and nothing that writes here reaches the file.
            array = np.load(folder / DATA, mmap_mode="c", allow_pickle=False)
            entry = Entry(key, folder, array, float(manifest["seconds"]), manifest["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / MANIFEST)
        return entry

    def lock(self, name: str) -> FileLock:
        """Whoever holds it builds; the others wait and find the entries."""
        return FileLock(self.root / "locks" / f"{name}.lock")

    @contextlib.contextmanager
    def writer(self, key: str, shape: tuple[int, ...], dtype: np.dtype, facts: Mapping[str, Any]) -> Iterator[Writer]:
        """An array to fill; nothing of it stays unless `publish` was called. Raises EnvironmentProblem."""
        folder = self.folder(key)
        temporary = folder / f".{DATA}.{os.getpid()}.tmp"
        try:
            with disk_errors("cached activations", folder):
                folder.mkdir(parents=True, exist_ok=True)
                for stale in folder.glob(f".{DATA}.*.tmp"):  # of a builder that was killed: the lock is ours
                    stale.unlink(missing_ok=True)
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
                # Take the blocks now: a full disk is an error here, but a bus error at a page that is written later.
                if hasattr(os, "posix_fallocate"):
                    with open(temporary, "r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, max(1, os.path.getsize(temporary)))
            yield Writer(key, folder, temporary, array, facts)
        finally:
            temporary.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # only where it is empty

    def listing(self) -> list[Listing]:
        """What is there, least recently used first."""
        found = []
        for path in self.root.glob(f"*/{MANIFEST}"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                manifest = json.loads(path.read_bytes())
                size = sum(file.stat().st_size for file in path.parent.iterdir())
                found.append(Listing(path.parent.name, path.parent, size, path.stat().st_mtime, manifest["facts"]))
        return sorted(found, key=lambda listing: listing.used)

    def evict(self, budget: int, keep: Iterable[str] = ()) -> list[Listing]:
        """Remove what was used least recently until the rest fits `budget` bytes; `keep` stays in any case.

        A process that has an evicted entry mapped goes on using it: its bytes live as long as the mapping.
        """
        self._sweep_out()
        listings, keep = self.listing(), set(keep)
        total = sum(listing.size for listing in listings)
        gone = []
        for listing in listings:
            if total <= budget:
                break
            if listing.key not in keep:
                self.remove(listing.key)
                total -= listing.size
                gone.append(listing)
        return gone

    def _sweep_out(self) -> None:
        """What killed builders left behind and nobody has come back to for a day."""
        for folder in self.root.glob("*/"):
            with contextlib.suppress(OSError):
                old = time.time() - folder.stat().st_mtime > ABANDONED_SECONDS
                if old and folder.name != "locks" and not (folder / MANIFEST).exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def remove(self, key: str) -> None:
        """The manifest goes first: what is half removed is not there."""
        (self.folder(key) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder(key), ignore_errors=True)

    def clear(self) -> int:
        """Remove everything; returns the bytes that were freed."""
        size = sum(file.stat().st_size for file in self.root.rglob("*") if file.is_file())
        for folder in self.root.glob("*/"):
            if folder.name != "locks":
                self.remove(folder.name)
        return size


@dataclass
class Writer:
    """An entry while it is filled."""

    key: str
    folder: Path
    temporary: Path
    array: np.ndarray
    facts: Mapping[str, Any]

    def publish(self, seconds: float) -> None:
        """Data into place, then the manifest. Raises EnvironmentProblem when the disk refuses."""
        # Not fsynced: what a power cut tears fails its checksum and is computed again.
        with disk_errors("cached activations", self.folder):
            manifest = {"layout": LAYOUT, "key": self.key, "checksum": _checksum(self.temporary),
                        "size": self.temporary.stat().st_size, "seconds": seconds, "created": time.time(),
                        "facts": dict(self.facts)}
            os.replace(self.temporary, self.folder / DATA)
            _verified[self.folder / DATA] = _identity(self.folder / DATA)
        atomic_write(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n", "a manifest")


def _is_whole(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the bytes are those that were published; they are read once per process."""
    identity = _identity(path)
    if identity[1] != manifest["size"]:
        return False
    if _verified.get(path) != identity:
        if _checksum(path) != manifest["checksum"]:
            return False
        _verified[path] = identity
    return True


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def free_bytes(root: Path) -> int:
    """Free space where `root` is or will be."""
    while not root.exists() and root != root.parent:
        root = root.parent
    try:
        return shutil.disk_usage(root).free
    except OSError as error:
        raise EnvironmentProblem(f"cannot look at the disk of {root}: {error.strerror}") from error
