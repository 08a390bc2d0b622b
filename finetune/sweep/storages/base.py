"""What a search asks of the place where its study lives; sqlite.py, postgresql.py and journal.py are such places."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.storages import BaseStorage

from finetune.errors import EnvironmentProblem

T = TypeVar("T")


class StudyStorage:
    """Optuna's storage with the locks and the patience that a shared one needs.

    `shared`: coordinators of several machines use it at the same time. `grace`: seconds of silence after which another
    machine's trials are taken over (shared ones only). `where`: how the study is named in a message. `notes`: what the
    user has to know about how it was opened. `lost`: the exceptions that say that the storage cannot be reached.
    `checkpoints`: a folder that all coordinators see, so that whoever takes a trial over goes on from its checkpoint.
    """

    optuna: BaseStorage
    shared = True
    checkpoints: Path | None = None
    lost: tuple[type[Exception], ...] = (optuna.exceptions.StorageInternalError,)

    def __init__(self, where: str, grace: float):
        self.where, self.grace = where, grace
        self.notes: list[str] = []
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with")

    def set_aside(self, path: Path) -> None:
        """A damaged study makes way: the records on disk are the truth, and the next one is made from them."""
        target = path.with_name(f"{path.name}.damaged.{os.getpid()}")
        os.replace(path, target)
        self.notes.append(f"the study was damaged (now {target.name}); it is rebuilt from the records")

    @property
    def heartbeat_seconds(self) -> float:
        """How often a coordinator says that it is alive; several times within the grace."""
        return self.grace / 6

    def alone(self, key: int) -> AbstractContextManager[bool]:
        """Context: no other coordinator is in `alone` or `together` with this key. Waits."""
        return nullcontext(True)

    def alone_if_free(self, key: int) -> AbstractContextManager[bool]:
        """Like `alone`, but gives False at once when somebody else is inside."""
        return nullcontext(True)

    def together(self, key: int) -> AbstractContextManager[bool]:
        """Context that many coordinators may share, and `alone` excludes."""
        return nullcontext(True)

    def heartbeat(self, key: int) -> None:
        """Say that the running trial `key` (Optuna's id of it) is alive."""

    def queued(self, key: int) -> None:
        """For a waiting trial: it shall go stale should its taker die before the first heartbeat."""

    def patiently(self, operation: Callable[[], T]) -> T:
        """Run an operation that may be repeated; a shared storage that is lost is waited for as long as the grace.

        Raises EnvironmentProblem when it stays away, or at once where waiting does not help (a full disk).
        """
        deadline, pause = None, 0.1
        while True:
            try:
                return operation()
            except self.lost as error:
                deadline = deadline or time.monotonic() + self.grace  # from here: this machine may have been frozen
                if not self.may_heal(error) or time.monotonic() > deadline:
                    raise environment_problem(self.where, error) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def may_heal(self, error: Exception) -> bool:
        return self.shared

    def close(self) -> None:
        """Give back connections and locks."""


def environment_problem(where: str, error: Exception) -> EnvironmentProblem:
    cause = " ".join(str(error.__cause__ or error).split())
    full = any(word in cause for word in ("full", "No space left", "quota"))
    reason = "the disk is full; free some space and run the same command again" if full else cause[:200]
    return EnvironmentProblem(f"cannot use the study in {where}: {reason}")
