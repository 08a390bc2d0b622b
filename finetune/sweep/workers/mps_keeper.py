"""The process that MPS's control daemon runs under: `python mps_keeper.py TOOL FOLDER PROBE`, with the standard library
alone. It starts the daemon, finds out whether a client gets a context from it, says so in one line on stdout (OK, or
why not), and ends the daemon when its own stdin does: however the coordinator ends, the kernel closes that pipe. It
removes FOLDER then. (A signal at the parent's death follows a thread and is one signal; this also says `quit`.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

OK = "ok"
PIPE, LOG = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
START_SECONDS, PROBE_SECONDS, QUIT_SECONDS, END_SECONDS = 5.0, 15.0, 10.0, 2.0
_PR_SET_PDEATHSIG = 1


def variables(folder: Path) -> dict[str, str]:
    """The environment of whoever talks to the daemon in this folder."""
    return {PIPE: str(folder / "pipe"), LOG: str(folder / "log")}


def control(tool: str, folder: Path, command: str, seconds: float) -> str:
    """What the daemon answers. Raises OSError or SubprocessError where it does not within so many seconds."""
    return subprocess.run([tool], input=f"{command}\n", env={**os.environ, **variables(folder)}, capture_output=True,
                          text=True, timeout=seconds, check=True).stdout


def main(tool: str, folder: Path, probe: str) -> None:
    """Returns when the coordinator is gone, the daemon has ended, or no client gets a context."""
    # SLURM and a terminal signal every process of a job: the workers still need the daemon for their checkpoints. A
    # handler, since what is ignored would be so in the daemon too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    daemon = None
    try:
        for place in variables(folder).values():
            os.makedirs(place, exist_ok=True)
        daemon = subprocess.Popen([tool, "-f"], env={**os.environ, **variables(folder)}, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                                  preexec_fn=_end_with_this_process)
        said = _why_not(tool, folder, probe, daemon) or OK
    except OSError as error:
        said = str(error)
    with contextlib.suppress(OSError):
        print(" ".join(said.split()), flush=True)
    if daemon is not None:
        while said == OK and daemon.poll() is None and not _coordinator_is_gone(0.5):
            pass
        _end(tool, folder, daemon)
    shutil.rmtree(folder, ignore_errors=True)


def _why_not(tool: str, folder: Path, probe: str, daemon: subprocess.Popen) -> str | None:
    """None where a client has been served. A driver that finds no daemon goes on without one and says nothing, so that
    the daemon is asked first whether it listens, and then whether it has started a server."""
    def listens() -> bool:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if (folder / "pipe" / "control").exists():
                control(tool, folder, "get_server_list", START_SECONDS)
                return True
        return daemon.poll() is not None

    if not _comes_true(listens, START_SECONDS) or daemon.poll() is not None:
        return "its control daemon does not start"
    # Without CUDA_VISIBLE_DEVICES: a client's refers to the devices as the daemon numbers them.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    client = subprocess.Popen([sys.executable, "-I", "-S", "-c", probe], env=environment | variables(folder),
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not _comes_true(lambda: client.poll() is not None, PROBE_SECONDS):
        client.kill()
        client.wait()
        return f"a first client had no answer within {PROBE_SECONDS:g} s"
    said = client.stdout.read().strip().splitlines() if client.stdout else []
    if client.returncode:
        return said[-1] if said else f"a first client ended with exit code {client.returncode}"
    try:
        started = any(word.isdigit() for word in control(tool, folder, "get_server_list", START_SECONDS).split())
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if started else "its control daemon has started no server for a first client"


def _comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Not where the coordinator is gone meanwhile: nobody is interested any more."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or _coordinator_is_gone(0.02):
            return False
    return True


def _coordinator_is_gone(seconds: float) -> bool:
    """Waiting for it so long at most. Nothing is ever written to stdin: readable is closed."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _end(tool: str, folder: Path, daemon: subprocess.Popen) -> None:
    """`quit` ends daemon and server; what does not obey is terminated, then killed, with the server in its group."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if daemon.poll() is None:
            control(tool, folder, "quit", QUIT_SECONDS)
            daemon.wait(END_SECONDS)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            os.killpg(daemon.pid, number)
            daemon.wait(END_SECONDS)


def _end_with_this_process() -> None:
    """In the daemon, before it is one: should its keeper be killed, the kernel ends it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
