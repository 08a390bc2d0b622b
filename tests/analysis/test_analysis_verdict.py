"""Which setting stands for a depth, which seeds testify, and what may be said about it."""

import json

import numpy as np
import pytest
from records import World, make_trial, publish, sweep_trials

from analysis.findings import verdict
from analysis.findings.answer import answer
from analysis.load.records import load_sources
from analysis.report.report import make_curves
from analysis.statistics import stats

MARGIN = 0.05


@pytest.fixture(scope="module")
def world():
    return World(rows=800)


@pytest.fixture
def curves_of(tmp_path):
    def made(trials, **options):
        return make_curves(load_sources([str(publish(tmp_path, trials))]), **options)
    return made


@pytest.fixture
def curve_of(curves_of):
    def made(trials, **options):
        curve, = curves_of(trials, **options)
        return curve
    return made


def flat(depth):
    return 1.5


def falling(depth):
    return {0: 1.5, 2: 1.5, 4: 1.1, 6: 0.2}[depth]


def test_the_verdict_bisects_and_names_what_stood_in_the_way(world, curve_of):
    curve = curve_of(sweep_trials(world, skill=falling, seeds=range(1, 9)))
    safe = verdict.deepest_safe(curve, MARGIN)
    assert safe.freeze_depth == 2
    assert safe.reason.startswith("depth 4 is not shown safe") or "too deep" in safe.reason
    assert [(test["freeze_depth"], test["safe"]) for test in safe.tested] == [(4, False), (2, True)]
    assert {test["confidence"] for test in safe.tested} == {1 - 0.05 / 2}  # three depths: two tests at most
    assert all(test["bound"] > verdict.loss_bound(point, curve) for test in safe.tested
               for point in verdict.sequence(curve) if point.arm.freeze_depth == test["freeze_depth"])
    bounds = [verdict.loss_bound(point, curve) for point in verdict.sequence(curve)]
    assert bounds[0] <= MARGIN < bounds[1]


def test_the_claim_is_about_the_named_depth_only_where_a_shallower_one_is_not_shown(world, curve_of):
    curve = curve_of(sweep_trials(world, skill=lambda depth: 0.2 if depth == 2 else 1.5))
    safe = verdict.deepest_safe(curve, MARGIN)
    assert safe.freeze_depth == 6 and not safe.every_depth_up_to
    said = " ".join(answer([curve], MARGIN).details)
    assert "not about every shallower one" in said and "Every depth up to it" not in said


def test_all_depths_may_be_safe(world, curve_of):
    safe = verdict.deepest_safe(curve_of(sweep_trials(world, skill=flat, seeds=range(1, 9))), MARGIN)
    assert safe.freeze_depth == 6 and safe.every_depth_up_to
    assert safe.reason.startswith("no deeper freeze was tried")


def test_depth_minus_one_stands_between_full_and_one(world, curve_of):
    curve = curve_of(sweep_trials(world, depths=(1, -1, 0, 2), skill=flat))
    assert [point.arm.label for point in curve.points] == ["0", "emb", "1", "2"]
    assert [point.arm.label for point in verdict.sequence(curve)] == ["emb", "1", "2"]


@pytest.mark.parametrize("seeds", [1, 2, 3, 4])
def test_no_verdict_below_five_seeds(world, curve_of, seeds):
    curve = curve_of(sweep_trials(world, seeds=range(1, seeds + 1)))
    assert verdict.deepest_safe(curve, MARGIN).freeze_depth is None
    assert f"{seeds} seed" in verdict.blocked(curve)
    point = curve.points[0]
    assert point.interval.tag == stats.seed_tag(seeds)
    assert np.isfinite(point.interval.low) == (seeds != 2)


@pytest.mark.parametrize(("change", "reason"), [
    ({"state": "failed"}, "seed 3 failed (non-finite)"), ({"state": "pruned"}, "seed 3 pruned"), (None, "never run")])
def test_a_seed_without_result_blocks_the_verdict_and_is_named(world, curve_of, change, reason):
    trials = sweep_trials(world, depths=(0, 2), skill=flat, seeds=(1, 2, 4, 5, 6))
    trials += [make_trial(world, freeze_depth=0, skill=1.5, seed=3)]
    trials += [make_trial(world, freeze_depth=2, seed=3, **change)] if change else []
    curve = curve_of(trials)
    assert reason in verdict.blocked(curve) and "depth 2" in verdict.blocked(curve)
    assert verdict.deepest_safe(curve, 0.5).freeze_depth is None
    assert "No verdict" in answer([curve], MARGIN).headline


