"""Optuna's journal on a shared folder, made to survive writers that die or freeze at any byte.

Optuna's own file breaks for good after a torn last line (optuna#5138), and its locks have no owner: who wakes up late
gives back a lock that is somebody else's by then. Here nothing that was written is ever cut away: the next writer ends
a torn line, and every reader skips what is no log entry, so that all of them see the same entries.
"""

from __future__ import annotations

import glob
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.25  # seconds between two looks at a lock


class OwnedLock(BaseJournalFileLock):
    """A symbolic link (created atomically, also on NFS) whose target says who holds it.

    A lock of a process that died on this machine is free at once; one whose owner has not changed for `grace` seconds
    of this machine's clock is taken away. Its late owner then finds that it is no longer his, and leaves it alone.
    """

    def __init__(self, path: Path, grace: float):
        self.path, self.grace = path.absolute(), grace
        self._token = ""

    def acquire(self, wait: bool = True) -> bool:
        token = f"{_here()}|{os.getpid()}|{_started(os.getpid())}|{uuid.uuid4().hex}"
        seen, since, pause = "", time.monotonic(), _FIRST_PAUSE
        while True:
            with suppress(FileExistsError):
                os.symlink(token, self.path)
                self._token = token
                return True
            owner = self.owner()
            if owner != seen:
                seen, since, pause = owner, time.monotonic(), _FIRST_PAUSE
            # Two who wait shall not both find it stale in the same moment.
            if owner and (_is_dead(owner) or time.monotonic() - since > self.grace * random.uniform(1, 1.2)):
                self._take_away(owner)
            elif not wait:
                return False
            else:
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def owner(self) -> str:
        """"" when it is free."""
        with suppress(FileNotFoundError):
            return os.readlink(self.path)
        return ""

    def release(self) -> None:
        token, self._token = self._token, ""
        if token and self.owner() == token:
            self._take_away(token)

    def _take_away(self, owner: str) -> None:
        """Rename, look, remove: should somebody else have it since, he gets it back."""
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if os.readlink(aside) != owner:
                with suppress(FileExistsError):
                    os.link(aside, self.path, follow_symlinks=False)
            os.unlink(aside)


def remove_left_aside(path: Path) -> None:
    """Locks beside a journal that a process of this machine had renamed when it was killed; they hold nobody up."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*lock.*"):
        with suppress(OSError):  # no link, or gone by now
            if _is_dead(os.readlink(left)):
                left.unlink()


def _here() -> str:
    """Machine, start of its kernel and process namespace: where a process id means the same process."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}|{boot}|{os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()}||"


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot; "" when it is gone, a zombie or there is no /proc.

    Not psutil's create_time: that one moves when the machine's clock is set, and a living owner would seem dead.
    """
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[18] if state not in "ZX" else ""
    return ""


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine that is gone; False where we cannot know."""
    where, pid, began, _ = owner.rsplit("|", 3) if owner.count("|") >= 3 else ("", "", "", "")
    return bool(began) and where == _here() and pid.isdigit() and _started(int(pid)) != began


class JournalFile(JournalFileBackend):
    """Entries are lines; a line that is no entry (torn by a kill, or zeros after a power cut) is skipped by all."""

    def __init__(self, path: Path, lock: BaseJournalFileLock):
        super().__init__(str(path), lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            handle = os.open(self._file_path, os.O_RDWR | os.O_APPEND)
            try:
                size = os.fstat(handle).st_size
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                _write(handle, b"\n" + content if torn else content)
                self.flushed(handle)
            finally:
                os.close(handle)
        finally:
            self._lock.release()

    def flushed(self, handle: int) -> None:
        """What was written has reached the file server when this returns."""
        os.fsync(handle)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Entries from a number on. A last line without an end is still being written, or torn: not yet an entry."""
        number = log_number_from if log_number_from in self._log_number_offset else 0
        position = self._log_number_offset[number]
        with open(self._file_path, "rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                position += len(line)
                entry = _entry(line)
                if entry is None:
                    continue
                number += 1
                self._log_number_offset[number] = position
                if number > log_number_from:
                    yield entry


def _write(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content):]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "op_code" in found and "worker_id" in found else None


def is_journal(path: Path) -> bool:
    """Whether the file is empty or has a log entry among its first lines."""
    with open(path, "rb") as file:
        lines = [file.readline(1 << 20) for _ in range(3)]
    return not lines[0] or any(_entry(line) is not None for line in lines)
