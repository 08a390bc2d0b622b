"""Text from somebody else's file, made harmless for a terminal and for one line of a message."""

from __future__ import annotations


def plain(text: object, limit: int = 0) -> str:
    """Control, format and direction characters are escaped, white space is one blank; cut to `limit` characters."""
    joined = " ".join(str(text).split())
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    return safe[: limit - 1] + "…" if limit and len(safe) > limit else safe
