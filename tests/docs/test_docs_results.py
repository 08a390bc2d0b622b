"""The kept sweeps: their records are intact, and what the README quotes is what their report says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.figures.svg import standalone
from analysis.findings.checks_tuning import LEARNING_RATES
from analysis.report.report import make_report
from analysis.strategies import markdown, strategy_rows
from finetune.results import RecordStore

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(("name", "count", "predicted"), [("banking77", 79, 40),
                                                          ("rotten_tomatoes", 140, 80), ("null-a", 30, 30),
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
def flagship():
    return make_report([str(RESULTS / "banking77")])


@pytest.fixture(scope="module")
def reviews():
    return make_report([str(RESULTS / "rotten_tomatoes")])


def assert_drawn(report, name, picture):
    drawn = next(standalone(figure.svg, figure.title) for figure in report.figures if figure.name == name)
    shown = (ROOT / "docs" / picture).read_text(encoding="utf-8")
    assert re.findall(r"<title>(.*?)</title>", drawn) == re.findall(r"<title>(.*?)</title>", shown)


def test_the_readme_says_what_the_report_of_the_kept_sweep_says(flagship):
    said = " ".join([flagship.summary["headline"], *flagship.summary["details"]])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert " ".join(re.findall(r"^> (.*)$", readme, re.MULTILINE)) == said
    assert f"{flagship.summary['n_examples']:,} test rows" in readme.replace("\n", " ")
    assert f"{flagship.summary['train_size']:,} questions" in readme and "(docs/banking77.svg)" in readme
    assert_drawn(flagship, "curve", "banking77.svg")


def test_the_flagship_raises_no_warning_at_its_reference_and_its_named_depth(flagship):
    named = flagship.summary["deepest_safe_freeze"][0]["freeze_depth"]
    assert named == 5 and len(flagship.summary["curve"][0]["values"]) == 10
    for warning in flagship.summary["warnings"]:
        assert warning["kind"] == "inert-knob" and "at depth 6:" in warning["text"], warning
    for knob in LEARNING_RATES:
        assert len({trial.record.config[knob] for trial in flagship.loaded.trials}) >= 3, knob
    assert flagship.summary["train_size"] >= 1000


def test_the_table_of_the_flagship_is_of_the_kept_sweep(flagship):
    assert table_in(section_on("banking77")) == [
        [str(point["freeze_depth"]), f"{100 * point['estimate']:.1f}",
         f"{100 * point['low']:.1f} to {100 * point['high']:.1f}",
         *("" if point[name] is None else f"{100 * point[name]:.1f}" for name in ("loss", "loss_at_most")),
         *("" if point[name] is None else f"{point[name]:g}" for name in ("learning_rate", "head_learning_rate")),
         f"{point['train_seconds']:.1f}"] for point in flagship.summary["curve"]]
    at_one_point = make_report([str(RESULTS / "banking77")], margins=[0.01]).summary["deepest_safe_freeze"][0]
    assert at_one_point["freeze_depth"] is None


def test_the_reviews_are_drawn_as_their_report_draws_them(reviews):
    assert_drawn(reviews, "curve", "rotten_tomatoes.svg")
    safe, section = reviews.summary["deepest_safe_freeze"][0], section_on("rotten_tomatoes: ")
    three = next(point for point in reviews.summary["curve"] if point["freeze_depth"] == safe["freeze_depth"])
    assert safe["freeze_depth"] == 3 and (f"{100 * three['loss']:.1f} points are lost, at most "
                                          f"{100 * three['loss_at_most']:.1f} (") in section


def test_the_adaptive_sweep_names_the_depth_that_the_grid_names(reviews):
    grid, adaptive = (report.summary["deepest_safe_freeze"][0]
                      for report in (reviews, make_report([str(RESULTS / "rotten_tomatoes_adaptive")])))
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
    assert_drawn(report, "across-tasks", "tasks.svg")


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
