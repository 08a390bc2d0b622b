"""Amounts of a loss or an error are told in its own unit, in every text of a report; of a share in points."""

import json
import re

import pytest
from records import World, make_trial, publish, sweep_trials

from analysis.amounts import amounts, amounts_of, has_points, in_own_unit
from analysis.findings.across import across
from analysis.findings.across_words import details
from analysis.load.records import load_sources
from analysis.report.content import make_tables
from analysis.report.page import render
from analysis.report.report import make_curves, make_report
from analysis.statistics.sequential import Decision
from finetune.sweep.adaptive.words import look_text, sentences

TEN = range(1, 11)
CONFIDENCES = {"95%", "5%", "80%", "99%", "90%", "10%"}  # and what a single test has, below


def texts_of(value):
    """Every string of a summary."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts_of(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in texts_of(inner)]
    return [value] if isinstance(value, str) else []


def words_of(report):
    """Everything that a reader sees, without what is about recall, which has points whatever the metric."""
    figures = [figure for figure in report.figures if not figure.name.startswith("classes")]
    documents = render(report.summary, report.curves, figures, report.margins)
    labels = [text for figure in figures for found in labels_of(report, figure.name) for text in found]
    return "\n".join([*texts_of(report.summary), *documents.values(), *labels])


def table_of(report, name):
    return next(table for table in make_tables(report.summary, report.curves) if table.name == name)


def labels_of(report, name):
    """What a picture shows under the pointer, and what is written in it."""
    svg = next(figure for figure in report.figures if figure.name == name).svg
    return re.findall(r"<title>(.*?)</title>", svg), re.findall(r"<text[^>]*>(.*?)</text>", svg)


@pytest.fixture(scope="module")
def mse(tmp_path_factory):
    trials = sweep_trials(World(rows=400, task="regression"), depths=(0, -1, 2, 4, 6), seeds=TEN, metric="mse",
                          skill=lambda depth: 1.5 - 0.04 * max(depth, 0), margin=0.1)
    return make_report([str(publish(tmp_path_factory.mktemp("mse"), trials))])


@pytest.fixture(scope="module")
def loss(tmp_path_factory):
    """One seed of depth 2 learnt nothing."""
    world = World(rows=400)
    trials = [make_trial(world, skill=0.2 if (depth, seed) == (2, 10) else 3.5 - 0.05 * depth, seed=seed, metric="loss",
                         freeze_depth=depth, margin=0.05) for depth in (0, 2, 4, 6) for seed in TEN]
    return make_report([str(publish(tmp_path_factory.mktemp("loss"), trials))])


@pytest.mark.parametrize("name", ["mse", "loss"])
def test_nothing_is_told_in_points_or_percent(name, request):
    report = request.getfixturevalue(name)
    told = words_of(report)
    assert report.summary["metric"] == name and f"test {name}" in told and "loses at most" not in told
    shown = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", told, flags=re.DOTALL)
    assert not re.findall(r".{0,30}\bpoints?\b.{0,20}", shown)
    assert f"test {name} (%)" not in shown
    sentences = "\n".join(texts_of({k: report.summary[k] for k in ("answer", "headline", "details", "warnings",
                                                                    "deepest_safe_freeze")}))
    shares = re.findall(r"[\d.]+%(?! of the time)", sentences)
    assert set(shares) <= CONFIDENCES | {"98.3%", "97.5%"}


def test_the_headline_says_what_freezing_raises(mse, loss):
    assert mse.summary["headline"] == (
        "You can freeze the embeddings of all-MiniLM-L6-v2 on rotten_tomatoes_mini: it raises mse by at most 0.025 "
        "against full fine-tuning (95% confidence).")
    assert mse.summary["details"] == [
        "Tested in the order of a bisection (2, frozen embeddings), each at 98.3%, so that the verdict as a whole has "
        "95%: at that level it raises mse by at most 0.037. Depth 2 is not shown safe: it raises mse by 0.070, at most "
        "0.107 at the verdict's own level of 98.3% per test; to show it would take about 24 seeds."]
    assert loss.summary["headline"].endswith(
        "it raises the loss by at most 0.026 against full fine-tuning (95% confidence) and trains in 45% of the time.")


def test_a_margin_is_in_the_metrics_unit(mse):
    strict = make_report([str(mse.folder.parent)], margins=[0.01, 0.02])
    assert strict.summary["headline"] == (
        "No frozen depth of all-MiniLM-L6-v2 on rotten_tomatoes_mini is shown to raise mse by at most 0.01 against "
        "full fine-tuning.")
    methods = render(strict.summary, strict.curves, [], strict.margins)["report.md"]
    assert "bound of its rise in mse against full fine-tuning is at most 0.01 or 0.02; depths" in methods
    assert [row[0].text for row in table_of(strict, "verdict").rows] == ["0.01", "0.02"]


def test_levels_are_no_percentages(loss):
    warning = next(w["text"] for w in loss.summary["warnings"] if w["kind"] == "collapsed-seeds")
    assert warning == ("depth 2: seed 10 collapsed to the baseline (0.690) while the median seed did not; counted as "
                       "they are")


def test_tables_say_the_unit_in_their_columns(mse):
    curve, verdict = table_of(mse, "curve"), table_of(mse, "verdict")
    assert curve.columns[1] == "mse" and curve.columns[5:7] == ["raises mse by", "at most"]
    assert [cell.text for cell in curve.rows[2][:7]] == ["2", "0.511", "0.485", "0.538", "10", "0.070", "0.097"]
    assert verdict.columns[2] == "tested (raises mse by at most)"
    assert verdict.rows[0][2].text == "2 (0.107, not shown), then emb (0.037, safe)"
    assert table_of(mse, "comparisons").rows[1][2].text == "+0.070"


def test_pictures_are_drawn_in_the_metrics_unit(mse):
    hovers, labels = labels_of(mse, "differences")
    assert "change of test mse" in labels and "depth 2: +0.070 (+0.037 to +0.104)" in hovers
    assert "within the margin of 0.1" in labels_of(mse, "curve")[1]


def test_a_reference_in_doubt_and_a_vacuous_margin(tmp_path):
    world = World(rows=400, task="regression")
    trials = sweep_trials(world, seeds=TEN, metric="mse", skill=lambda depth: 1.5 if depth else 1.15)
    report = make_report([str(publish(tmp_path, trials))], margins=[0.2])
    told = {warning["kind"]: warning["text"] for warning in report.summary["warnings"]}
    assert re.match(r"full fine-tuning is worse by 0\.\d{3} of mse than depth \d, more than chance",
                    told["reference-in-doubt"])
    assert re.search(r"a margin of 0\.2 is not clearly below what full fine-tuning gains over the baseline "
                     r"\(0\.\d{3} of mse\): .* or a margin of about 0\.\d+ \(10% of the gain\)", told["vacuous-margin"])


@pytest.fixture(scope="module")
def differing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("differing")
    return [str(publish(folder / name, sweep_trials(World(rows=100, task=task, seed=number), sweep=name, metric=name,
                                                    dataset_name=name)))
            for number, (name, task) in enumerate([("accuracy", "classification"), ("mse", "regression"),
                                                   ("loss", "classification")])]


def test_curves_that_differ_in_the_unit_are_each_told_in_their_own(differing):
    report = make_report(differing, margins=[0.03])
    assert "at a margin of 3 points / 0.03 of loss / 0.03 of mse: " in report.summary["headline"]
    curve = table_of(report, "curve")
    metric, at = curve.columns.index("metric"), curve.columns.index("loses (points or own unit)")
    shown = {row[metric].text: (row[metric + 1], row[at]) for row in curve.rows if row[1].text == "6"}
    for name, (level, lost) in shown.items():
        assert lost.text == amounts(name).number(lost.value)
        assert level.text == (f"{level.value:.4f}" if name == "accuracy" else in_own_unit(level.value, 3))
    own = make_report(differing[1:])
    columns = [text for table in make_tables(own.summary, own.curves) for text in (*table.columns, table.note)]
    assert "loses (own unit)" in columns and not re.search(r"\bpoints\b", " ".join([*texts_of(own.summary), *columns]))


def test_several_tasks_of_one_error_are_not_said_to_differ_in_the_metric(tmp_path):
    sources = [str(publish(tmp_path / f"{i}", sweep_trials(World(rows=60, task="regression", seed=i), metric="mse",
                                                           dataset_name=f"set{i}"))) for i in range(2)]
    found = across(make_curves(load_sources(sources)), 0.05)
    assert found.unit == "gain" and "Amounts of mse are not averaged over data sets, so that" in details(found)[0]


# -- an adaptive sweep -------------------------------------------------------------------------------------------------

def decided(estimate, bound, state="safe"):
    return Decision(state, estimate, bound, estimate - 0.01, 5, 1, 0.99, 7 if state == "undecided" else None, 0)


def test_looks_of_a_sweep_are_told_in_the_metrics_unit():
    assert look_text(6, decided(0.0031, 0.0121), 12, "mse") == (
        "depth 6 of 12: raises mse by 0.0031, at most 0.012 after 5 seeds; safe")
    assert look_text(6, decided(-0.02, 0.05, "undecided"), 12, "loss") == (
        "depth 6 of 12: lowers the loss by 0.020, yet may raise it by up to 0.050 after 5 seeds; 2 more")
    assert look_text(6, decided(0.003, 0.012), 12, "accuracy") == (
        "depth 6 of 12: loses 0.3, at most 1.2 after 5 seeds; safe")
    entry = {"freeze_depth": 6, "look": 1, "seeds": 5, "state": "safe", "estimate": 0.003, "lower": 0.0, "bound": 0.012,
             "confidence": 0.99, "lost": 0}
    section = {"decisions": [entry], "num_layers": 12}
    assert sentences({**section, "metric": "mse"})[0].startswith("depth 6 of 12: raises mse by 0.0030, at most 0.012")
    assert sentences(section)[0].startswith("depth 6 of 12: loses 0.3, at most 1.2")  # of before it said the metric


def test_the_report_of_an_adaptive_sweep_of_an_error(tmp_path):
    world, fresh = World(rows=400, task="regression"), list(range(3, 23))
    trials = [make_trial(world, freeze_depth=depth, seed=seed, metric="mse", margin=0.2, skill=1.5 - 0.02 * depth,
                         phase="tune" if seed < 3 else "confirm") for depth in (0, 3, 5, 6) for seed in range(1, 8)]
    publish(tmp_path, trials)
    spec = {"method": "grid", "parameters": {"seed": {"values": [1, 2]}}, "metric": {"name": "validation/mse"}}
    section = {"candidates": [3, 5, 6], "margin": 0.2, "alpha": 0.05, "max_seeds": 20, "seeds": fresh,
               "population": "new_text", "decisions": [], "trained_ahead_unused": 0}
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "demo", "spec": spec, "trials": {"tune": []},
                                                     "adaptive": section}))
    report = make_report([str(tmp_path)])
    looks = table_of(report, "looks")
    assert "raises mse by" in looks.columns and "points" not in " ".join(texts_of(report.summary))
    assert re.search(r"(raises|lowers) mse by (at most )?0\.\d+", report.summary["answer"])


# -- the words themselves ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("value", "shown"), [
    (0.05342, "0.053"), (0.693147, "0.693"), (0.0034, "0.0034"), (0.00021, "0.00021"), (0.05, "0.050"),
    (1.23456, "1.235"), (12.3456, "12.35"), (706.58, "706.6"), (1234.5, "1,234"), (-0.02, "−0.020"), (0.0, "0"),
    (-1e-17, "0")])
def test_numbers_have_as_many_digits_as_say_something(value, shown):
    assert in_own_unit(value) == shown


def test_who_has_points():
    assert [name for name in ("accuracy", "f1", "matthews", "pearson", "loss", "mse") if has_points(name)] == [
        "accuracy", "f1", "matthews", "pearson"]
    assert amounts_of(["loss", "loss"]).column == "raises the loss by"
    assert amounts_of(["accuracy", "f1"]).column == "loses (points)"
    assert amounts_of(["mse", "loss"]).column == "loses (own unit)"


def test_a_gain_is_not_a_rise():
    own = amounts("mse")
    assert own.loses(-0.004) == "lowers mse by 0.0040" and own.signed(-0.004) == "−0.0040"
    assert own.bounded(-0.004, 0.003) == "lowers mse by 0.0040, yet may raise it by up to 0.0030"
    assert own.bounded(-0.05, -0.02) == "lowers mse by 0.050, at least 0.020"
    assert amounts("f1").bounded(-0.004, 0.003) == "gains 0.4 points, yet may lose up to 0.3"
