"""Encoded splits on disk, keyed by content: built once, by whoever comes first; a damaged entry is built again."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import EnvironmentProblem
from finetune.files import FileLock, atomic_write, cache_root, digest_of

LAYOUT = 1  # of an entry: the sha256 of the rest in hex, then an .npz
_DIGEST_BYTES = 64

Arrays = dict[str, np.ndarray]


def cache_key(texts: list[tuple[str, ...]], tokenizer: Any, max_length: int) -> str | None:
    """sha256 (hex) over all that decides the ids; None for a tokenizer that does not show what it does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # A call leaves its truncation and padding behind, and the next call sets its own.
    backend.no_truncation()
    backend.no_padding()
    rules = hashlib.sha256(backend.to_str().encode()).hexdigest()
    settings = [type(tokenizer).__name__, tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    versions = [LAYOUT, version("transformers"), version("tokenizers")]
    content = hashlib.sha256("\x1e".join("\x1f".join(row) for row in texts).encode()).hexdigest()
    return digest_of([rules, settings, versions, len(texts), content])


def cached(key: str, build: Callable[[], Arrays]) -> Arrays:
    """The entry `key`, built if it is not there. Where nothing can be written it is built every time."""
    path = cache_root() / "encoded" / f"{key}.npz"
    arrays = _read(path)
    if arrays is not None:
        return arrays
    try:
        with FileLock(path.with_suffix(".lock")):
            return _read(path) or _write(path, build())
    except EnvironmentProblem:
        return build()


def entries() -> Iterator[tuple[Path, bool]]:
    """Every entry, and whether it is what was written."""
    for path in sorted((cache_root() / "encoded").glob("*.npz")):
        yield path, _read(path) is not None


def _read(path: Path) -> Arrays | None:
    """The arrays of an entry; None when it is missing or is not what was written."""
    try:
        content = path.read_bytes()
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).hexdigest().encode() != digest:
            return None
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> Arrays:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    payload = buffer.getvalue()
    atomic_write(path, hashlib.sha256(payload).hexdigest().encode() + payload, "encoded data")
    return arrays
