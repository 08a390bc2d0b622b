"""A sweep that decides as it runs computes the loss that its report computes."""

from __future__ import annotations

import numpy as np
import pytest
from records import METRIC, NAMES, World, make_trial, publish

from analysis.load.records import load_sources
from analysis.report.report import make_curves
from analysis.statistics.paired import Answers, losses


def trials(world, seeds=(3, 1, 2, 5, 4, 6)):
    return [make_trial(world, freeze_depth=depth, seed=seed, skill=1.5 - 0.1 * depth) for depth in (0, 4)
            for seed in seeds]


def answers(made, depth):
    return [Answers(*(predictions[f"test_{part}"][::-1] for part in Answers._fields))
            for record, predictions in sorted(made, key=lambda one: one[0].config["seed"])
            if record.config["freeze_depth"] == depth]


@pytest.mark.parametrize("task", list(NAMES))
@pytest.mark.parametrize("metric", ["loss", None, "f1_macro"])
def test_it_is_the_reports_loss(tmp_path, task, metric):
    metric = {"regression": {"f1_macro": "mse"}}.get(task, {}).get(metric, metric) or METRIC[task]
    made = trials(World(rows=150, task=task))
    curve, = make_curves(load_sources([str(publish(tmp_path, made))]), metric=metric)
    point = next(p for p in curve.points if p.arm.freeze_depth == 4)
    found = losses(answers(made, 0), answers(made, 4), metric=metric, task=task, higher_is_better=curve.sign > 0)
    assert found == pytest.approx(tuple(point.loss), rel=1e-9, abs=1e-15)


def test_copies_count_once_and_other_rows_are_refused():
    world = World(rows=50)
    full, frozen = (answers(trials(world), depth) for depth in (0, 4))
    copied = [*frozen[:5], frozen[0]]
    assert losses(full, copied, metric="accuracy", task="classification").n_seeds == 5
    with pytest.raises(ValueError, match="different rows"):
        losses(full, [one._replace(ids=np.char.add(one.ids, "x")) for one in frozen], metric="accuracy",
               task="classification")
    with pytest.raises(ValueError, match="6 and 5 seeds"):
        losses(full, frozen[:5], metric="accuracy", task="classification")
