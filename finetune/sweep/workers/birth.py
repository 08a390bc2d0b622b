"""How a worker process begins: with as little as possible, so that the first one is on its way before the sweep's
file is read. What takes long, torch above all, it imports while the coordinator still finds out what is to be done.

coordinator -> worker    ("begin", WorkerOptions), once; then what worker.py says
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import multiprocessing
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

# By default glibc gives freed activations back to the system at every step and gets them again, page by page: 5% of
# the time. Before 2.35 it refuses so large a threshold, and would be slower with half of the pair.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
_GLIBC_THAT_TAKES_IT = (2, 35)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1
AHEAD = ("torch",)  # not what looks for GPUs when it is imported: which one is ours comes with "begin"


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told once. `task` is the module that offers resolve_trial and run_trial."""

    task: str
    threads: int
    log: Path
    ask_verdicts: bool  # wait at every epoch for the coordinator's verdict (a pruner is set)
    variables: dict[str, str] = field(default_factory=dict)  # of the environment
    work: str = "finetune.sweep.workers.worker"  # the module whose `serve` goes on from here


@dataclass
class Newborn:
    """A process that waits for "begin", and the pipe to it."""

    process: Any  # multiprocessing's
    connection: Connection
    adopted: bool = False  # a Worker answers for it


def usable_cores() -> int:
    """Cores that this process may use; not every cluster keeps its tasks to their cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(granted)) if granted.isdigit() and int(granted) else cores


def workers_for(cores: int) -> int:
    """Few cores go to one trial each, many are shared out by four: small models scale badly over threads."""
    return max(min(cores, 4), cores // 4)


def variables_for(threads: int, gpu: str | None = None) -> dict[str, str]:
    """The environment of a worker with so many threads."""
    variables = {name: str(threads) for name in _THREAD_VARIABLES} | {"TOKENIZERS_PARALLELISM": "false"}
    if _glibc() >= _GLIBC_THAT_TAKES_IT:
        variables |= {name: value for name, value in _KEEP_MEMORY.items() if name not in os.environ}
    return variables | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})


def _glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(int(number) for number in version.split(".") if number.isdigit()) if name == "glibc" else ()


def give_birth(name: str, variables: dict[str, str], ahead: Sequence[str] = ()) -> Newborn:
    """Start a process; `ahead` are modules that it imports until it is told what to do."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=main, args=(theirs, os.getpid(), tuple(ahead)), name=name)
    with _environment(variables), _without_main():
        process.start()
    theirs.close()
    return Newborn(process, ours)


@contextlib.contextmanager
def head_start(workers: str) -> Iterator[Newborn]:
    """The first worker, before anything is known but the option --workers; ended if nobody has adopted it.

    With as many threads as it will most likely have; where the sweep has fewer trials than workers, it learns of it.
    """
    cores = usable_cores()
    count = int(workers) if workers.isascii() and workers.isdigit() and int(workers) else workers_for(cores)
    newborn = give_birth("worker-1", variables_for(max(1, cores // count)), AHEAD)
    try:
        yield newborn
    finally:
        if not newborn.adopted:
            newborn.process.kill()
            newborn.process.join()
            newborn.connection.close()


def main(connection: Connection, parent: int, ahead: Sequence[str]) -> None:
    """Entry point of the process; returns when the coordinator says so or is gone."""
    # What is imported stays: a collector that looks through it again and again takes an eighth of the time.
    gc.disable()
    _die_with(parent)
    os.setpgid(0, 0)  # Ctrl-C reaches the coordinator alone; a hung trial is ended with its children
    if ahead:
        write_to(Path(os.devnull))  # there is no log yet
    for module in ahead:
        with contextlib.suppress(Exception):  # is imported again, and then it is told
            importlib.import_module(module)
    try:
        _, options = connection.recv()
    except (EOFError, ConnectionResetError):
        return
    os.environ.update(options.variables)
    write_to(options.log)
    importlib.import_module(options.work).serve(connection, options)


def write_to(log: Path) -> None:
    """Everything a library prints goes there, not over the live view."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _die_with(parent: int) -> None:
    """The kernel ends this process when the coordinator dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


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
