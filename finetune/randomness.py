"""Seeds: each use of randomness has its own stream, so that a freeze depth does not change another's numbers."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed for one use of one trial's randomness, e.g. stream_seed(1, "order", epoch)."""
    text = ":".join(str(part) for part in (seed, *stream))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
