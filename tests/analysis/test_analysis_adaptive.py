"""The report of an adaptive sweep: its decisions from its records, bounds that hold after looks, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from records import World, make_trial, publish

from analysis.figures.plots import depth_curve, positions, tick_labels
from analysis.findings import checks, looks, verdict
from analysis.findings.answer import answer
from analysis.load.records import load_sources
from analysis.report.page import render
from analysis.report.report import make_curves
from analysis.report.summary import summarize
from analysis.statistics import sequential, stats

MARGIN = 0.03
CANDIDATES = (-1, 1, 2, 3, 4, 5, 6)
FRESH = tuple(range(3, 23))
ALPHA = 0.05 / 3


@pytest.fixture(scope="module")
def world():
    return World(rows=1200)


def skill(depth):
    return 1.5 if depth < 4 else 1.46 if depth == 4 else 1.1


def adaptive_sweep(folder, world, seeds, *, lost=(), extra=(), max_seeds=20, decisions=(), unused=0):
    """`seeds`: depth -> how many fresh seeds were trained. Two settings of two tuning seeds at every depth."""
    trials = []
    for depth, number in seeds.items():
        for rate in (5e-5, 1e-4):
            trials += [make_trial(world, freeze_depth=depth, learning_rate=rate, seed=s, margin=MARGIN,
                                  skill=skill(depth) - (rate > 5e-5)) for s in (1, 2)[:1 if rate > 5e-5 else 2]]
        trials += [make_trial(world, freeze_depth=depth, learning_rate=5e-5, seed=s, skill=skill(depth), margin=MARGIN,
                              phase="confirm", state="failed" if (depth, s) in lost else "complete")
                   for s in FRESH[:number]]
    publish(folder, [*trials, *extra])
    section = {"candidates": CANDIDATES, "margin": MARGIN, "alpha": 0.05, "max_seeds": max_seeds,
               "seeds": FRESH[:max_seeds], "population": "new_text", "decisions": decisions,
               "trained_ahead_unused": unused}
    spec = {"method": "grid", "parameters": {"seed": {"values": [1, 2]}}, "metric": {"name": "validation/accuracy"}}
    (folder / "sweep.json").write_text(json.dumps({"name": "demo", "spec": spec, "trials": {"tune": []},
                                                   "adaptive": section}))
    return str(folder)


class Found(NamedTuple):
    summary: dict
    curves: list


def report_of(sources, margins=(MARGIN,)):
    """A report's numbers without its pictures."""
    loaded = load_sources(sources)
    curves = make_curves(loaded)
    return Found(summarize(curves, margins, checks.all_warnings(loaded, curves, margins)), curves)


SEEDS = {0: 10, 3: 7, 5: 5, 4: 10}


@pytest.fixture(scope="module")
def report(tmp_path_factory, world):
    return report_of([adaptive_sweep(tmp_path_factory.mktemp("adaptive"), world, SEEDS)])


def test_the_decisions_are_those_of_each_look_on_its_first_seeds(report):
    curve, = report.curves
    found = looks.searched(curve, MARGIN)
    assert list(found.decisions) == [3, 5, 4] and found.step.now is None
    for depth, looked in found.decisions.items():
        point = next(p for p in curve.points if p.arm.freeze_depth == depth)
        for decision in looked:
            rows = curve.reference.measured.rows[:decision.seeds] - point.measured.rows[:decision.seeds]
            assert decision == sequential.decide(rows, MARGIN, ALPHA)
        assert [d.final for d in looked] == [False] * (len(looked) - 1) + [True]


def test_the_verdict_is_the_searchs_and_keeps_its_contract(report):
    safe, = report.summary["deepest_safe_freeze"]
    assert safe["freeze_depth"] == 4 and safe["confidence"] == 0.95
    assert [(test["freeze_depth"], test["safe"]) for test in safe["tested"]] == [(3, True), (5, False), (4, True)]
    assert all(set(test) == {"freeze_depth", "bound", "confidence", "safe", "seeds"} for test in safe["tested"])
    assert [test["confidence"] for test in safe["tested"]] == pytest.approx([1 - ALPHA] * 3)
    assert safe["reason"].startswith("depth 5 is too deep: it loses")
    search, = report.summary["adaptive"]
    assert {d["freeze_depth"]: d["bound"] for d in search["decisions"]}[4] == safe["tested"][2]["bound"]
    assert search["next"] is None and search["looks"] == [5, 7, 10, 14, 20]


