"""`finetune doctor`: what it finds, and its exit code."""

from __future__ import annotations

import json

import pytest

from finetune import cli
from finetune.commands import doctor
from finetune.results import RecordStore, TrialRecord


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def findings(capsys, *argv):
    code = cli.main(["doctor", "--json", *map(str, argv)])
    return code, {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_a_healthy_machine(machine, capsys):
    code, found = findings(capsys, "--output_dir", machine / "runs")
    assert code == 0 and found["Python"]["state"] == "ok" and found["W&B"]["advice"]
    assert not (machine / "runs").exists()


@pytest.mark.fault("bytes", "a damaged record, seen by `finetune doctor`", "named, with what to do; exit 5")
def test_a_damaged_record_is_named(machine, capsys):
    store = RecordStore(machine / "runs" / "sweep")
    store.publish(TrialRecord(trial_id="a" * 64, setting_id="s", state="complete", config={}))
    assert findings(capsys, "--output_dir", machine / "runs")[1]["records"]["found"] == "1 intact"
    path = store.folder("a" * 64) / "record.json"
    path.write_text(path.read_text().replace("complete", "finished"))
    code, found = findings(capsys, "--output_dir", machine / "runs")
    assert code == 5 and "1 of 1 damaged" in found["records"]["found"] and "again" in found["records"]["advice"]


def test_every_finding_is_a_line_with_its_advice(machine, capsys):
    assert cli.main(["doctor", "--output_dir", str(machine)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line[:4] in doctor.MARKS.values() or line.startswith("      -> ") for line in lines)
