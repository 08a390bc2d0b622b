"""What records kernels and runs them again: CUDA's graphs, and a twin that records nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

UNUSED_BYTES = 4 * 2**30  # on the device, that a worker holds on to before it gives them back


class Recorder(Protocol):
    """Runs something aside, records it, and says how to run it again."""

    def aside(self, run: Callable[[], None]) -> None: ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]: ...

    def forget_failure(self) -> None: ...

    def close(self) -> None: ...


class EagerTwin:
    """Records nothing: a replay runs it again."""

    def aside(self, run: Callable[[], None]) -> None:
        run()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        return run

    def forget_failure(self) -> None:
        pass

    def close(self) -> None:
        pass


class CudaRecorder:
    """One memory pool for all graphs of a trial: they never run at the same time."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pool: Any = None
        self._state: Tensor | None = None  # of the device's generator, while something is recorded

    def aside(self, run: Callable[[], None]) -> None:
        """On a stream of its own, as libraries that set themselves up at their first call want it."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        self._state = torch.cuda.get_rng_state(self.device)
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        self._pool, self._state = graph.pool(), None
        return graph.replay

    def forget_failure(self) -> None:
        """A recording that broke off leaves the generator believing that it is being recorded."""
        with contextlib.suppress(Exception):  # then the next draw says what is wrong
            torch.cuda.synchronize(self.device)
        if self._state is not None:
            index = self.device.index if self.device.index is not None else torch.cuda.current_device()
            fresh = torch.Generator(self.device)
            fresh.set_state(self._state)
            torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())

    def close(self) -> None:
        if self._pool is None:
            return
        self._pool = None
        # The pool of a graph that is gone serves nobody. Giving it back takes 0.3 s (H200): not after every trial.
        if torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device) > UNUSED_BYTES:
            torch.cuda.empty_cache()
