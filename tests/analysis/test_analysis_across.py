"""Several tasks together: planted sweeps whose losses are known, worked out by hand."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from records import LAYERS, TaggedWorld, World, make_trial, publish, sweep_trials
from scipy import stats

from analysis.findings.across import across, steps_of
from analysis.findings.across_words import details, headline
from analysis.load.records import load_sources
from analysis.report.content import make_tables
from analysis.report.page import title
from analysis.report.report import make_curves, make_report
from analysis.statistics import tasks
from finetune.cli import main as cli

SEEDS = range(1, 6)


def task(folder, number, depths=(0, 2, 4, 6), slope=0.1, rows=60, seeds=SEEDS, sweep=None, kind="classification",
         name=None, world=None, **knobs):
    """A sweep of a data set of its own."""
    world = world or World(rows=rows, seed=number, task=kind)
    name = name or f"set{number}"
    publish(folder / (sweep or name), sweep_trials(
        world, depths=depths, seeds=seeds, sweep=sweep or name, dataset_name=f"/data/{name}",
        skill=lambda depth: 2.0 - slope * max(depth, 0), **knobs))
    return str(folder / (sweep or name))


def found_of(sources, margin=0.05):
    return across(make_curves(load_sources(sources)), margin)


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    folder = tmp_path_factory.mktemp("six")
    return [task(folder, number, slope=0.02 * number, seeds=(1, 2, 3)) for number in range(6)]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Five tasks in which nothing is lost."""
    folder = tmp_path_factory.mktemp("flat")
    return [task(folder, number, slope=0.0, rows=400, depths=(0, 6)) for number in range(5)]


@pytest.fixture(scope="module")
def steep(tmp_path_factory):
    """A task in which freezing fails."""
    return task(tmp_path_factory.mktemp("steep"), 9, slope=0.4, rows=400, depths=(0, 6))


def test_the_mean_is_over_tasks_with_a_t_interval_over_them(six):
    found = found_of(six)
    level = found.levels[-1]
    losses = [next(p for p in curve.points if p.arm.freeze_depth == LAYERS).loss.estimate
              for curve in make_curves(load_sources(six))]
    assert sorted(level.losses.values()) == pytest.approx(sorted(losses)) and level.mean == pytest.approx(
        np.mean(losses))
    half = stats.t.ppf(0.975, 5) * np.std(losses, ddof=1)
    assert (level.low, level.high) == pytest.approx((level.mean - half / 6**0.5, level.mean + half / 6**0.5))
    assert (level.new_low, level.new_high) == pytest.approx((level.mean - half * (7 / 6)**0.5,
                                                             level.mean + half * (7 / 6)**0.5))
    assert found.unit == "points" and [level.label for level in found.levels] == [
        "33% of the layers", "67% of the layers", "100% of the layers"]


def test_safe_counts_the_tasks_that_show_it_by_themselves(flat, steep):
    last = found_of([*flat[:4], steep], margin=0.1).levels[-1]
    assert (last.safe, last.judged) == (4, 5)
    assert (last.safe_low, last.safe_high) == pytest.approx((stats.beta.ppf(0.025, 4, 2), stats.beta.ppf(0.975, 5, 1)))


def test_fewer_than_five_tasks_say_nothing_in_general(six):
    found = found_of(six[:4])
    assert headline(found) is None and details(found)[0].startswith("4 data sets where 5 are needed: nothing general")
    assert all(math.isnan(level.low) and math.isnan(level.at_most) for level in found.levels)
    assert found.named is None and found.tested == []
    assert headline(found_of(six[:5])).startswith("On average over 5 data sets")


def test_a_share_that_loses_little_in_every_task_is_named(flat):
    found = found_of(flat)
    assert found.named == "100% of the layers"
    assert "freezing 100% of the layers loses" in headline(found) and "in 5 of 5" in headline(found)


def test_one_task_that_loses_much_speaks_against_all(flat, steep):
    """Seeds and rows by the thousand cannot make up for a task in six in which a freeze fails."""
    assert found_of([*flat, steep]).named is None


