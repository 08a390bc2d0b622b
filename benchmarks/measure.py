"""Measuring a command: wall time, the most memory of all its processes together, and a machine's multiply rate."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_memory_bytes: int  # proportional set size of all processes of the command: a shared page counts once in all
    output: str


def run(command: Sequence[str], env: dict[str, str] | None = None, check: bool = True) -> Measured:
    """Run one command to its end. Raises RuntimeError with its last lines when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, **(env or {})})
    peak, done = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watcher.start()
    output, errors = process.communicate()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    if check and process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors[-2000:]}")
    return Measured(seconds, peak[0], output)


def side_by_side(commands: Sequence[Sequence[str]], env: dict[str, str]) -> tuple[float, list[Measured]]:
    """Run commands at the same time -> (wall time until the last ends, each one's measurement)."""
    results: list[Measured | None] = [None] * len(commands)

    def work(index: int) -> None:
        results[index] = run(commands[index], env)

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(commands))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, [result for result in results if result is not None]


def _watch(pid: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(2.0):  # reading it holds the process up for milliseconds
        total = 0
        try:
            root = psutil.Process(pid)
            for process in [root, *root.children(recursive=True)]:
                total += process.memory_full_info().pss
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total)


def children_cpu() -> float:
    """Processor seconds of all processes that have ended below this one: what other load on the machine moves least."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


MULTIPLY = """
import json, sys, time, torch
torch.set_num_threads(1)
rows, width, inner = 16 * 32, int(sys.argv[1]), int(sys.argv[2])
a, b = torch.randn(rows, width), torch.randn(width, inner)
for _ in range(20): a @ b
best = 0.0
for _ in range(5):
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.4:
        a @ b
        count += 1
    best = max(best, 2 * rows * width * inner * count / (time.perf_counter() - began))
print(json.dumps(best))
"""


def multiply_rate(python: str, processes: int, width: int, inner: int) -> float:
    """Floating-point operations per second of matrix products of a layer's shape, `processes` side by side."""
    commands = [[python, "-c", MULTIPLY, str(width), str(inner)]] * processes
    _, results = side_by_side(commands, {"OMP_NUM_THREADS": "1"})
    return sum(json.loads(result.output) for result in results)
