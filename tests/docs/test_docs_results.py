"""The kept sweeps: their records are intact, and what the README quotes is what their report says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.figures.svg import standalone
from analysis.report.report import make_report
from analysis.strategies import markdown, strategy_rows
from finetune.results import RecordStore

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(("name", "count", "predicted"), [("rotten_tomatoes", 140, 80), ("null-a", 30, 30),
                                                          ("null-b", 30, 30), ("strategies_mini", 54, 28),
                                                          ("rotten_tomatoes_adaptive", 62, 35),
                                                          ("entities_mini", 21, 21),
                                                          *((f"tasks/{name}", 25, predicted) for name, predicted in (
                                                              ("rotten_tomatoes_mini", 25), ("sms_spam", 25),
                                                              ("wnut17_mini", 25), ("banking77", 0),
                                                              ("nlupp_banking", 0)))])
def test_kept_records_are_intact(name, count, predicted):
    store = RecordStore(RESULTS / name)
    records = [store.load(trial_id) for trial_id in store.trial_ids()]
    assert len(records) == count and {record.state for record in records} == {"complete"}
    with_rows = [store.predictions(record) for record in records if record.files]  # raises where a byte is not right
    assert len(with_rows) == predicted


@pytest.fixture(scope="module")
def kept():
    return make_report([str(RESULTS / "rotten_tomatoes")])


def test_the_readme_says_what_the_report_of_the_kept_sweep_says(kept):
    said = " ".join([kept.summary["headline"], *kept.summary["details"]])
    quoted = " ".join(re.findall(r"^> (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert quoted == said
    drawn = next(standalone(figure.svg, figure.title) for figure in kept.figures if figure.name == "curve")
    shown = (ROOT / "docs" / "rotten_tomatoes.svg").read_text(encoding="utf-8")
    assert re.findall(r"<title>(.*?)</title>", drawn) == re.findall(r"<title>(.*?)</title>", shown)


def test_the_adaptive_sweep_names_the_depth_that_the_grid_names(kept):
    grid, adaptive = (report.summary["deepest_safe_freeze"][0]
                      for report in (kept, make_report([str(RESULTS / "rotten_tomatoes_adaptive")])))
    assert grid["freeze_depth"] == adaptive["freeze_depth"] == 3
    assert [(test["freeze_depth"], test["safe"]) for test in adaptive["tested"]] == [(3, True), (5, False), (4, False)]


def section_on(name):
    return (RESULTS / "README.md").read_text(encoding="utf-8").partition(f"## {name}")[2].partition("\n## ")[0]


def table_in(section):
    """Cells of the lines that begin with a number."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()
            if re.match(r"\| \d", line)]


def test_what_is_said_of_several_tasks_is_what_their_report_says():
    report = make_report(sorted(str(folder) for folder in (RESULTS / "tasks").iterdir()))
    section, levels = section_on("tasks"), report.summary["across_tasks"]["levels"]
    assert f"> {report.summary['headline']}\n" in section and report.summary["across_tasks"]["general"]
    assert table_in(section) == [
        [f"{100 * level['share']:.0f}%", *(f"{100 * level['losses'][name]:.1f}" for name in sorted(level["losses"])),
         f"{100 * level['mean']:.1f}", f"{100 * level['low']:.1f} to {100 * level['high']:.1f}",
         f"{level['safe']} of {level['judged']}"] for level in levels]
    drawn = next(standalone(figure.svg, figure.title) for figure in report.figures if figure.name == "across-tasks")
    shown = (ROOT / "docs" / "tasks.svg").read_text(encoding="utf-8")
    assert re.findall(r"<title>(.*?)</title>", drawn) == re.findall(r"<title>(.*?)</title>", shown)


def test_the_table_of_entities_is_of_the_kept_sweep():
    curve = make_report([str(RESULTS / "entities_mini")]).summary["curve"]
    rows = table_in(section_on("entities_mini"))
    assert [row[:4] for row in rows] == [
        [str(point["freeze_depth"]), f"{100 * point['estimate']:.1f}",
         f"{100 * point['low']:.1f} to {100 * point['high']:.1f}",
         ", ".join(f"{100 * value:.1f}" for value in point["values"].values())] for point in curve]
    beside = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for value in curve[0]["values"].values():
        assert f" {100 * value:.1f} (" in beside, "the comparison with a plain loop states the same trials"


def test_the_control_finds_nothing():
    summary = make_report([str(RESULTS / "null-a"), str(RESULTS / "null-b")]).summary
    assert "The same depth differs between no two curves beyond chance" in " ".join(summary["details"])


def test_the_table_of_strategies_is_of_the_kept_sweep():
    rows, budget = strategy_rows(RecordStore(RESULTS / "strategies_mini"))
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert f"strategies_mini -->\n{markdown(rows).strip()}\n<!--" in page
    assert f"Equal compute: {budget:.1f} s of training" in page
