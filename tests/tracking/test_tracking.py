"""A trial as W&B shows it, and what a process that was launched by an agent knows: no server, no client."""

from __future__ import annotations

import json

import pytest
import yaml

from analysis.load.from_wandb import _missing, parse_source
from analysis.load.records import Loaded, Trial
from finetune.config import TrialConfig
from finetune.errors import ConfigError
from finetune.results import TrialRecord
from finetune.tracking.launch import agreed_knobs, sweep_parameters
from finetune.tracking.mirror import config_of, flatten, nest, record_of, row_of, run_name, summary_of, tags
from finetune.train import parse_argv
from finetune.trial import run_trial
from finetune.trial.events import Observer


@pytest.fixture(scope="module")
def record(tiny_bert_dir):
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 32, "evaluation_size": 16, "num_train_epochs": 2,
             "freeze_depth": 2, "prefix_cache": False}
    return run_trial(TrialConfig.from_mapping(knobs), observer=Observer()).record


def through_wandb(record: TrialRecord) -> TrialRecord:
    """What wandb.Api() would give back: JSON all the way, and W&B's own keys among ours."""
    config = json.loads(json.dumps({**config_of(record.config, record.model_dump(mode="json")), "_wandb": {}}))
    summary = json.loads(json.dumps({**summary_of(record), "_step": 2, "_runtime": 3.0, "epoch": 2}))
    rows = [json.loads(json.dumps({**row_of(entry), "_step": entry["epoch"]})) for entry in record.history]
    return record_of(config, summary, rows)


def test_a_record_comes_back_from_config_summary_and_history(record):
    back = through_wandb(record).model_dump(mode="json")
    expected = record.model_dump(mode="json")
    same = ("trial_id", "setting_id", "state", "config", "effective", "metric", "task", "num_layers", "parameters",
            "deepest_trainable_layer", "freeze_plan", "best_epoch", "data", "environment")
    assert {name: back[name] for name in same} == {name: expected[name] for name in same}
    for split, values in expected["metrics"].items():
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        assert {name: back["metrics"][split][name] for name in numbers} == numbers
    assert [entry["validation"]["accuracy"] for entry in back["history"]] == [
        entry["validation"]["accuracy"] for entry in expected["history"]]


def test_a_failed_record_carries_its_reason(record):
    failed = record.model_copy(update={"state": "failed", "metrics": {}, "error": {
        "kind": "non-finite", "message": "the loss is nan"}})
    back = through_wandb(failed)
    assert back.state == "failed" and back.error == failed.error


@pytest.mark.parametrize(("config", "summary", "reason"), [
    ({}, {"state": "complete"}, "no `trial` section"), ({"trial": {"trial_id": "1"}}, {}, "not complete")])
def test_a_run_that_is_no_trial_of_ours_is_refused(config, summary, reason):
    with pytest.raises(ValueError, match=reason):
        record_of(config, summary, [])


def test_flatten_and_nest_are_inverse():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(nested) == {"a/b": 1, "a/c/d": 2, "e": 3} and nest(flatten(nested)) == nested


def test_names_and_tags_are_short_printable_lines():
    config = TrialConfig.from_mapping({"freeze_depth": 4, "seed": 12, "model_name_or_path": "/models/" + "x" * 300,
                                       "learning_rate": 3e-4, "dataset_name": "glue", "dataset_config_name": "mrpc"})
    name = run_name(config, "prefix:4")
    assert name.startswith("prefix:4 learning_rate=0.0003 ") and name.endswith(" seed=12") and len(name) <= 128
    assert tags(config, "prefix:4")[1:] == ["glue:mrpc", "prefix:4"]
    assert all(len(tag) <= 64 and tag.isprintable() for tag in tags(config, "pre\nfix\x1b[31m"))


# -- launched by an agent ----------------------------------------------------------------------------------------------

@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """What an agent leaves for its child."""
    def leave(**values):
        path = tmp_path / "config.yaml"
        content = {name: {"value": value} for name, value in values.items()}
        path.write_text("wandb_version: 1\n\n" + yaml.safe_dump(content))
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))

    return leave


def test_parameters_come_from_argv_or_else_from_the_sweep(drawn):
    assert agreed_knobs({"seed": "3"}) == {"seed": "3"}
    drawn(freeze_depth=4, optimizer={"beta2": 0.98})
    assert sweep_parameters() == {"freeze_depth": 4, "optimizer": {"beta2": 0.98}}
    assert agreed_knobs({}) == {"freeze_depth": 4, "optimizer": {"beta2": 0.98}}
    assert agreed_knobs({"output_dir": "out"}) == {"freeze_depth": 4, "optimizer": {"beta2": 0.98}, "output_dir": "out"}
    assert agreed_knobs({"freeze_depth": "4"}) == {"freeze_depth": "4", "optimizer": {"beta2": 0.98}}  # left out
    assert agreed_knobs({"freeze_depth": "4", "optimizer.beta2": "0.9"}) == {"freeze_depth": "4",
                                                                              "optimizer.beta2": "0.9"}


def test_what_a_resumed_run_brings_along_is_no_knob(drawn):
    drawn(freeze_depth=4, _wandb={"t": 1}, trial={"trial_id": "x"})
    assert agreed_knobs({}) == {"freeze_depth": 4}
    assert agreed_knobs({"freeze_depth": "4", "_wandb": "{}", "trial": "{}"}) == {"freeze_depth": "4"}


def test_an_argument_may_come_twice_if_it_says_the_same():
    knobs, _ = parse_argv(["--preemptible=True", "--seed=1", "--preemptible", "true", "--seed=1.0"])
    assert set(knobs) == {"preemptible", "seed"}
    with pytest.raises(ConfigError, match="--seed is given twice"):
        parse_argv(["--seed=1", "--seed=2"])


# -- read back ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source", ["wandb:entity/project/abc123", "wandb:entity/project/sweeps/abc123"])
def test_a_sweep_s_path(source):
    assert parse_source(source) == ("entity", "project", "abc123")


@pytest.mark.parametrize("source", ["wandb:", "wandb:project/abc", "wandb:a/b/c/d", "wandb:../../etc", "wandb:a/../b",
                                    "wandb:a/b/c\n", "wandb:a b/c/d"])
def test_no_sweep_s_path(source):
    with pytest.raises(ConfigError, match="ENTITY/PROJECT/SWEEP_ID"):
        parse_source(source)


def test_missing_points_are_counted_and_named(record):
    loaded = Loaded(trials=[Trial(record, "x", None, dict)])
    grid = {"method": "grid", "parameters": {"freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2]},
                                             "num_train_epochs": {"value": 2}}}
    (text,) = _missing(grid, loaded)
    assert text.startswith("3 of 4 points of the grid have no result: freeze_depth=0 seed=1, ")
    assert _missing({"method": "random", "run_cap": 5, "parameters": grid["parameters"]}, loaded) == [
        "1 of 5 runs have a result"]
    assert _missing({**grid, "parameters": {"freeze_depth": {"values": [2]}}}, loaded) == []