def test_a_lost_seed_counted_at_the_baseline_lowers_the_curve(world, curve_of):
    from analysis.findings.curves import counted_at_baseline

    trials = sweep_trials(world, depths=(0, 2), skill=flat)
    trials[-1] = make_trial(world, freeze_depth=2, seed=5, state="failed")
    curve = curve_of(trials)
    counted = counted_at_baseline(curve)
    assert counted.points[0].interval == curve.points[0].interval
    values = [*curve.points[1].measured.values, curve.baseline]
    assert counted.points[1].interval.estimate == pytest.approx(np.mean(values))
    assert counted_at_baseline(curve_of(sweep_trials(world, depths=(0, 2), skill=flat))) is None


def test_no_reference_no_verdict(world, curve_of):
    curve = curve_of(sweep_trials(world, depths=(2, 4), skill=flat))
    assert "full fine-tuning" in verdict.blocked(curve)


def tuned(world, rates=(1e-5, 1e-4), seeds=(1, 2, 3), **knobs):
    return [make_trial(world, freeze_depth=depth, skill=1.5 if rate == 1e-4 else 0.5, seed=seed, learning_rate=rate,
                       **knobs) for depth in (0, 2) for rate in rates for seed in seeds]


def test_confirmed_seeds_alone_are_reported(world, curve_of):
    confirmed = [make_trial(world, freeze_depth=depth, skill=1.4, seed=seed, learning_rate=1e-4, phase="confirm")
                 for depth in (0, 2) for seed in range(4, 10)]
    curve = curve_of(tuned(world) + confirmed)
    assert curve.protocol.confirmed
    for point in curve.points:
        assert point.measured.seeds == (4, 5, 6, 7, 8, 9)
        assert point.choice.setting.example.knobs["learning_rate"] == 1e-4
        assert len(point.choice.candidates) == 2


def test_the_setting_is_chosen_by_the_mean_on_validation(world, curve_of):
    curve = curve_of(tuned(world))
    assert {point.choice.setting.example.knobs["learning_rate"] for point in curve.points} == {1e-4}


def test_a_setting_that_lost_a_seed_cannot_win(world, curve_of):
    trials = tuned(world)
    lost = next(i for i, (record, _) in enumerate(trials) if record.config["learning_rate"] == 1e-4)
    depth, seed = trials[lost][0].config["freeze_depth"], trials[lost][0].config["seed"]
    trials[lost] = make_trial(world, freeze_depth=depth, seed=seed, learning_rate=1e-4, state="failed")
    chosen = {point.arm.freeze_depth: point.choice.setting.example.knobs["learning_rate"]
              for point in curve_of(trials).points}
    assert chosen == {depth: 1e-5, 2 - depth: 1e-4}


def test_the_sweeps_own_metric_chooses(world, tmp_path):
    """Two settings that accuracy and loss rank differently: the sweep's metric decides."""
    def trial(rate, seed, loss):
        record, predictions = make_trial(world, freeze_depth=0, seed=seed, learning_rate=rate,
                                         skill=1.6 if rate == 1e-4 else 1.2)
        record.metrics["validation"]["loss"] = loss
        return record, predictions
    trials = [trial(rate, seed, loss) for rate, loss in ((1e-4, 0.9), (1e-5, 0.3)) for seed in (1, 2)]
    publish(tmp_path, trials)
    plan = {"name": "demo", "spec": {"method": "grid", "parameters": {}, "metric": {"name": "validation/loss"}},
            "trials": {"tune": [record.trial_id for record, _ in trials]}}
    rates = []
    for metric in ("validation/loss", "validation/accuracy"):
        plan["spec"]["metric"]["name"] = metric
        (tmp_path / "sweep.json").write_text(json.dumps(plan))
        curve, = make_curves(load_sources([str(tmp_path)]))
        rates.append(curve.points[0].choice.setting.example.knobs["learning_rate"])
    assert rates == [1e-5, 1e-4]


def test_pairing_by_seed_and_row_narrows_the_loss(world, curve_of):
    curve = curve_of(sweep_trials(world, depths=(0, 2), skill=flat))
    paired = curve.points[1].loss
    other = stats.unpaired_parts(curve.points[0].measured.rows, curve.points[1].measured.rows)
    apart = np.hypot(*(stats.half_width(p.measured.parts(), 0.975) for p in curve.points))
    assert curve.points[1].paired and paired.estimate == pytest.approx(other.estimate)
    assert stats.half_width(paired, 0.975) < apart


