"""`finetune report DIR --publish` with W&B's client: offline, and where W&B is off. Online: tests/tracking."""

from __future__ import annotations

import pytest
from records import World, publish
from reports import trials_of

from finetune.cli import main
from finetune.errors import EnvironmentProblem


@pytest.fixture
def directory(tmp_path):
    return str(publish(tmp_path / "sweep", trials_of(World())))


def test_offline_it_is_written_for_wandb_sync(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["report", directory, "--output_dir", str(tmp_path / "report"), "--publish"]) == 0
    (run,) = (tmp_path / "report" / "wandb").glob("offline-run-*")
    assert f"published: {run}" in capsys.readouterr().err
    kept = [path.name for path in (run / "files" / "media").rglob("*") if path.is_file()]
    assert any(name.startswith("curve") and name.endswith(".table.json") for name in kept), kept
    assert any(name.startswith("report") and name.endswith(".html") for name in kept), kept


def test_where_wandb_is_off_it_says_so_and_the_report_is_there(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code = main(["report", directory, "--output_dir", str(tmp_path / "report"), "--publish"])
    assert code == EnvironmentProblem.exit_code
    assert "--publish needs W&B" in capsys.readouterr().err
    assert (tmp_path / "report" / "report.html").is_file()
