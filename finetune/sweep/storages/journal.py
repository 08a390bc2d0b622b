"""A journal file in a folder that the coordinators of many machines share, where there is no database server.

Beside FILE lie FILE.lock (one append), FILE.KEY.lock (filling, handing out, publishing: one coordinator at a time) and
FILE.alive/, one empty file per running trial, touched as its heartbeat; and FILE.checkpoints/, where whoever takes a
trial over finds how far it was. Ages are taken between two times that the file server has set, so that the machines'
clocks need not agree.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import optuna
from optuna.storages import JournalStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

from finetune.errors import ConfigError, Problem
from finetune.sweep.storages.base import StudyStorage, environment_problem
from finetune.sweep.storages.journal_file import JournalFile, OwnedLock, is_journal, remove_left_aside

_WILL_NOT_HEAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class JournalStudy(StudyStorage):
    """Raises ConfigError for a path that is no journal, EnvironmentProblem when the folder cannot be used."""

    lost = (optuna.exceptions.StorageInternalError, OSError)

    def __init__(self, path: Path, *, grace: float = 60.0):
        self.path = path.expanduser().absolute()
        super().__init__(f"journal:{self.path}", grace)
        self.checkpoints = self.path.with_name(f"{self.path.name}.checkpoints")
        try:
            self._prepare()
        except OSError as error:
            raise environment_problem(self.where, error) from error
        self.optuna = self.patiently(lambda: JournalWithHeartbeat(self.path, grace))

    def _prepare(self) -> None:
        if self.path.is_dir():
            raise ConfigError([Problem("--storage", self.where, f"a folder; allowed: a file, e.g. "
                                       f"journal:{self.path / 'study.journal'}")])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_aside(self.path)
        if self.path.exists() and not is_journal(self.path):
            raise ConfigError([Problem("--storage", self.where, "the file exists and is no journal of Optuna's; "
                                       "allowed: a journal, or a name that is free")])

    def alone(self, key: int) -> AbstractContextManager[bool]:
        return self._locked(key, wait=True)

    def alone_if_free(self, key: int) -> AbstractContextManager[bool]:
        return self._locked(key, wait=False)

    def together(self, key: int) -> AbstractContextManager[bool]:
        """One at a time here: a file knows no shared locks."""
        return self._locked(key, wait=True)

    @contextmanager
    def _locked(self, key: int, *, wait: bool) -> Iterator[bool]:
        lock = OwnedLock(self.path.with_name(f"{self.path.name}.{key:x}.lock"), self.grace)
        mine = lock.acquire(wait)
        try:
            yield mine
        finally:
            if mine:
                lock.release()

    def heartbeat(self, key: int) -> None:
        self.optuna.record_heartbeat(key)

    def may_heal(self, error: Exception) -> bool:
        return not (isinstance(error, OSError) and error.errno in _WILL_NOT_HEAL)


class JournalWithHeartbeat(JournalStorage, BaseHeartbeat):
    """Optuna's journal has no heartbeats; `fail_stale_trials` works with these as with those of a database."""

    def __init__(self, path: Path, grace: float):
        super().__init__(JournalFile(path, OwnedLock(path.with_name(f"{path.name}.lock"), grace)))
        self._alive, self._grace = path.with_name(f"{path.name}.alive"), grace
        self._alive.mkdir(exist_ok=True)

    def record_heartbeat(self, trial_id: int) -> None:
        self._touch(str(trial_id))

    def _touch(self, name: str) -> float:
        """The time that the file server gives it, seconds."""
        handle = os.open(self._alive / name, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.utime(handle)
            return os.fstat(handle).st_mtime
        finally:
            os.close(handle)

    def _age(self, name: str, now: float) -> float:
        """Seconds since the last heartbeat. It is opened: NFS asks the server then, and trusts its cache otherwise.

        A trial whose holder died before its first heartbeat begins to age here.
        """
        try:
            handle = os.open(self._alive / name, os.O_RDONLY)
        except FileNotFoundError:
            self._touch(name)
            return 0.0
        try:
            return now - os.fstat(handle).st_mtime
        finally:
            os.close(handle)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now = self._touch("now")
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in running if self._age(str(trial._trial_id), now) > self._grace]

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            with suppress(FileNotFoundError):
                os.unlink(self._alive / str(trial_id))
        return changed

    def get_heartbeat_interval(self) -> int:
        return max(1, int(self._grace / 6))

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None]:
        return RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