def test_two_sweeps_of_one_data_set_count_once(six, tmp_path):
    again = task(tmp_path, 0, slope=0.3, sweep="again", train_size=100, seeds=(1, 2, 3))
    found = found_of([*six, again])
    assert len(found.tasks) == 6
    (name, curves), = found.averaged.items()
    assert len(curves) == 2 and "Counted once: " in details(found)[0]
    own = found_of(six).levels[-1].losses[name]
    assert found.levels[-1].losses[name] > own + 0.05
    assert len(found_of(six[:1] + [again] + six[1:2]).tasks) == 2
    assert found_of([six[0], again]) is None


def test_another_split_of_a_data_set_is_no_other_task(tmp_path):
    other = task(tmp_path, 2, name="set1", sweep="other split", split_seed=3, seeds=(1, 2))
    assert found_of([task(tmp_path, 1, seeds=(1, 2)), other]) is None


def test_models_on_one_data_set_are_the_tasks(tmp_path):
    sources = [task(tmp_path, 1, depths=(0, 6), seeds=(1, 2), sweep=f"s{number}",
                    model_name_or_path=f"lab/model-{number}") for number in range(5)]
    found = found_of(sources)
    assert found.kind == "model" and [t.name for t in found.tasks] == [f"model-{number}" for number in range(5)]
    both = [*sources, task(tmp_path, 2, model_name_or_path="lab/model-0")]
    assert found_of(both).kind == "data set" and len(found_of(both).tasks) == 2


