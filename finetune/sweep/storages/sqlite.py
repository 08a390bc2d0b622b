"""A SQLite file of one coordinator, in which earlier versions kept every study: such a sweep goes on in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from finetune.sweep.storages.base import StudyStorage, environment_problem


class SQLiteStudy(StudyStorage):
    """A damaged file is set aside: the records on disk are the truth, the study is rebuilt from them.

    Raises EnvironmentProblem when the file cannot be used.
    """

    shared = False
    lost = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)

    def __init__(self, path: Path, *, grace: float = 60.0):
        super().__init__(str(path), grace)
        if _damaged(path):
            self.set_aside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
            sqlalchemy.event.listen(self._database.engine, "connect", _leave_writing_to_the_system)
            self._database.engine.dispose()  # connections from before
        except (*self.lost, RuntimeError) as error:
            raise environment_problem(self.where, error) from error
        self.optuna = optuna.storages.get_storage(self._database)

    def close(self) -> None:
        self._database.remove_session()
        self._database.engine.dispose()


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
            raise environment_problem(str(path), error) from error
        return True
    except sqlite3.DatabaseError:
        return True
