"""Files that are compressed one by one (train.csv.gz). Archives of several files stay refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import DataError

MOST_BYTES = 1 << 31  # unpacked: a small file may unpack to more than the machine has
_CHUNK = 1 << 20
_TAR, _TAR_AT = b"ustar", 257  # the magic of every tar since POSIX.1-1988, and where it stands


def _zstd(file: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file), ".bz2": lambda file: bz2.BZ2File(file),
    ".xz": lzma.open, ".zst": _zstd}


def inner_name(path: Path) -> Path:
    """train.csv.gz -> train.csv; the path itself where it is not compressed."""
    return path.with_suffix("") if path.suffix.lower() in _OPENERS else path


def unpacked(path: Path, source: str) -> bytes:
    """The bytes of a file, unpacked where its suffix says so.

    Raises DataError for a file that cannot be read or unpacked, and for one that unpacks to more than 2 GiB.
    """
    opener = _OPENERS.get(path.suffix.lower())
    try:
        if opener is None:
            return path.read_bytes()
        parts, size = [], 0
        with open(path, "rb") as file, opener(file) as content:
            while part := content.read(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    raise DataError(f"{source}: it unpacks to more than {MOST_BYTES >> 30} GiB; unpack it, and cut it")
        payload = b"".join(parts)
        if payload[_TAR_AT:_TAR_AT + len(_TAR)] == _TAR:
            raise DataError(f"{source}: there is an archive in it (tar), not one file; unpack it, and give its folder")
        return payload
    except DataError:
        raise
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it breaks off"
        what = "cannot be read" if opener is None else f"is no readable {path.suffix.lower()} file"
        raise DataError(f"{source}: {what}: {reason}") from error
