"""Planted defects: each raises its own warning, and a clean sweep raises none."""

import json

import numpy as np
import pytest
from records import World, make_trial, publish, sweep_trials

from analysis.findings.checks import all_warnings
from analysis.load.records import load_sources
from analysis.report.report import make_curves

RATES = (1e-5, 5e-5, 1e-4)


@pytest.fixture(scope="module")
def world():
    return World(rows=200)


@pytest.fixture
def warned(tmp_path):
    """Warnings of these trials by kind, as one text."""
    def found(trials, margins=(), plan=None):
        publish(tmp_path, trials)
        if plan is not None:
            (tmp_path / "sweep.json").write_text(json.dumps(plan))
        loaded = load_sources([str(tmp_path)])
        return {warning.kind: warning.text for warning in all_warnings(loaded, make_curves(loaded), margins)}
    return found


def clean(world, best=5e-5, phase_seeds=(range(1, 4), range(4, 10)), depths=(0, 2, 4), **knobs):
    """Tuned on three rates, the middle one far ahead, and confirmed on fresh seeds."""
    tuning, fresh = phase_seeds
    trials = [make_trial(world, freeze_depth=depth, learning_rate=rate, seed=seed, skill=1.6 if rate == best else 0.6,
                         **knobs) for depth in depths for rate in RATES for seed in tuning]
    return trials + [make_trial(world, freeze_depth=depth, learning_rate=best, seed=seed, skill=1.6, phase="confirm",
                                **knobs) for depth in depths for seed in fresh]


def test_a_clean_sweep_raises_no_warning(world, warned):
    assert warned(clean(world), margins=[0.01]) == {}


def test_best_learning_rate_on_the_edge_of_its_grid(world, warned):
    found = warned(clean(world, best=1e-4))
    assert set(found) == {"edge-of-grid"}
    assert "learning_rate: the best value 0.0001 is the highest" in found["edge-of-grid"]
    assert "full fine-tuning, depth 2, depth 4" in found["edge-of-grid"]


def test_collapsed_seeds(world, warned):
    trials = clean(world)
    trials[-1] = make_trial(world, freeze_depth=4, learning_rate=5e-5, seed=9, skill=-0.3, phase="confirm")
    found = warned(trials)
    assert found["collapsed-seeds"].startswith("depth 4: seed 9 collapsed to the baseline")


def with_an_inert_depth(world):
    """A clean sweep and depth 6, where every learning rate is the same setting."""
    trials = clean(world, depths=(0, 2))
    trials += [make_trial(world, freeze_depth=6, learning_rate=1e-4, seed=seed, skill=1.6, phase=phase)
               for phase, seeds in (("tune", range(1, 4)), ("confirm", range(4, 10))) for seed in seeds]
    return trials


def test_a_knob_that_acts_on_nothing_at_a_depth(world, warned):
    trials = with_an_inert_depth(world)
    assert warned(trials)["inert-knob"] == "learning_rate acts on nothing at depth 6: its values are one setting there"


def test_a_knob_without_any_effect_on_predictions(world, warned):
    """Different values of a knob, the same predictions to the last bit."""
    trials = sweep_trials(world, depths=(0, 2))
    copies = []
    for record, predictions in trials:
        twin, _ = make_trial(world, freeze_depth=record.config["freeze_depth"], seed=record.config["seed"], skill=1.5,
                             warmup_ratio=0.3)
        copies.append((twin.model_copy(update={"metrics": record.metrics}), predictions))
    assert "warmup_ratio made no difference at all: 10 pairs" in warned(trials + copies)["inert-knob"]


def test_unequal_budgets(world, warned):
    trials = clean(world)
    trials += [make_trial(world, freeze_depth=2, learning_rate=2e-5, seed=seed, skill=0.4) for seed in (1, 2, 3)]
    found = warned(trials)
    assert found["unequal-budgets"].startswith("settings tried differ between depths: full fine-tuning 3, depth 2 4")


def test_a_depth_where_a_knob_is_inert_has_no_unequal_budget(world, warned):
    trials = with_an_inert_depth(world)
    assert "unequal-budgets" not in warned(trials)


def test_a_missing_seed(world, warned):
    trials = [t for t in clean(world) if (t[0].config["freeze_depth"], t[0].config["seed"]) != (4, 9)]
    found = warned(trials)
    assert found["missing-seeds"] == "depth 4: seed 9 never run; no verdict while a seed has no result"
    assert found["fewer-seeds"].startswith("depth 4 has fewer seeds than the rest")


@pytest.mark.fault("numbers", "a seed failed or was pruned", "counted in the report, as the baseline")
@pytest.mark.parametrize(("state", "said"), [("failed", "failed (out-of-memory)"), ("pruned", "pruned")])
def test_a_seed_that_failed_or_was_pruned(world, warned, state, said):
    trials = clean(world)
    trials[-1] = make_trial(world, freeze_depth=4, learning_rate=5e-5, seed=9, phase="confirm", state=state,
                            kind="out-of-memory")
    assert warned(trials)["missing-seeds"].startswith(f"depth 4: seed 9 {said}")


