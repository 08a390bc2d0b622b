"""CUDA's Multi-Process Service (MPS): kernels of several workers on one card run at the same time instead of in turns.

A sweep with more workers than GPUs has a control daemon of its own, which ends with it (mps_keeper.py). The daemon and
a first client start while the workers import torch; only where that client got a context are the workers told of it.

Which card: a daemon numbers the devices of its own CUDA_VISIBLE_DEVICES from 0 on, and a client's CUDA_VISIBLE_DEVICES
refers to these numbers ("0,2" for both is an error, docs.nvidia.com/deploy/mps). So the daemon has the variable as the
coordinator has it, set or not, and a worker the position of its GPU in the coordinator's list.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.sweep.workers import mps_keeper
from finetune.sweep.workers.mps_keeper import OK, PIPE, PROBE_SECONDS, QUIT_SECONDS, START_SECONDS

TOOL = "nvidia-cuda-mps-control"
PLACES = ("/usr/local/nvidia/bin", "/usr/bin")  # where containers and packages put it, on PATH or not
OF_THE_MACHINE = Path("/tmp/nvidia-mps/control")  # a daemon in the default directory: somebody else's
SHORT = "/tmp"  # not TMPDIR: a socket's path has 108 bytes at most
RELEASE_SECONDS = 3.0
# A context on every device, as torch would make one, without torch.
PROBE = """
import ctypes, sys

def must(call, *arguments):
    code = getattr(cuda, call)(*arguments)
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        sys.exit(f"{call} gives error {code} ({(name.value or b'unknown').decode()})")

try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    sys.exit(str(error))
must("cuInit", 0)
count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
must("cuDeviceGetCount", ctypes.byref(count))
for index in range(count.value):
    must("cuDeviceGet", ctypes.byref(device), index)
    must("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
sys.exit(0 if count.value else "no device")
"""


class Mps:
    """A daemon for this sweep. Raises OSError where its keeper cannot be started. `say` is told when it is no use."""

    def __init__(self, tool: str, say: Callable[[str], None]):
        self._tool, self._say = tool, say
        self._answer: str | None = None  # OK, or why there is none
        self.folder = Path(tempfile.mkdtemp(prefix="mps-", dir=SHORT))
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", mps_keeper.__file__, tool, str(self.folder), PROBE],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True)  # Ctrl-C reaches the coordinator alone
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def variables(self, position: int) -> dict[str, str]:
        """The environment of a worker on the GPU at this position of the coordinator's list. Waits until the first
        client has its answer; nothing, and one sentence, where that is no, or where the daemon has ended since."""
        if self._answer is None:
            self._answer = self._heard()
            if self._answer != OK:
                self._say(f"workers on one GPU take turns: no MPS ({self._answer})")
        if self._answer == OK and self._keeper.poll() is not None:
            self._answer = "its control daemon has ended"
            self._say(f"further workers on one GPU take turns: no MPS any more ({self._answer})")
        return mps_keeper.variables(self.folder) | {"CUDA_VISIBLE_DEVICES": str(position)} if self._answer == OK else {}

    def _heard(self) -> str:
        assert self._keeper.stdout is not None
        if not select.select([self._keeper.stdout], [], [], 3 * START_SECONDS + PROBE_SECONDS)[0]:
            return "its control daemon does not answer"
        return self._keeper.stdout.readline().decode(errors="replace").strip() or "its control daemon ended"

    def release(self, client: int) -> None:
        """Before the process `client` is killed: a client that dies with kernels under way may leave the server, and
        all others with it, in an undefined state; the server can let go of it first. Best effort."""
        if self._answer != OK:
            return
        deadline = time.monotonic() + RELEASE_SECONDS
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            servers = mps_keeper.control(self._tool, self.folder, "get_server_list", RELEASE_SECONDS).split()
            for server in servers:
                mps_keeper.control(self._tool, self.folder, f"terminate_client {server} {client}",
                                   max(0.1, deadline - time.monotonic()))

    def close(self) -> None:
        """End daemon and server, and remove their folder; after the workers."""
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(2 * QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def mps_for(gpus: int, workers: int, say: Callable[[str], None], *, wanted: bool = True) -> Iterator[Mps | None]:
    """A daemon where workers share a card and nobody manages MPS on this machine; it ends with this block."""
    tool = find_tool() if wanted and 0 < gpus < workers and not is_managed() else None
    mps = None
    if tool is not None:
        try:
            mps = Mps(tool, say)
        except OSError as error:
            say(f"workers on one GPU take turns: no MPS ({error})")
    try:
        yield mps
    finally:
        if mps is not None:
            mps.close()


def is_managed() -> bool:
    """Whether somebody runs MPS here already: our workers are its clients without our doing."""
    return PIPE in os.environ or OF_THE_MACHINE.exists()


def find_tool() -> str | None:
    """NVIDIA's control tool: on PATH, beside nvidia-smi, or where it usually lies."""
    smi = shutil.which("nvidia-smi")
    beside = [str(Path(smi).parent), str(Path(smi).resolve().parent)] if smi else []
    return shutil.which(TOOL) or shutil.which(TOOL, path=os.pathsep.join([*beside, *PLACES]))