def test_each_depth_stands_with_its_own_seeds_and_unvisited_ones_are_empty(report):
    assert {e["freeze_depth"]: len(e["values"]) for e in report.summary["curve"]} == {0: 10, 3: 7, 5: 5, 4: 10}
    assert not {warning["kind"] for warning in report.summary["warnings"]} & {"fewer-seeds", "missing-seeds",
                                                                              "unfinished", "not-confirmed"}
    drawn = depth_curve(report.curves[0], MARGIN)
    assert tick_labels([drawn], positions([drawn]), 8.0) == [
        "0\n10", "emb\n", "1\n", "2\n", "3\n7", "4\n10", "5\n5", "6\n"]
    assert drawn.safe_depth == 4 and len(drawn.points) == 4


def test_bounds_and_intervals_are_repeated_ones(report):
    curve, = report.curves
    for point in curve.depths:
        fixed = stats.interval(point.measured.parts())
        assert point.interval.low < fixed.low and point.interval.high > fixed.high
        if point.loss is not None:
            assert verdict.loss_bound(point, curve) > stats.upper_bound(point.loss)
            level = sequential.levels(0.05, 20)[sequential.looks().index(len(point.measured.seeds))]
            assert verdict.loss_bound(point, curve) == stats.upper_bound(point.loss, confidence=1 - level)
            assert curve.p_value(point.loss) >= stats.p_value(point.loss)


def test_the_words_say_that_looks_were_taken_and_how_the_level_was_kept(report):
    said = " ".join([report.summary["headline"], *report.summary["details"]])
    assert "You can freeze the first 4 of 6 layers" in said
    assert "depth 3 safe after 5 seeds, depth 5 too deep after 5 seeds, depth 4 safe after 10 seeds" in said
    assert "spent over looks at 5, 7, 10, 14, 20 seeds" in said and "repeated ones" in said
    assert "not about every shallower one" in said
    assert "It took 44 trials; the grid with 10 confirming seeds takes 112." in said


def test_the_page_shows_every_look_and_names_the_design(report):
    pages = render(report.summary, report.curves, [], [MARGIN])
    for page in (pages["report.md"], pages["report.html"]):
        assert "What each look said" in page and "Turnbull 1989" in page and "5 to 10 fresh seeds" in page
    assert "too deep" in pages["tables/looks.tex"]


def test_a_search_that_was_killed_says_what_is_next(tmp_path, world):
    report = report_of([adaptive_sweep(tmp_path, world, {0: 7, 3: 7, 5: 3})])
    safe, = report.summary["deepest_safe_freeze"]
    assert safe["freeze_depth"] == 3 and safe["reason"] == "depth 5 comes next and has not been looked at"
    assert "unfinished" in {warning["kind"] for warning in report.summary["warnings"]}
    assert {e["freeze_depth"] for e in report.summary["curve"]} == {0, 3}


def test_seeds_between_looks_wait_for_the_next_one(tmp_path, world):
    report = report_of([adaptive_sweep(tmp_path, world, {0: 9, 3: 8})])
    assert {e["freeze_depth"]: len(e["values"]) for e in report.summary["curve"]} == {0: 7, 3: 7}


def test_what_was_trained_ahead_does_not_enter_the_verdict(tmp_path, world):
    with_ahead = report_of([adaptive_sweep(tmp_path, world, {**SEEDS, 1: 5}, unused=8)])
    safe, = with_ahead.summary["deepest_safe_freeze"]
    assert [test["freeze_depth"] for test in safe["tested"]] == [3, 5, 4]
    assert "8 of them trained ahead for nothing" in " ".join(with_ahead.summary["details"])


def test_a_lost_seed_makes_a_depth_unsafe_and_is_named(tmp_path, world):
    report = report_of([adaptive_sweep(tmp_path, world, {0: 7, 3: 7, 1: 7, 2: 7}, lost=[(3, 5)])])
    safe, = report.summary["deepest_safe_freeze"]
    assert [(test["freeze_depth"], test["safe"]) for test in safe["tested"]] == [(3, False), (1, True), (2, True)]
    assert safe["freeze_depth"] == 2 and "seed 5 failed (non-finite)" in safe["reason"]
    assert any("it is not called safe" in warning["text"] for warning in report.summary["warnings"])


