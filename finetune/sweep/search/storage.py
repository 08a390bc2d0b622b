"""Where the study lives: a SQLite file of one coordinator, or a PostgreSQL shared by the coordinators of many machines.

On SQLite the lock on the output directory keeps every other coordinator away. On PostgreSQL two advisory locks do what
Optuna leaves open: filling and taking over stale trials happen alone (exclusive), and a result is published only while
nobody takes trials over (shared). Both end with the connection that holds them, so a dead machine blocks nobody.
"""

from __future__ import annotations

import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from finetune.errors import ConfigError, EnvironmentProblem, Problem

T = TypeVar("T")

STUDY_FILE = "study.db"
_LOCK_SPACE = 0x46_54_53_57  # first key of our advisory locks: "FTSW"
_CONNECTION_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


class StudyStorage:
    """Optuna's storage with the locks and the patience that a shared one needs.

    `grace`: seconds of silence after which another machine's trials are taken over (PostgreSQL only).
    """

    def __init__(self, url: str | None, output_dir: Path, *, grace: float = 60.0):
        self.shared = url is not None
        self.grace = grace
        self.where = _redacted(url) if url else str(output_dir / STUDY_FILE)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with")
        self._locks = self._lock_engine(url) if url else None
        self.notes: list[str] = []
        # On a slow machine the tables may take longer than the server lets our lock's transaction be idle.
        self._database = self.patiently(lambda: self._open(url, output_dir))
        self.optuna = optuna.storages.get_storage(self._database)

    def _open(self, url: str | None, output_dir: Path) -> RDBStorage:
        if url is None:
            return self._open_sqlite(output_dir / STUDY_FILE)
        # Coordinators that start together would both create Optuna's tables.
        with self._advisory("pg_advisory_xact_lock", 0):
            return RDBStorage(
                _with_driver(url), heartbeat_interval=max(1, int(self.heartbeat_seconds)),
                grace_period=max(1, int(self.grace)),
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True),
                engine_kwargs={"pool_pre_ping": True, "connect_args": self._connect_arguments()},
            )

    def _open_sqlite(self, path: Path) -> RDBStorage:
        """A damaged study is set aside: the records on disk are the truth, the study is rebuilt from them."""
        if _damaged(path):
            target = path.with_name(f"{path.name}.damaged.{os.getpid()}")
            os.replace(path, target)
            self.notes.append(f"the study was damaged (now {target.name}); it is rebuilt from the records")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
            sqlalchemy.event.listen(storage.engine, "connect", _leave_writing_to_the_system)
            storage.engine.dispose()  # connections from before
            return storage
        except (*_CONNECTION_ERRORS, RuntimeError) as error:
            raise _environment_problem(self.where, error) from error

    @property
    def heartbeat_seconds(self) -> float:
        """How often a coordinator says that it is alive; several times within the grace."""
        return self.grace / 6

    def _lock_engine(self, url: str) -> sqlalchemy.Engine:
        try:
            engine = sqlalchemy.create_engine(
                _with_driver(url), pool_pre_ping=True,
                connect_args=self._connect_arguments(),
            )
            with engine.connect():
                return engine
        except ImportError as error:
            raise EnvironmentProblem("--storage postgresql://… needs a driver: pip install "
                                     "'stellar-finetuning[postgresql]'") from error
        except _CONNECTION_ERRORS as error:
            raise _environment_problem(self.where, error) from error

    def _connect_arguments(self) -> dict[str, Any]:
        """The server ends the transactions of a machine that is dead or frozen: its locks must not hold up the rest."""
        return {"connect_timeout": 10, "options": f"-c idle_in_transaction_session_timeout={int(1000 * self.grace)} "
                "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"}

    def alone(self, key: int) -> Any:
        """Context: no other coordinator is in `alone` or `together` with this key. Waits."""
        return self._advisory("pg_advisory_xact_lock", key) if self.shared else nullcontext(True)

    def alone_if_free(self, key: int) -> Any:
        """Like `alone`, but gives False at once when somebody else is inside."""
        return self._advisory("pg_try_advisory_xact_lock", key) if self.shared else nullcontext(True)

    def together(self, key: int) -> Any:
        """Context that many coordinators may share, and `alone` excludes."""
        return self._advisory("pg_advisory_xact_lock_shared", key) if self.shared else nullcontext(True)

    @contextmanager
    def _advisory(self, function: str, key: int) -> Iterator[bool]:
        assert self._locks is not None
        with self._locks.connect() as connection, connection.begin():
            answer = connection.execute(sqlalchemy.text(f"SELECT {function}(:space, :key)"),
                                        {"space": _LOCK_SPACE, "key": key}).scalar()
            yield answer is not False

    def patiently(self, operation: Callable[[], T]) -> T:
        """Run an operation that may be repeated; a lost PostgreSQL connection is waited for as long as the grace.

        Raises EnvironmentProblem when the storage stays away, or at once for SQLite (a full disk does not heal).
        """
        deadline, pause = None, 0.1
        while True:
            try:
                return operation()
            except _CONNECTION_ERRORS as error:
                deadline = deadline or time.monotonic() + self.grace  # from here: this machine may have been frozen
                if not self.shared or time.monotonic() > deadline:
                    raise _environment_problem(self.where, error) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def close(self) -> None:
        self._database.remove_session()
        self._database.engine.dispose()
        if self._locks is not None:
            self._locks.dispose()


def check_url(url: str) -> str:
    """Raises ConfigError for a storage that coordinators cannot share safely."""
    if not url.startswith(("postgresql://", "postgres://", "postgresql+")):
        raise ConfigError([Problem("--storage", _redacted(url), "allowed: postgresql://USER@HOST/DATABASE; without "
                                   f"--storage the study is OUTPUT_DIR/{STUDY_FILE}")])
    return url


def _with_driver(url: str) -> str:
    scheme, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def _redacted(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url.split("@")[-1]


def _leave_writing_to_the_system(connection: sqlite3.Connection, record: Any) -> None:
    """No fsync per commit (a dozen per trial). A kill loses nothing by it; a power cut may cost the study, which is
    rebuilt from the records then."""
    connection.execute("PRAGMA synchronous = OFF")


def _damaged(path: Path) -> bool:
    """Whether SQLite finds the file broken, or it is no study. A file that does not exist is fine."""
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            sound = connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            return not sound or bool(tables) and "studies" not in tables
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "unable to open" in str(error):
            raise _environment_problem(str(path), error) from error
        return True
    except sqlite3.DatabaseError:
        return True


def _environment_problem(where: str, error: Exception) -> EnvironmentProblem:
    cause = " ".join(str(error.__cause__ or error).split())
    reason = "the disk is full; free some space and run the same command again" if "full" in cause else cause[:200]
    return EnvironmentProblem(f"cannot use the study in {where}: {reason}")