def test_the_population_of_this_test_set_is_narrower(world, curve_of):
    trials = sweep_trials(world, depths=(0, 2), skill=flat)
    wide, narrow = (curve_of(trials, population=name).points[0].interval for name in ("new_text", "this_test_set"))
    assert wide.estimate == narrow.estimate and narrow.high - narrow.low < wide.high - wide.low


def test_records_without_predictions_speak_about_this_test_set_only(world, curve_of):
    curve = curve_of([(record, {}) for record, _ in sweep_trials(world, depths=(0, 2))])
    assert curve.population == "this_test_set" and curve.notes
    assert curve.points[0].measured.values == pytest.approx(
        [trial.metric("test", "accuracy") for trial in curve.points[0].trials])


def test_kept_gain_is_relative_to_the_baseline(world, curve_of):
    trials = sweep_trials(world, depths=(0, 2), skill=lambda depth: 1.5 - 0.1 * depth, seeds=range(1, 9))
    curve = curve_of(trials)
    gain = curve.points[0].interval.estimate - curve.baseline
    kept = (curve.points[1].interval.estimate - curve.baseline) / gain
    assert verdict.kept(curve, kept - 0.15).freeze_depth == 2
    assert verdict.kept(curve, min(kept + 0.15, 1.0)).freeze_depth is None


def test_where_less_is_better_a_higher_value_is_a_loss(world, curve_of):
    curve = curve_of(sweep_trials(world, skill=falling, seeds=range(1, 9)), metric="loss")
    assert curve.sign == -1
    assert curve.points[-1].interval.estimate > curve.points[0].interval.estimate
    assert curve.points[-1].loss.estimate > 0
    assert verdict.compare_to_full(curve)[-1].difference > 0


@pytest.mark.parametrize(("task", "metric"), [("classification", "f1_macro"), ("classification", "matthews"),
                                              ("multilabel", "f1_micro"), ("regression", "pearson"),
                                              ("regression", "mse")])
def test_every_kind_of_task_and_metric_has_intervals(tmp_path, task, metric):
    world = World(rows=120, task=task, classes=3 if task == "classification" else 2)
    publish(tmp_path, sweep_trials(world, depths=(0, 2), seeds=range(1, 6)))
    curve, = make_curves(load_sources([str(tmp_path)]), metric=metric)
    for point in curve.points:
        assert point.interval.low < point.interval.estimate < point.interval.high
        assert point.measured.values == pytest.approx([t.metric("test", metric) for t in point.trials], abs=1e-5)
    assert verdict.blocked(curve) is None and not curve.notes


def test_strategies_without_a_depth_stand_beside_the_depths(world, curve_of):
    trials = sweep_trials(world, depths=(0, 6), skill=flat)
    trials += [make_trial(world, strategy="lp_ft:1", skill=1.5, seed=seed) for seed in range(1, 6)]
    curve = curve_of(trials)
    assert [point.arm.label for point in curve.points] == ["full", "head_only", "lp_ft:1"]
    assert [point.arm.freeze_depth for point in curve.depths] == [0, 6]
    assert "lp_ft:1 by" in " ".join(answer([curve], MARGIN).details)


def test_data_sets_poolings_and_sizes_make_curves_of_their_own(world, curves_of):
    trials = [trial for pooling in ("mean", "cls") for trial in sweep_trials(world, depths=(0, 2), pooling=pooling)]
    assert [curve.name for curve in curves_of(trials)] == ["pooling cls", "pooling mean"]
    other = World(rows=100, seed=7)
    trials += sweep_trials(other, depths=(0, 2), dataset_name="elsewhere")
    names = [curve.name for curve in curves_of(trials)]
    assert len(names) == 3 and any("elsewhere" in name for name in names)


def test_a_knob_may_be_compared_instead_of_tuned(world, curves_of):
    assert len(curves_of(tuned(world), by=["learning_rate"])) == 2


def test_holm_is_over_the_family(world, curve_of):
    found = verdict.compare_to_full(curve_of(sweep_trials(world, skill=falling)))
    assert [c.p_adjusted for c in found] == pytest.approx(stats.holm([c.p_value for c in found]))
    assert all(c.bootstrap_low < c.difference < c.bootstrap_high for c in found)


def test_mcnemar_is_for_two_single_checkpoints_only(world, curve_of):
    one, = verdict.compare_to_full(curve_of(sweep_trials(world, depths=(0, 6), seeds=(1,))))
    assert 0 <= one.mcnemar_p <= 1 and one.note == "this checkpoint"
    many, = verdict.compare_to_full(curve_of(sweep_trials(world, depths=(0, 6), seeds=(1, 2, 3))))
    assert np.isnan(many.mcnemar_p)
