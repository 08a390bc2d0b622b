"""Planted worlds in which a premise of the report fails, and near ones in which it holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from records import World, make_trial, publish, sweep_trials

from analysis.report.report import make_report

SEEDS = range(1, 9)


@pytest.fixture(scope="module")
def world():
    return World(rows=400)


@pytest.fixture
def reported(tmp_path):
    """The summary of a report on these trials, with its warnings by kind; with `page` also report.html."""
    def made(trials, *, page=False, **options):
        publish(tmp_path, trials)
        report = make_report([str(tmp_path)], **options)
        summary = json.loads(json.dumps(report.summary, allow_nan=False))
        summary["kinds"] = {warning["kind"]: warning["text"] for warning in summary["warnings"]}
        if page:
            summary["page"] = (report.save().folder / "report.html").read_text()
        return summary
    return made


def flat(depth):
    return 1.5


def copied(trials, depth, seeds=SEEDS):
    """The trials, with those of a depth all as its first: other seeds and ids, the same predictions."""
    first = next(predictions for record, predictions in trials if record.config["freeze_depth"] == depth)
    source = next(record for record, _ in trials if record.config["freeze_depth"] == depth)
    return [(record.model_copy(update={"metrics": source.metrics}), first)
            if record.config["freeze_depth"] == depth and record.config["seed"] in seeds else (record, predictions)
            for record, predictions in trials]


def environment(trial, **changed):
    record, predictions = trial
    return record.model_copy(update={"environment": {**record.environment, **changed}}), predictions


# -- copies ------------------------------------------------------------------------------------------------------------

def test_copies_of_one_depth_count_as_one_seed_and_give_no_verdict(world, reported):
    summary = reported(copied(sweep_trials(world, skill=flat, seeds=SEEDS), 4))
    assert "depth 4: seeds 2" in summary["kinds"]["identical-seeds"] and summary["n_seeds"] == 1
    assert summary["headline"].startswith("No verdict") and "1 seed" in summary["headline"]
    assert next(p for p in summary["curve"] if p["freeze_depth"] == 4)["low"] is not None  # of one checkpoint
    assert len(next(p for p in summary["curve"] if p["freeze_depth"] == 4)["values"]) == 1


def test_some_copies_leave_the_rest(world, reported):
    summary = reported(copied(sweep_trials(world, skill=flat, seeds=SEEDS), 4, seeds=(1, 2)), margins=[0.1])
    assert "seed 2" in summary["kinds"]["identical-seeds"] and summary["n_seeds"] == len(SEEDS) - 1
    assert summary["verdict"]


def test_where_every_setting_is_copies_the_seed_is_named(world, reported):
    trials = sweep_trials(world, skill=flat, seeds=SEEDS)
    for depth in (0, 2, 4, 6):
        trials = copied(trials, depth)
    summary = reported(trials)
    assert "they are one seed" in summary["headline"] and "--seed" in summary["kinds"]["identical-seeds"]


def test_the_same_accuracy_is_no_copy(world, reported):
    trials = sweep_trials(world, skill=flat, seeds=SEEDS)
    scaled = [(record, {name: array * (1 + 0.01 * record.config["seed"]) if name.endswith("logits") else array
                        for name, array in predictions.items()}) for record, predictions in copied(trials, 4)]
    assert "identical-seeds" not in reported(scaled)["kinds"]


def test_the_same_weights_are_copies_whatever_the_predictions_say(world, reported):
    trials = [(record.model_copy(update={"weights": "a" * 64}) if record.config["freeze_depth"] == 2 else record, p)
              for record, p in sweep_trials(world, skill=flat, seeds=SEEDS)]
    assert "depth 2" in reported(trials)["kinds"]["identical-seeds"]


# -- confounded arms ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "value"), [
    ("versions", {"torch": "2.6.0"}), ("device", "H100"), ("commit", "abc"), ("attention", "eager"),
    ("processes", 2)])
def test_an_arm_under_other_circumstances_is_named_also_in_the_verdict(world, reported, name, value):
    usual = {"versions": {"torch": "2.13.0"}, "device": "A100", "commit": "def", "attention": "flash", "processes": 1}
    trials = [environment(trial, **{**usual, **({name: value} if trial[0].config["freeze_depth"] == 6 else {})})
              for trial in sweep_trials(world, skill=flat, seeds=SEEDS)]
    summary = reported(trials, page=name == "device", margins=[0.1])
    told = "torch" if name == "versions" else name
    assert f"{told} is not the same in all arms" in summary["kinds"]["confounded"]
    assert "depth 6" in summary["kinds"]["confounded"]
    assert f"depth 6 and full fine-tuning differ in {told} too" in summary["headline"]
    if name == "device":  # one page is enough: drawing its figures takes seconds
        assert "confounded" in summary["page"]


def test_a_verdict_on_other_arms_says_nothing_of_it(world, reported):
    falling = {0: 1.5, 2: 1.5, 4: 1.5, 6: -0.5}
    trials = [environment(trial, device="H100" if trial[0].config["freeze_depth"] == 6 else "A100")
              for trial in sweep_trials(world, skill=falling.get, seeds=SEEDS)]
    summary = reported(trials, margins=[0.1])
    assert summary["deepest_safe_freeze"][0]["freeze_depth"] == 4
    assert "confounded" in summary["kinds"] and "confounded" not in summary["headline"]


def test_an_arm_whose_records_do_not_say_it_is_named(world, reported):
    trials = [environment(trial, **({} if trial[0].config["freeze_depth"] == 6 else {"attention": "flash"}))
              for trial in sweep_trials(world, skill=flat, seeds=SEEDS)]
    assert "not recorded at depth 6" in reported(trials)["kinds"]["confounded"]


def test_one_seed_of_one_arm_elsewhere_is_no_balanced_mixture(world, reported):
    trials = [environment(trial, device="H100" if (trial[0].config["freeze_depth"], trial[0].config["seed"]) == (4, 1)
                          else "A100") for trial in sweep_trials(world, skill=flat, seeds=SEEDS)]
    assert "depth 4" in reported(trials)["kinds"]["confounded"]


def test_a_mixture_that_is_balanced_over_arms_is_a_note(world, reported):
    trials = [environment(trial, device="H100" if trial[0].config["seed"] % 2 else "A100")
              for trial in sweep_trials(world, skill=flat, seeds=SEEDS)]
    summary = reported(trials, margins=[0.1])
    assert "confounded" not in summary["kinds"] and "device varies" in summary["kinds"]["mixed-circumstances"]


# -- the reference -----------------------------------------------------------------------------------------------------

def test_a_reference_below_the_frozen_depths_is_in_doubt_with_evidence(world, reported):
    trials = sweep_trials(world, skill=lambda depth: 0.9 if depth == 0 else 1.5, seeds=SEEDS)
    summary = reported(trials)
    assert "the reference is in doubt" in summary["headline"]
    assert "best arm" in summary["headline"] or "Against depth" in summary["headline"]
    evidence = summary["kinds"]["reference-in-doubt"]
    assert "only one learning_rate was tried" in evidence and "training loss ends at" in evidence


def test_an_undertrained_reference_is_told_by_its_learning_curve(world, reported):
    trials = [make_trial(world, freeze_depth=depth, seed=seed, skill=1.5 if depth else 0.8,
                         best_epoch=2 if depth else 3) for depth in (0, 2, 4) for seed in SEEDS]
    assert "undertrained" in reported(trials)["kinds"]["reference-in-doubt"]


def test_a_freeze_that_is_better_by_chance_raises_no_doubt(world, reported):
    summary = reported(sweep_trials(world, skill=flat, seeds=SEEDS))
    assert "reference-in-doubt" not in summary["kinds"] and "in doubt" not in summary["headline"]


# -- the margin --------------------------------------------------------------------------------------------------------

def imbalanced(share):
    """A world in which one class has this share of the rows."""
    world = World(rows=2000)
    for split in world.splits.values():
        split["labels"] = (np.arange(len(split["labels"])) >= share * len(split["labels"])).astype(np.int64)
    log_priors = np.log([share, 1 - share])
    from finetune.training.evaluation import compute_metrics

    world.baseline = {"kind": "majority", **{
        split: compute_metrics("classification", np.tile(log_priors, (len(content["labels"]), 1)), content["labels"])
        for split, content in world.splits.items()}}
    return world


def test_a_margin_that_a_constant_answer_would_keep_blocks_the_verdict(reported):
    world = imbalanced(0.95)
    trials = sweep_trials(world, skill=lambda depth: 2.45, seeds=SEEDS)
    summary = reported(trials, margins=[0.01])
    assert summary["headline"].startswith("No verdict") and "not clearly below" in summary["headline"]
    assert "f1_macro" in summary["kinds"]["vacuous-margin"] or "--metric f1" in summary["kinds"]["vacuous-margin"]
    assert not summary["verdict"] and summary["deepest_safe_freeze"][0]["freeze_depth"] is None


def test_the_same_margin_far_below_the_gain_does_not(world, reported):
    summary = reported(sweep_trials(world, skill=flat, seeds=SEEDS), margins=[0.05])
    assert summary["verdict"] and "vacuous-margin" not in summary["kinds"]


def test_a_reference_at_the_baseline_has_nothing_to_lose(reported):
    world = imbalanced(0.9)
    summary = reported(sweep_trials(world, skill=lambda depth: 0.5, seeds=SEEDS))
    assert "nothing that freezing could lose" in summary["headline"]
