"""The kept sweeps: their records are intact, and what the README quotes is what their report says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.report.report import write_report
from analysis.strategies import markdown, strategy_rows
from finetune.results import RecordStore

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(("name", "count", "predicted"), [("rotten_tomatoes", 140, 80), ("null-a", 30, 30),
                                                          ("null-b", 30, 30), ("strategies_mini", 54, 28),
                                                          ("rotten_tomatoes_adaptive", 62, 35)])
def test_kept_records_are_intact(name, count, predicted):
    store = RecordStore(RESULTS / name)
    records = [store.load(trial_id) for trial_id in store.trial_ids()]
    assert len(records) == count and {record.state for record in records} == {"complete"}
    with_rows = [store.predictions(record) for record in records if record.files]  # raises where a byte is not right
    assert len(with_rows) == predicted


def test_the_readme_says_what_the_report_of_the_kept_sweep_says(tmp_path):
    summary = write_report([str(RESULTS / "rotten_tomatoes")], folder=tmp_path).summary
    said = " ".join([summary["headline"], *summary["details"]])
    quoted = " ".join(re.findall(r"^> (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert quoted == said
    drawn = (tmp_path / "figures" / "curve.svg").read_text(encoding="utf-8")
    shown = (ROOT / "docs" / "rotten_tomatoes.svg").read_text(encoding="utf-8")
    assert re.findall(r"<title>(.*?)</title>", drawn) == re.findall(r"<title>(.*?)</title>", shown)


def test_the_adaptive_sweep_names_the_depth_that_the_grid_names(tmp_path):
    named = [write_report([str(RESULTS / name)], folder=tmp_path / name).summary["deepest_safe_freeze"][0]
             for name in ("rotten_tomatoes", "rotten_tomatoes_adaptive")]
    assert [verdict["freeze_depth"] for verdict in named] == [3, 3]
    assert [(test["freeze_depth"], test["safe"]) for test in named[1]["tested"]] == [(3, True), (5, False), (4, False)]


def test_the_control_finds_nothing(tmp_path):
    summary = write_report([str(RESULTS / "null-a"), str(RESULTS / "null-b")], folder=tmp_path).summary
    assert "The same depth differs between no two curves beyond chance" in " ".join(summary["details"])


def test_the_table_of_strategies_is_of_the_kept_sweep():
    rows, budget = strategy_rows(RecordStore(RESULTS / "strategies_mini"))
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert f"strategies_mini -->\n{markdown(rows).strip()}\n<!--" in page
    assert f"Equal compute: {budget:.1f} s of training" in page
