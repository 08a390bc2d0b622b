"""One piece of work beside the main one: a checkpoint is written while a GPU goes on training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """At most one piece at a time; what it raises is raised where somebody waits for it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future | None = None

    def run(self, work: Callable[[], Any]) -> None:
        """Begin it when the one before has ended."""
        self.wait()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="background")
        self._running = self._pool.submit(work)

    def wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Let it end; nobody is left whom a failure would concern."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._pool = self._running = None
