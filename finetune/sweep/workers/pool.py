"""Worker processes as the coordinator sees them: start, talk, time out, kill with their children."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from finetune.sweep.workers import worker as worker_process
from finetune.sweep.workers.cards import free_memory, visible_gpus, workers_per_gpu
from finetune.sweep.workers.worker import WorkerOptions

MEMORY_PER_WORKER = 3 * 2**30  # bytes; torch, a base-sized encoder and its optimizer state
# By default glibc gives freed activations back to the system at every step and gets them again, page by page: 5% of
# the time. Before 2.35 it refuses so large a threshold, and would be slower with half of the pair.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
_GLIBC_THAT_TAKES_IT = (2, 35)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


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
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        granted = os.environ.get("SLURM_CPUS_PER_TASK", "")  # not every cluster keeps its tasks to their cores
        return cls(min(cores, int(granted)) if granted.isdigit() and int(granted) else cores,
                   tuple(gpus := visible_gpus()), psutil.virtual_memory().available, free_memory(gpus))

    def workers(self, wanted: int | None, trials: int, weights: int | None = None) -> int:
        """How many workers: as wanted; else as many as each GPU takes, or cores and memory carry. Never idle ones.

        `weights`: bytes of the model, where they are known.
        """
        if wanted is None:
            by_memory = max(1, self.memory_bytes // MEMORY_PER_WORKER)
            # Small models scale badly over threads: few cores go to one trial each, many are shared out by four.
            by_cores = max(min(self.cores, 4), self.cores // 4)
            count = len(self.gpus)
            wanted = min(by_cores, by_memory) if not count else max(
                count, min(by_memory, count * workers_per_gpu(self.cores // count, self.gpu_bytes, weights)))
        return max(1, min(wanted, trials))


class Worker:
    """One child process and the pipe to it."""

    def __init__(self, index: int, count: int, machine: Machine, *, task: str, log: Path, ask_verdicts: bool):
        self.index = index  # from 1
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        threads = max(1, machine.cores // count)
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        options = WorkerOptions(task, threads, log, os.getpid(), ask_verdicts)
        self.process = context.Process(target=worker_process.main, args=(theirs, options), name=f"worker-{index}")
        with _environment(_variables(index, threads, machine)), _without_main():
            self.process.start()
        theirs.close()
        self.connection: Connection = ours
        self.ready = False
        self.born = time.monotonic()

    def send(self, kind: str, content: Any = None) -> None:
        """A worker that is already dead is noticed when its pipe is read."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((kind, content))

    def interrupt(self) -> None:
        """SIGTERM: the trial checkpoints and the process ends."""
        if self.process.is_alive():
            self.process.terminate()

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


def _variables(index: int, threads: int, machine: Machine) -> dict[str, str]:
    variables = {name: str(threads) for name in _THREAD_VARIABLES} | {"TOKENIZERS_PARALLELISM": "false"}
    if _glibc() >= _GLIBC_THAT_TAKES_IT:
        variables |= {name: value for name, value in _KEEP_MEMORY.items() if name not in os.environ}
    if machine.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = machine.gpus[(index - 1) % len(machine.gpus)]
    return variables


def _glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(int(number) for number in version.split(".") if number.isdigit()) if name == "glibc" else ()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """The child reads these before its first import; the coordinator's own environment stays as it was."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A spawned child imports its parent's main module, so that a script would run again where it has no guard for it.
    Our workers need nothing of it: they are shown an empty one.
    """
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


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
