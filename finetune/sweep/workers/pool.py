"""Worker processes as the coordinator sees them: start, talk, time out, kill with their children."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from finetune.sweep.workers.birth import (
    AHEAD,
    Newborn,
    WorkerOptions,
    give_birth,
    usable_cores,
    variables_for,
    workers_for,
)
from finetune.sweep.workers.cards import free_memory, visible_gpus, workers_per_gpu
from finetune.sweep.workers.mps import Mps

MEMORY_PER_WORKER = 3 * 2**30  # bytes; torch, a base-sized encoder and its optimizer state

@dataclass(frozen=True)
class Machine:
    """What this coordinator may use. `gpus` are the identifiers for CUDA_VISIBLE_DEVICES; `gpu_bytes` are free on each
    of them at least, None where nobody says."""

    cores: int
    gpus: tuple[str, ...]
    memory_bytes: int
    gpu_bytes: int | None = None

    @classmethod
    def here(cls) -> Machine:
        return cls(usable_cores(), tuple(gpus := visible_gpus()), psutil.virtual_memory().available, free_memory(gpus))

    def workers(self, wanted: int | None, trials: int, weights: int | None = None) -> int:
        """How many workers: as wanted; else as many as each GPU takes, or cores and memory carry. Never idle ones.

        `weights`: bytes of the model, where they are known.
        """
        if wanted is None:
            by_memory = max(1, self.memory_bytes // MEMORY_PER_WORKER)
            count = len(self.gpus)
            wanted = min(workers_for(self.cores), by_memory) if not count else max(
                count, min(by_memory, count * workers_per_gpu(self.cores // count, self.gpu_bytes, weights)))
        return max(1, min(wanted, trials))


class Worker:
    """One child process and the pipe to it; it does nothing before `begin`."""

    def __init__(self, index: int, count: int, machine: Machine, *, task: str, log: Path, ask_verdicts: bool,
                 born: Newborn | None = None, mps: Mps | None = None):
        """`born`: its process, where that is there already. `mps`: by which it may share its GPU."""
        self.index = index  # from 1
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        threads = max(1, machine.cores // count)
        self._mps, self._position = mps, (index - 1) % max(1, len(machine.gpus))
        variables = variables_for(threads, machine.gpus[self._position] if machine.gpus else None)
        # What MPS is waited for, it spends on importing torch.
        born = born or give_birth(f"worker-{index}", variables, AHEAD if mps else ())
        born.adopted = True
        self.process, self.connection = born.process, born.connection
        self.mps_card: int | None = None  # where kernels of other workers run at the same time
        self._options = WorkerOptions(task, threads, log, ask_verdicts, variables)
        self.ready = False
        self.born = time.monotonic()

    def begin(self) -> None:
        """Tell it what to do; with MPS, when that has answered."""
        shared = self._mps.variables(self._position) if self._mps else {}
        self.mps_card = self._position if shared else None
        self.send("begin", replace(self._options, variables=self._options.variables | shared))

    def send(self, kind: str, content: Any = None) -> None:
        """A worker that is already dead is noticed when its pipe is read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((kind, content))

    def interrupt(self) -> None:
        """SIGTERM: the trial checkpoints and the process ends."""
        if self.process.is_alive():
            self.process.terminate()

    def release(self) -> None:
        """With MPS: the others on its GPU shall not fail because this one is killed."""
        if self._mps is not None and self.process.is_alive():
            self._mps.release(self.process.pid)

    def strike(self) -> None:
        """SIGKILL, with all its children; does not wait for their end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Until the child has made its own group, its group is ours: then it has no children either.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def kill(self) -> None:
        """At once, with all its children."""
        if self.process.pid is None:
            return
        self.strike()
        self.process.join()
        self.connection.close()

    @property
    def was_killed(self) -> bool:
        return (self.process.exitcode or 0) < 0

    def cause_of_death(self) -> str:
        """For a process that ended by itself: how, and the last thing that it said."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        hint = " (often: the machine ran out of memory)" if code == -signal.SIGKILL else ""
        how = f"was killed by {_signal_name(-code)}{hint}" if self.was_killed else f"ended with exit code {code}"
        last = self._last_line()
        return f"its worker {how}" + (f": {last}" if last else "")

    def _last_line(self) -> str:
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(self._log_start)
            lines = [line for line in file.read()[-20000:].decode(errors="replace").splitlines() if line.strip()]
            return lines[-1].strip()[:300] if lines else ""
        return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def stop_all(workers: list[Worker], *, interrupt: bool, grace: float) -> None:
    """End every worker: gently within `grace` seconds, then not. `interrupt`: also those that are busy."""
    for worker in workers:
        worker.send("quit")
        if interrupt:
            worker.interrupt()
    deadline = time.monotonic() + grace
    for worker in workers:
        worker.process.join(timeout=max(0.0, deadline - time.monotonic()))
    for worker in workers:
        worker.kill()