def test_a_seed_with_a_metric_that_is_not_finite(world, warned):
    trials = clean(world)
    record, predictions = trials[-1]
    record.metrics["test"]["accuracy"] = None
    assert "seed 9 no finite accuracy" in warned(trials)["missing-seeds"]


def test_seeds_that_both_tuned_and_testified(world, warned):
    found = warned(clean(world, phase_seeds=(range(1, 4), range(3, 9))))
    assert "seed 3 tuned and confirmed: the same models chose and testified" in found["test-leak"]


def test_a_setting_chosen_on_test(world, warned):
    """Validation prefers 5e-5; 1e-4, the best on test, was confirmed."""
    trials = []
    for depth in (0, 2):
        for rate, validation, test in ((5e-5, 0.9, 0.80), (1e-4, 0.8, 0.95)):
            for seed in (1, 2, 3):
                record, predictions = make_trial(world, freeze_depth=depth, learning_rate=rate, seed=seed)
                record.metrics["validation"]["accuracy"], record.metrics["test"]["accuracy"] = validation, test
                trials.append((record, predictions))
        trials += [make_trial(world, freeze_depth=depth, learning_rate=1e-4, seed=seed, phase="confirm")
                   for seed in range(4, 10)]
    found = warned(trials)["test-leak"]
    assert "the confirmed setting is not the one that validation prefers; it is the best on test" in found


def test_test_rows_in_the_validation_split(world, warned):
    trials = clean(world)
    for _, predictions in trials:
        predictions["validation_ids"] = np.concatenate([predictions["test_ids"][:7], predictions["validation_ids"][7:]])
    assert warned(trials)["test-leak"].startswith("7 rows of the test split also in the validation split")


def test_tuned_and_measured_on_the_same_seeds(world, warned):
    trials = [t for t in clean(world) if t[0].protocol["phase"] == "tune"]
    found = warned(trials)
    assert "--confirm 10" in found["not-confirmed"] and "3 seeds where 5 are needed" in found["few-seeds"]


def test_a_depth_that_was_tuned_but_not_confirmed(world, warned):
    trials = [t for t in clean(world) if (t[0].config["freeze_depth"], t[0].protocol["phase"]) != (4, "confirm")]
    assert warned(trials)["not-confirmed"].startswith("depth 4: tuned, but not confirmed")


def test_best_epoch_is_the_last(world, warned):
    assert "best epoch is the last one" in warned(clean(world, best_epoch=3))["not-converged"]


def test_different_numbers_of_epochs(world, warned):
    trials = clean(world, depths=(0, 2)) + clean(world, depths=(4,), num_train_epochs=5)
    assert "full fine-tuning 3, depth 2 3, depth 4 5" in warned(trials)["unequal-epochs"]


def test_no_full_fine_tuning(world, warned):
    assert set(warned(clean(world, depths=(2, 4)))) == {"no-reference"}


def test_a_margin_chosen_after_the_run(world, warned):
    found = warned(clean(world), margins=[0.01, 0.03])
    assert found["margin"].startswith("margin 0.03 was chosen after the run (the sweep says 0.01)")


def test_a_sweep_that_is_not_finished(world, warned):
    trials = clean(world)
    plan = {"name": "demo", "spec": {"method": "grid", "parameters": {}},
            "trials": {"tune": [record.trial_id for record, _ in trials], "confirm": ["0" * 64]}}
    assert warned(trials, plan=plan)["unfinished"].startswith("the sweep is not finished: 1 of 46 planned trials")


def test_predictions_that_do_not_give_the_recorded_metric(world, warned):
    trials = clean(world)
    record, predictions = trials[-1]
    record.metrics["test"]["accuracy"] = 0.123
    assert "the record says accuracy 0.123" in warned(trials)["predictions"]


def test_different_devices_and_processes(world, warned):
    trials = clean(world)
    record, predictions = trials[-1]
    trials[-1] = record.model_copy(update={"environment": {"device": "a GPU", "threads": 2}}), predictions
    trials.append((record.model_copy(update={"trial_id": "f" * 64}), predictions))
    found = warned(trials)
    assert "different devices (a GPU, cpu)" in found["mixed-devices"]
    assert "seed 9 trained more" in found["repeated-trials"]


@pytest.mark.fault("bytes", "a damaged record in a report", "set aside and named")
def test_a_damaged_record_is_set_aside_and_named(world, warned, tmp_path):
    trials = clean(world)
    publish(tmp_path, trials)
    path = tmp_path / "trials" / trials[-1][0].trial_id / "record.json"
    path.write_text(path.read_text().replace('"complete"', '"pruned"'))
    loaded = load_sources([str(tmp_path)])
    found = {w.kind: w.text for w in all_warnings(loaded, make_curves(loaded))}
    assert "is damaged and not used" in found["damaged-record"] and not path.exists()
    assert "seed 9 never run" in found["missing-seeds"]


def test_a_warning_of_several_curves_is_said_once(world, warned):
    trials = [t for pooling in ("mean", "cls") for t in clean(world, best=1e-4, pooling=pooling)]
    assert warned(trials)["edge-of-grid"].startswith("all curves: learning_rate")