def test_different_metrics_are_counted_as_shares_of_the_gain(six, tmp_path):
    found = found_of([*six, task(tmp_path, 9, kind="regression", depths=(0, 2, 4, 6))])
    assert found.unit == "gain" and found.metric is None and "The metrics differ" in details(found)[0]
    curve = next(c for c in make_curves(load_sources([str(tmp_path / "set9")])))
    point = curve.points[-1]
    assert found.levels[-1].losses["set9"] == pytest.approx(
        point.loss.estimate / (curve.reference.interval.estimate - curve.baseline))
    assert "% of the gain" in headline(found)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Five sets with entities in which nothing is lost."""
    folder = tmp_path_factory.mktemp("tagged")
    return [task(folder, number, slope=0.0, depths=(0, 6), world=TaggedWorld(300, seed=number)) for number in range(5)]


def test_sets_with_entities_are_tasks_like_others(tagged, tmp_path, capsys):
    assert cli(["report", *tagged, "--output_dir", str(tmp_path), "--margin", "0.05"]) == 0
    assert capsys.readouterr().out.startswith("On average over 5 data sets")
    general = json.loads((tmp_path / "summary.json").read_text())["across_tasks"]
    assert (general["n_tasks"], general["unit"], general["metric"]) == (5, "points", "f1")
    curves = make_curves(load_sources(tagged))
    losses = [curve.points[-1].loss.estimate for curve in curves]
    assert general["levels"][-1]["mean"] == pytest.approx(np.mean(losses))
    ends = [[np.mean([trial.record.metrics["test"]["f1"] for trial in point.trials]) for point in curve.points]
            for curve in curves]
    assert losses == pytest.approx([full - frozen for full, frozen in ends])


@pytest.mark.parametrize("scheme", ["IOB2", None])
def test_beside_tasks_of_whole_texts_they_count_by_their_share_of_the_gain(tmp_path, scheme):
    metric = "f1" if scheme else "accuracy"  # by name the metric of both
    words = task(tmp_path, 8, slope=0.1, world=TaggedWorld(seed=8, scheme=scheme))
    texts = [task(tmp_path, number, metric=metric, seeds=(1, 2)) for number in range(4)]
    found = found_of([words, *texts])
    assert (found.unit, found.metric, len(found.tasks)) == ("gain", None, 5)
    assert found_of(texts).unit == "points" and "The metrics differ" in details(found)[0]


def test_a_task_without_a_reference_or_without_a_gain_is_left_out_by_name(six, tmp_path):
    headless = task(tmp_path, 7, depths=(2, 4))
    nothing = World(rows=120, seed=8)
    publish(tmp_path / "set8", [make_trial(nothing, skill=-0.2, seed=seed, freeze_depth=depth, sweep="set8",
                                           dataset_name="/data/set8") for depth in (0, 6) for seed in SEEDS])
    found = found_of([*six, headless, str(tmp_path / "set8")])
    assert len(found.tasks) == 6 and len(found.left_out) == 2
    told = " ".join(found.left_out.values())
    assert "is not among its results" in told and "does not beat the baseline" in told


def F(*shares):
    return {Fraction(*share) for share in shares}


@pytest.mark.parametrize(("tried", "ends", "said"), [
    ([F((1, 6), (1, 2), (1, 1))] * 2, [(1, 6), (1, 2), (1, 1)], "the same shares"),
    ([F(*((d, 6) for d in range(1, 7))), F((4, 12), (8, 12), (12, 12)), F((6, 24), (12, 24), (18, 24), (1, 1))],
     [(1, 3), (2, 3), (1, 1)], "steps of 1/3"),
    ([F((1, 6)), F((1, 1))], [(1, 4), (1, 2), (3, 4), (1, 1)], "quarters")])
def test_tasks_of_other_sizes_meet_in_steps_and_nothing_is_interpolated(tried, ends, said):
    steps, told = steps_of(tried)
    assert [high for _, high in steps] == [Fraction(*end) for end in ends] and said in told
    assert [low for low, _ in steps] == [Fraction(0), *(high for _, high in steps[:-1])]


def test_a_model_with_more_layers_counts_by_its_deepest_depth_in_the_step(six, tmp_path):
    big = task(tmp_path, 9, depths=(0, 3, 4, 7, 12), record={"num_layers": 12})
    found = found_of([*six, big])
    assert found.steps.startswith("steps of 1/3")
    assert [level.frozen for level in found.levels] == [
        (pytest.approx(1 / 3), pytest.approx(1 / 3)), (pytest.approx(7 / 12), pytest.approx(2 / 3)), (1.0, 1.0)]
    assert [level.label for level in found.levels] == ["33% of the layers", "up to 67% of the layers",
                                                       "100% of the layers"]


def test_the_report_has_the_section_the_picture_and_the_numbers(flat, tmp_path, capsys):
    assert cli(["report", *flat, "--output_dir", str(tmp_path), "--margin", "0.05"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("On average over 5 data sets")
    summary = json.loads((tmp_path / "summary.json").read_text())
    general = summary["across_tasks"]
    assert general["n_tasks"] == 5 and general["general"] and len(general["levels"]) == 1
    assert summary["headline"] in (tmp_path / "report.html").read_text()
    drawn = (tmp_path / "figures" / "across-tasks.svg").read_text()
    assert all(f"<title>set{number}, 100% of the layers: " in drawn for number in range(5))
    assert "<title>mean over 5 data sets, 100% of the layers: " in drawn
    assert (tmp_path / "tables" / "across-tasks.tex").exists() and (tmp_path / "tables" / "each-task.tex").exists()


def test_one_task_has_no_such_section(six):
    one, two = make_report(six[:1]), make_report(six[:2])
    assert one.summary["across_tasks"] is None and "across-tasks" not in {figure.name for figure in one.figures}
    assert "across-tasks" in {figure.name for figure in two.figures}
    two = two.summary
    assert {"kind": "few-tasks", "text": "2 data sets where 5 are needed: nothing general follows"} in two["warnings"]
    assert two["headline"].startswith("Deepest safe freeze") and two["details"][0].startswith("2 data sets where 5")


def test_the_interval_over_tasks_covers_the_mean_of_the_tasks_there_are():
    rng = np.random.default_rng(1)
    covered = beyond = over = 0
    for _ in range(2000):
        values, new = rng.normal(1.0, 2.0, 6), rng.normal(1.0, 2.0)
        found = tasks.over_tasks(values)
        covered += found.low <= 1.0 <= found.high
        beyond += found.new_low <= new <= found.new_high
        over += tasks.at_most(values) >= 1.0
    assert 1860 < covered < 1935 and 1860 < beyond < 1935 and 1860 < over < 1935


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three metrics, one of which is better when it is smaller, a task that learnt nothing, a task of a long name."""
    folder = tmp_path_factory.mktemp("mixed")
    named = task(folder, 3, slope=0.05, metric="f1", name="a_collection_whose_name_is_too_long_for_a_legend")
    return [task(folder, 1, kind="regression"), task(folder, 2, metric="loss"), named,
            task(folder, 4, slope=0.0, seeds=(1, 2)), task(folder, 5, slope=-0.3, rows=300)]


