"""A report reads well: strategies sorted and named as such, an axis to scale, curves named in the fewest words."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from records import World, make_trial, publish, sweep_trials

from analysis.figures.plots import depth_ticks
from analysis.figures.plots_cost import COSTS, changes, draw_pareto, pareto
from analysis.figures.plots_detail import class_changes
from analysis.figures.plots_tuning import arm_styles, tuning_grid
from analysis.load.records import load_sources
from analysis.report.content import curve_table
from analysis.report.report import make_curves, make_report

STRATEGIES = {"full": 1.5, "prefix:2": 1.2, "bitfit": 1.6, "lp_ft:1": 0.6, "freeze:*attention*": 0.9, "norm_only": 0.3}


def curves_of(*folders):
    return make_curves(load_sources([str(folder) for folder in folders]))


@pytest.fixture(scope="module")
def strategies(tmp_path_factory):
    world, depths = World(rows=150), {"full": 0, "prefix:2": 2}
    trials = [make_trial(world, skill=skill - (rate > 5e-5), seed=seed, learning_rate=rate, **(
        {"freeze_depth": depths[name]} if name in depths else {"strategy": name}))
        for name, skill in STRATEGIES.items() for seed in (1, 2) for rate in (5e-5, 1e-4)]
    return make_report([str(publish(tmp_path_factory.mktemp("strategies"), trials))])


def test_strategies_are_sorted_by_their_difference_everywhere(strategies):
    curve, = strategies.curves
    values = [point.interval.estimate for point in curve.shown]
    assert values == sorted(values, reverse=True) and curve.shown != curve.points
    order = [point.arm.strategy for point in curve.shown]
    without = [name for name in order if name != "full"]
    assert [change.label for change in changes(curve)] == without
    assert class_changes(curve).rows == without[::-1]  # from bottom to top
    assert tuning_grid(curve, "learning_rate").rows == order[::-1]
    assert [row[0].text for row in curve_table(strategies.summary, strategies.curves).rows] == order
    assert [comparison["a"] for comparison in strategies.summary["comparisons"]] == without


def test_a_report_of_strategies_says_strategy(strategies):
    curve, = strategies.curves
    table = curve_table(strategies.summary, strategies.curves)
    assert table.columns[0] == "strategy" and table.note.startswith("Each strategy's")
    figures = {figure.name: figure for figure in strategies.figures}
    assert figures["grid-learning_rate"].title == "Strategy × learning_rate"
    assert not any(re.search(r"\bdepth \d", text) for text in (point.arm.name for point in curve.points))
    assert class_changes(curve).row_name == "strategy"
    styles = arm_styles([point.arm for point in curve.points])
    assert len(set(styles)) == len(styles)


def test_depths_alone_keep_their_order_and_their_words(tmp_path):
    curve, = curves_of(publish(tmp_path, sweep_trials(World(rows=60), skill=lambda depth: 1 + 0.1 * depth)))
    assert [point.arm.label for point in curve.shown] == ["0", "2", "4", "6"]
    assert curve.noun == "depth" and curve.shown[1].arm.name == "depth 2"


def test_the_depth_axis_is_to_scale(tmp_path):
    report = make_report([str(publish(tmp_path, sweep_trials(World(rows=40), depths=(0, -1, 1, 4, 6), seeds=(1, 2))))])
    drawn = next(figure for figure in report.figures if figure.name == "curve").plot()
    ax, = drawn.axes
    assert list(ax.get_xticks()) == [0, 1, 2, 5, 7]  # a step for the embeddings, one for each layer
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "emb", "1", "4", "6"]


@pytest.mark.parametrize("layers", [6, 12, 24, 48])
@pytest.mark.parametrize("inches", [2.0, 8.0])
def test_labels_of_the_axis_do_not_touch(layers, inches):
    places = {0: 0, -1: 1} | {depth: depth + 1 for depth in range(1, layers + 1)}
    labels = depth_ticks(places, inches)
    steps = zip(labels, places.values(), strict=True)
    shown = [(place * inches / (layers + 2), label) for label, place in steps if label]
    assert shown[0][1] == "0" and shown[-1][1] == str(layers)
    assert all(b[0] - a[0] > 0.045 * (len(a[1]) + len(b[1])) for a, b in zip(shown[:-1], shown[1:], strict=True))


def test_labels_of_points_lie_side_by_side(strategies):
    curve, = strategies.curves
    figure = Canvas(figsize=(7.2, 4.2))
    ax = figure.subplots()
    draw_pareto([pareto(curve, COSTS[0])], COSTS[0], curve.metric, ax)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == len(STRATEGIES)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def names_of(tmp_path, *sweeps):
    """Curve names of sweeps that are given by their knobs."""
    folders = []
    for index, knobs in enumerate(sweeps):
        world = World(rows=30, seed=index if "dataset_name" in knobs else 0)
        folders.append(publish(tmp_path / str(index), sweep_trials(world, depths=(0, 2), seeds=(1,), **{
            "sweep": f"sweep {index}", **knobs})))
    curves = curves_of(*folders)
    return [curve.name for curve in curves], curves[0].protocol.group.also


def test_curves_are_named_by_what_differs_in_the_fewest_words(tmp_path):
    names, also = names_of(tmp_path, {"dataset_name": "/data/crlf", "train_size": 100, "sweep": "crlf, intl"},
                           {"dataset_name": "/data/intl", "sweep": "deep", "subset_seed": 1})
    assert sorted(names) == ["crlf", "intl"] and set(also) == {"train_size", "subset_seed"}


@pytest.mark.parametrize(("sweeps", "expected"), [
    ([{"train_size": 100}, {}], ["100 rows", "all rows"]),
    ([{"model_name_or_path": "lab/a"}, {"model_name_or_path": "lab/b"}], ["a", "b"]),
    ([{"model_name_or_path": "x/a"}, {"model_name_or_path": "y/a"}], ["x/a", "y/a"]),
    ([{"sweep": "null-a"}, {"sweep": "null-b"}], ["null-a", "null-b"]),
    ([{"model_name_or_path": f"lab/{m}", "train_size": n} for m in "ab" for n in (10, 20)],
     ["a, 10 rows", "a, 20 rows", "b, 10 rows", "b, 20 rows"])])
def test_a_label_needs_no_more_than_tells_curves_apart(tmp_path, sweeps, expected):
    assert sorted(names_of(tmp_path, *sweeps)[0]) == expected


def test_the_methods_paragraph_describes_the_verdict_that_was_drawn(tmp_path):
    from analysis.findings.methods import methods_paragraph
    curve, = curves_of(publish(tmp_path / "full", sweep_trials(World(rows=100))))
    told = methods_paragraph(curve, [0.01])
    assert "order of a bisection, each at 2.5% (Bonferroni over at most 2 tests)" in told and "shallow" not in told
    few, = curves_of(publish(tmp_path / "few", sweep_trials(World(rows=100), seeds=(1, 2))))
    assert "No verdict was drawn (2 seeds; a verdict needs 5)." in methods_paragraph(few, [0.01])
    assert np.isnan(few.points[0].interval.low)


def test_what_several_curves_have_in_common_is_told_once(tmp_path):
    from analysis.findings.methods import methods, methods_paragraph, notes

    curves = curves_of(*(publish(tmp_path / name, sweep_trials(World(rows=rows), dataset_name=name))
                         for name, rows in (("reviews", 100), ("mail", 120))))
    told = methods(curves, [0.01])
    assert [name for name, _ in told] == [*(curve.name for curve in curves), "All"]
    assert "120 test rows" in dict(told)["mail"] and "100 test rows" in dict(told)["reviews"]
    text = " ".join(paragraph for _, paragraph in told)
    for sentence in re.split(r"(?<=[.)]) (?=[A-Z])", methods_paragraph(curves[0], [0.01])):
        assert sentence in text
    assert text.count("A frozen layer holds its pretrained weights") == 1 == text.count("split-t")
    one = curves[:1]
    assert methods(one, [0.01]) == [(one[0].name, methods_paragraph(one[0], [0.01]))]
    curves[1].points[0].trials[0].record.data["notes"] = ["cut to 400 rows"]
    assert notes(curves)[0] == f"{curves[1].name}: cut to 400 rows" and len(notes(curves)) == 2


@pytest.mark.parametrize("lacking, said", [
    (range(20), "no trial came with predictions"), ([3], "seed 4 of full fine-tuning came without"),
    (range(5), "and 2 more came without predictions")], ids=["all", "one", "five"])
def test_records_without_predictions_are_named_in_one_line(tmp_path, lacking, said):
    trials = sweep_trials(World(rows=60))
    for index in lacking:
        trials[index] = (trials[index][0], {})
    curve, = curves_of(publish(tmp_path, trials))
    told = [note for note in curve.notes if "cover seeds only" in note]
    assert len(trials) == 20 and len(told) == 1 and said in told[0]
