"""A stopwatch that can be stopped and taken up again."""

from __future__ import annotations

import time


class Stopwatch:
    """Counts `seconds` while it runs; as a context it runs inside."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._counted + (time.monotonic() - self._since if self._since is not None else 0.0)

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._counted = value

    def __enter__(self) -> Stopwatch:
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._counted, self._since = self.seconds, None

    def reset(self) -> float:
        """Back to 0; returns what was counted."""
        counted, self._counted = self.seconds, 0.0
        return counted

    def leave_out(self, seconds: float) -> None:
        """Not to be counted, where it runs: something else was done meanwhile."""
        if self._since is not None:
            self._counted -= seconds