def test_mixed_metrics_have_a_column_of_their_own(mixed):
    report = make_report(mixed)
    table = next(table for table in make_tables(report.summary, report.curves) if table.name == "curve")
    place = table.columns.index("metric")
    assert table.columns[place + 1] == "test result"
    assert {(row[0].text, row[place].text) for row in table.rows} >= {("set1", "pearson"), ("set2", "loss")}
    assert len({len(row) for row in table.rows} | {len(table.columns)}) == 1
    assert title(report.summary) == "sentence-transformers/all-MiniLM-L6-v2 on 5 data sets"


def test_a_task_that_gains_is_not_said_to_lose_less_than_nothing(mixed):
    found = found_of(mixed)
    assert found.levels[-1].losses["set5"] < 0
    told = details(found)[0]
    assert "set5 does best there (adds " in told and "loses −" not in headline(found) + told
    text = " ".join(make_report(mixed).summary["details"])
    assert "loses -" not in text and "loses −" not in text


def test_what_could_not_be_judged_is_said(mixed, six):
    found = found_of(six, margin=0.001)
    assert found.levels[-1].judged == 0 and found.named is None
    assert "By itself this freeze is judged in no data set, which takes 5 seeds" in details(found)[0]
    drawn = next(figure for figure in make_report(six).figures if figure.name == "across-tasks")
    assert "no data set could be judged by itself" in drawn.svg
    some = next(figure for figure in make_report(mixed).figures if figure.name == "across-tasks")
    assert "(1 data set could not: pale)" in some.caption and "a_collection_…_for_a_legend" in some.svg


def test_few_tasks_say_how_many_are_left_and_why(mixed, tmp_path):
    nothing = task(tmp_path, 8, slope=0.0, rows=300, record={"baseline": {"kind": "majority", "test": {
        "accuracy": 0.999}, "validation": {"accuracy": 0.999}}})
    report = make_report([*mixed[:2], nothing])
    general = report.summary["details"][0]
    assert general.startswith("2 data sets left where 5 are needed") and "Left out: set8 (full fine-tuning" in general
    told = [warning["text"] for warning in report.summary["warnings"] if warning["kind"] == "vacuous-margin"]
    assert len(told) == 1 and told[0].startswith("set8: full fine-tuning does not beat the baseline in accuracy (")
    assert "--metric" in told[0] and "--metric" not in report.summary["headline"]


def test_a_task_that_has_not_the_asked_metric_is_reported_by_its_own(tmp_path):
    sources = [task(tmp_path, 1), task(tmp_path, 2, kind="regression")]
    report = make_report(sources, metric="f1_macro")
    assert [curve.metric for curve in report.curves] == ["f1_macro", "pearson"]
    assert {"kind": "other-metric", "text": "set2: its task has no f1_macro: its own metric, pearson, is reported"} \
        in report.summary["warnings"]


def test_two_seeds_that_are_not_clearly_above_the_baseline_leave_nothing_to_lose(tmp_path):
    chance, clear = (task(tmp_path, number, slope=0.0, seeds=(1, 2), depths=(0, 6), rows=200, name=name,
                          record={"baseline": {"kind": "majority", "test": {"accuracy": level}, "validation": {}}})
                     for number, name, level in ((1, "chance", 0.89), (2, "clear", 0.5)))
    found = across(make_curves(load_sources([chance, clear, task(tmp_path, 3)])), 0.01)
    assert list(found.left_out) == ["chance"]


def test_details_of_a_curve_name_the_depth_that_they_speak_about(flat):
    told = [detail for detail in make_report(flat[:2], margins=[0.05]).summary["details"] if detail.startswith("set")]
    assert len(told) == 2 and all("You can freeze the whole backbone" in detail for detail in told)


def test_one_reason_that_leaves_out_several_is_told_once(six, tmp_path):
    headless = [task(tmp_path, number, depths=(2, 4)) for number in (7, 8)]
    report = make_report([*six, *headless])
    told = [warning["text"] for warning in report.summary["warnings"] if warning["kind"] == "task-left-out"]
    assert len(told) == 1 and told[0].startswith("set7, set8 say nothing over data sets: full fine-tuning")
    assert "Left out: set7, set8 (full fine-tuning" in report.summary["details"][0]
