"""Where the study lives: a journal file of one coordinator, or one or a PostgreSQL server that many share."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import ConfigError, Problem
from finetune.sweep.storages.base import StudyStorage
from finetune.sweep.storages.local import STUDY_FILE, LocalStudy

DATABASE_FILE = "study.db"  # of a sweep that an earlier version began

JOURNAL = "journal:"
_POSTGRESQL = ("postgresql://", "postgres://", "postgresql+")


def open_storage(url: str | None, output_dir: Path, *, grace: float = 60.0) -> StudyStorage:
    """The study of --storage `url`; None is OUTPUT_DIR/study.journal. Raises EnvironmentProblem where none can be."""
    if url is None:
        if (output_dir / DATABASE_FILE).exists() and not (output_dir / STUDY_FILE).exists():
            from finetune.sweep.storages.sqlite import SQLiteStudy

            return SQLiteStudy(output_dir / DATABASE_FILE, grace=grace)
        return LocalStudy(output_dir / STUDY_FILE, grace=grace)
    if url.startswith(JOURNAL):
        from finetune.sweep.storages.journal import JournalStudy

        return JournalStudy(Path(url.removeprefix(JOURNAL)), grace=grace)
    from finetune.sweep.storages.postgresql import PostgreSQLStudy

    return PostgreSQLStudy(url, grace=grace)


def check_url(url: str) -> str:
    """Raises ConfigError for a storage that coordinators cannot share safely."""
    path = url.removeprefix(JOURNAL)
    if url.startswith(_POSTGRESQL) or path not in ("", url) and not path.startswith("//"):
        return url
    raise ConfigError([Problem("--storage", url.split("@")[-1], "allowed: postgresql://USER@HOST/DATABASE or "
                               f"journal:FILE in a shared folder; without --storage the study is "
                               f"OUTPUT_DIR/{STUDY_FILE}")])
