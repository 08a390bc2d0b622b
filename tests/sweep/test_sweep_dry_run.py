"""`finetune sweep --dry_run` with a real worker, on a tiny model where what a trial costs is the question."""

import json
import os

import pytest

import sweeps
from finetune.errors import ConfigError
from finetune.sweep.estimate import dry_run
from finetune.sweep.plan import Description, Plan, SweepOptions
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.view.live import PlainView


def spec(model, **changes):
    parameters = {
        "model_name_or_path": {"value": str(model)}, "freeze_depth": {"values": [0, 4]}, "seed": {"values": [1, 2, 3]},
        "learning_rate": {"values": [1e-4, 1e-3]}, "train_size": {"value": 32}, "evaluation_size": {"value": 16},
        "num_train_epochs": {"value": 1}, "max_length": {"value": 16}, **changes,
    }
    return parse_spec({"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"},
                       "parameters": parameters}, default_name="toy")


def test_it_counts_prices_and_keeps_nothing(tiny_bert_dir, tmp_path, capfd):
    options = SweepOptions(tmp_path / "runs", workers=1)
    environment = dict(os.environ)

    forecast = dry_run(spec(tiny_bert_dir), options, PlainView())

    # At depth 4 of 4 the learning rate moves nothing: 3 + 6 trials of 12 points.
    assert (forecast.points, forecast.trials, forecast.done, forecast.confirm_trials) == (12, 9, 0, 0)
    assert len(forecast.labels) == 3 and all(label.endswith("seeds 1, 2, 3") for label in forecast.labels)
    assert forecast.seconds > 0
    models = 4 * (3 * 2 * 49_218 + 3 * 66)  # depth 0 at two learning rates and depth 4, three seeds: what trains
    assert models < forecast.disk_bytes < models + 9 * 50_000
    assert any("act on nothing" in note for note in forecast.notes)
    assert "validation: 16 of its 1000 rows are used (evaluation_size)" in forecast.notes  # said of the data, once
    assert "3 seeds and 16 test rows" in forecast.detectable
    assert not (tmp_path / "runs").exists() and dict(os.environ) == environment
    assert json.loads(forecast.text(as_json=True))["trials"] == 9
    assert "9 trials" in forecast.text() and "timing" in capfd.readouterr().err


def test_data_with_fewer_rows_than_a_probe_takes_is_timed_too(tiny_bert_dir, tmp_path):
    rows = "".join(json.dumps({"text": f"{word} film number {i}", "label": word}) + "\n"
                   for i in range(15) for word in ("good", "bad"))
    (tmp_path / "few.jsonl").write_text(rows)
    asked = spec(tiny_bert_dir, dataset_name={"value": str(tmp_path / "few.jsonl")}, seed={"values": [1]},
                 train_size={"value": None}, learning_rate={"value": 1e-4})

    forecast = dry_run(asked, SweepOptions(tmp_path / "runs", workers=1), PlainView())

    assert forecast.seconds > 0 and forecast.disk_bytes > 4 * 49_218  # the delta of depth 0
    assert "time: about" in forecast.text()


def standins(**changes):
    """Trials that train nothing: where what a trial costs is not the question."""
    return {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
        "dataset_name": {"value": "toy"}, "freeze_depth": {"values": [0, 4]}, "seed": {"values": [1]}, **changes}}


def test_what_is_done_costs_nothing_more(tmp_path):
    sweeps.sweep(tmp_path, standins())

    forecast = dry_run(parse_spec(standins(seed={"values": [1, 2]}), default_name="toy"),
                       SweepOptions(tmp_path, workers=1, task="sweep_standin"), PlainView())
    assert (forecast.trials, forecast.done) == (4, 2) and forecast.seconds > 0

    forecast = dry_run(parse_spec(standins(), default_name="toy"),
                       SweepOptions(tmp_path, workers=1, task="sweep_standin"), PlainView())
    assert (forecast.trials, forecast.done, forecast.seconds) == (2, 2, 0)


def test_a_bad_point_is_refused_before_anything_is_timed(tmp_path, capfd):
    with pytest.raises(ConfigError, match=r"freeze_depth = 9: allowed: -1\.\.4"):
        dry_run(parse_spec(standins(freeze_depth={"values": [0, 9]}), default_name="toy"),
                SweepOptions(tmp_path / "runs", workers=1, task="sweep_standin"), PlainView())
    assert "timing" not in capfd.readouterr().err


@pytest.mark.parametrize("metrics, noted", [({"pearson"}, True), ({"mse"}, False), (set(), False)])
def test_a_search_by_another_metric_than_the_verdict_s_is_noted(metrics, noted):
    searched = parse_spec({"method": "grid", "metric": {"name": "validation/mse", "goal": "minimize"},
                           "parameters": {"seed": {"values": [1, 2]}}}, default_name="toy")
    facts = {"trial_id": "t", "setting_id": "s", "strategy": "full"}
    descriptions = {name: Description({**facts, "metric": name}) for name in metrics}
    notes = Plan(searched, "study", (), descriptions, {}, 1, (), False, ["seed"]).notes()
    assert [note for note in notes if "go by" in note] == noted * [
        "the sweep compares settings by validation/mse, but a trial's best epoch, the margin and the report's verdict "
        "go by pearson; --set metric_for_best_model=mse makes them one"]
