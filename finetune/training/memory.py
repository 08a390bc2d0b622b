"""The most memory that was in use since the last reset: the accelerator's where there is one, else the process's."""

from __future__ import annotations

import contextlib
import re
import resource
import sys

import torch

# As PyTorch's allocator says it on a CPU, and as oneDNN does when it cannot place the kernel that it has compiled (what
# it has no kernel for fails earlier, at a "primitive descriptor").
_NO_MEMORY_ON_CPU = re.compile(r"DefaultCPUAllocator: can't allocate memory|could not create a (primitive|memory)"
                               r"(?! descriptor)")


def is_out_of_memory(error: BaseException) -> bool:
    """On an accelerator it has a type of its own; on a CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY_ON_CPU.search(str(error)) is not None)


def asked_for(error: BaseException) -> str:
    """What could not be had, as the allocator says it: '2.00 GiB', '1073741824 bytes'."""
    found = re.search(r"tried to allocate ([\d.]+ ?[KMGT]?i?B(?:ytes)?|\d+ bytes)", str(error), re.IGNORECASE)
    return found.group(1) if found else "more memory"


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew. Where the system cannot (macOS), `peak_memory_bytes` goes on from the process's beginning."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # Linux: the resident set's high-water mark becomes its present size


def peak_memory_bytes(device: torch.device) -> int:
    """Bytes allocated on an accelerator, or resident in memory (the libraries included) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
