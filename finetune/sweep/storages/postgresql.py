"""A PostgreSQL shared by the coordinators of many machines.

Two advisory locks do what Optuna leaves open: filling and taking over stale trials happen alone (exclusive), and a
result is published only while nobody takes trials over (shared). Both end with the connection that holds them, so a
dead machine blocks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from finetune.errors import EnvironmentProblem
from finetune.sweep.storages.base import StudyStorage, environment_problem

_LOCK_SPACE = 0x46_54_53_57  # first key of our advisory locks: "FTSW"


class PostgreSQLStudy(StudyStorage):
    """Raises EnvironmentProblem when the server or its driver is not there."""

    lost = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)

    def __init__(self, url: str, *, grace: float = 60.0):
        super().__init__(redacted(url), grace)
        self._locks = self._lock_engine(url)
        # On a slow machine the tables may take longer than the server lets our lock's transaction be idle.
        self._database = self.patiently(lambda: self._open(url))
        self.optuna = optuna.storages.get_storage(self._database)

    def _open(self, url: str) -> RDBStorage:
        # Coordinators that start together would both create Optuna's tables.
        with self._advisory("pg_advisory_xact_lock", 0):
            return RDBStorage(
                _with_driver(url), heartbeat_interval=max(1, int(self.heartbeat_seconds)),
                grace_period=max(1, int(self.grace)),
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True),
                engine_kwargs={"pool_pre_ping": True, "connect_args": self._connect_arguments()},
            )

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
        except self.lost as error:
            raise environment_problem(self.where, error) from error

    def _connect_arguments(self) -> dict[str, Any]:
        """The server ends the transactions of a machine that is dead or frozen: its locks must not hold up the rest."""
        return {"connect_timeout": 10, "options": f"-c idle_in_transaction_session_timeout={int(1000 * self.grace)} "
                "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"}

    def alone(self, key: int) -> AbstractContextManager[bool]:
        return self._advisory("pg_advisory_xact_lock", key)

    def alone_if_free(self, key: int) -> AbstractContextManager[bool]:
        return self._advisory("pg_try_advisory_xact_lock", key)

    def together(self, key: int) -> AbstractContextManager[bool]:
        return self._advisory("pg_advisory_xact_lock_shared", key)

    @contextmanager
    def _advisory(self, function: str, key: int) -> Iterator[bool]:
        with self._locks.connect() as connection, connection.begin():
            answer = connection.execute(sqlalchemy.text(f"SELECT {function}(:space, :key)"),
                                        {"space": _LOCK_SPACE, "key": key}).scalar()
            yield answer is not False

    def heartbeat(self, key: int) -> None:
        self.optuna.record_heartbeat(key)

    def queued(self, key: int) -> None:
        """A trial without a heartbeat never counts as stale for Optuna."""
        self.optuna.record_heartbeat(key)

    def close(self) -> None:
        self._database.remove_session()
        self._database.engine.dispose()
        self._locks.dispose()


def _with_driver(url: str) -> str:
    scheme, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def redacted(url: str) -> str:
    """The URL without its password."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url.split("@")[-1]