def test_a_depth_of_which_no_trial_has_a_result_is_not_safe_and_the_search_goes_on(tmp_path, world):
    failed = [make_trial(world, freeze_depth=3, learning_rate=rate, seed=1, margin=MARGIN, state="failed")
              for rate in (5e-5, 1e-4)]
    report = report_of([adaptive_sweep(tmp_path, world, {0: 5, 1: 5, 2: 5}, extra=failed)])
    safe, = report.summary["deepest_safe_freeze"]
    assert [(test["freeze_depth"], test["bound"] is None) for test in safe["tested"]][:2] == [(3, True), (1, False)]
    assert "unfinished" not in {warning["kind"] for warning in report.summary["warnings"]}
    assert safe["freeze_depth"] == 2 and safe["reason"] == "depth 3 is not shown safe: no trial has a result"


def test_a_reference_that_lost_a_seed_blocks_the_verdict(tmp_path, world):
    report = report_of([adaptive_sweep(tmp_path, world, {0: 7, 3: 7}, lost=[(0, 5)])])
    assert "full fine-tuning: seed 5 failed" in report.summary["headline"]


def test_another_margin_is_judged_on_what_was_trained(tmp_path, world):
    report = report_of([adaptive_sweep(tmp_path, world, SEEDS)], margins=[0.12])
    safe, = report.summary["deepest_safe_freeze"]
    assert safe["freeze_depth"] == 5 and safe["reason"] == "depth 6 comes next and has not been looked at"


def test_decisions_that_the_records_do_not_bear_out_are_named(tmp_path, world):
    told = [{"freeze_depth": 5, "look": 1, "seeds": 5, "state": "safe"}]
    report = report_of([adaptive_sweep(tmp_path, world, SEEDS, decisions=told)])
    assert any("the sweep decided safe, its records say unsafe" in warning["text"]
               for warning in report.summary["warnings"])
    assert report.summary["deepest_safe_freeze"][0]["freeze_depth"] == 4


def test_a_damaged_section_is_no_adaptive_sweep(tmp_path, world):
    source = adaptive_sweep(tmp_path, world, {0: 5, 3: 5})
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["adaptive"]["max_seeds"] = 3
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert load_sources([source]).plans == []


def test_no_depth_is_shown(tmp_path, world):
    report = report_of([adaptive_sweep(tmp_path, world, {0: 5, 3: 5})])
    found = answer(report.curves, 0.0001)
    assert "No frozen depth" in found.headline or "No verdict" in found.headline


def test_the_kept_sweep_gives_the_same_answer_to_a_search(tmp_path):
    """Its ten confirming seeds are enough for every look that the search takes."""
    kept = Path(__file__).parents[2] / "docs/results/rotten_tomatoes"
    content = json.loads((kept / "sweep.json").read_text())
    content["adaptive"] = {"candidates": CANDIDATES, "margin": 0.01, "alpha": 0.05, "max_seeds": 20,
                           "seeds": list(FRESH), "decisions": [], "trained_ahead_unused": 0}
    (tmp_path / "trials").symlink_to(kept / "trials")
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    curve, = make_curves(load_sources([str(tmp_path)]))
    found, safe = looks.searched(curve, 0.01), verdict.deepest_safe(curve, 0.01)
    assert safe.freeze_depth == 3 == found.step.named and found.step.now is None
    assert {depth: (last.state, last.seeds) for depth, last in found.last.items()} == {
        3: ("safe", 10), 5: ("futile", 5), 4: ("futile", 5)}


def test_the_setting_that_halving_prefers_stands_for_a_depth_that_an_earlier_sweep_confirmed_otherwise(tmp_path, world):
    other = [make_trial(world, freeze_depth=3, learning_rate=1e-4, seed=s, skill=0.5, margin=MARGIN, phase="confirm")
             for s in FRESH[:10]]
    report = report_of([adaptive_sweep(tmp_path, world, {0: 7, 3: 7}, extra=other)])
    entry = next(e for e in report.summary["curve"] if e["freeze_depth"] == 3)
    assert entry["learning_rate"] == 5e-5 and len(entry["values"]) == 7
