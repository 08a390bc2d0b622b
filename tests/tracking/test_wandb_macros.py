"""W&B's command macros: what each writes is read, and the real agent starts the trial that it asked for."""

from __future__ import annotations

import json

import pytest
from wandb_stage import stage

from finetune.commands.train import parse_argv
from finetune.config import TrialConfig
from finetune.errors import ConfigError
from finetune.results import RecordStore
from finetune.sweep.spec.schema import parse_spec

WRITTEN = {
    "args": ["--freeze_depth=2", "--prefix_cache=False", "--frozen_dropout=True"],
    "args_no_equals": ["--freeze_depth", "2", "--prefix_cache", "False", "--frozen_dropout", "True"],
    "args_no_hyphens": ["freeze_depth=2", "prefix_cache=False", "frozen_dropout=True"],
    "args_no_boolean_flags": ["--freeze_depth=2", "--frozen_dropout"],
    "args_json": [json.dumps({"freeze_depth": 2, "prefix_cache": False, "frozen_dropout": True})],
}


@pytest.mark.parametrize("macro", WRITTEN)
def test_what_a_macro_writes_is_read(macro):
    config = TrialConfig.from_mapping(parse_argv(WRITTEN[macro])[0])
    left_out = macro == "args_no_boolean_flags"  # a false flag: it comes from the run's own configuration
    assert (config.freeze_depth, config.frozen_dropout, config.prefix_cache) == (2, True, left_out)


def test_a_file_of_json_is_read(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"freeze_depth": 2, "optimizer": {"beta2": 0.98}}))
    knobs, _ = parse_argv([str(tmp_path / "args.json"), "--seed=3"])
    config = TrialConfig.from_mapping(knobs)
    assert (config.freeze_depth, config.optimizer.beta2, config.seed) == (2, 0.98, 3)


@pytest.mark.parametrize(("argv", "sentence"), [
    (["+seed=1"], "Hydra"), (["++seed=1"], "Hydra"), (["--seed"], "--seed has no value"), (["word"], "not an option"),
    (["-s", "1"], "not an option"), (["no.json"], "cannot be read"), (["{1"], "is not JSON"), (["[1].json"], "cannot"),
    (["seed=1", "--seed=2"], "given twice"), (["--max_length", "--seed=1"], "--max_length has no value")])
def test_what_no_macro_writes_is_one_sentence(argv, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        parse_argv(argv)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(("name", "meant"), [
    ("eval/loss", "loss"), ("eval_loss", "loss"), ("val_acc", "accuracy"), ("eval_f1", "f1"), ("accuracy", "accuracy"),
    ("val/accuracy", "accuracy"), ("dev_acc", "accuracy"), ("eval_matthews_correlation", "matthews")])
def test_other_programs_names_of_metrics_get_the_right_suggestion(name, meant):
    raw = {"method": "grid", "metric": {"name": name, "goal": "maximize"}, "parameters": {"seed": {"values": [1, 2]}}}
    with pytest.raises(ConfigError, match=f"did you mean validation/{meant}\\?"):
        parse_spec(raw, default_name="sweep")


@pytest.fixture
def staged(tmp_path, tiny_bert_dir):
    with stage(tmp_path, tiny_bert_dir) as director:
        yield director


@pytest.mark.timeout(600)
@pytest.mark.parametrize("macro", [
    "args_no_boolean_flags", "args_json_file", pytest.param("args_no_hyphens", marks=pytest.mark.slow),
    pytest.param("args_no_equals", marks=pytest.mark.slow), pytest.param("args_json", marks=pytest.mark.slow)])
def test_the_agent_starts_the_trial_that_it_asked_for(staged, macro):
    command = ["${env}", "${interpreter}", "-m", "finetune.train", f"${{{macro}}}"]
    sweep = staged.wandb_sweep(str(staged.sweep_file(command=command, freeze_depth=[2], num_train_epochs=1,
                                                     save_model={"value": False}, frozen_dropout={"value": True})))
    staged.finish(staged.agent(sweep))
    (record,) = RecordStore(staged.folder / "out")
    assert record.config["freeze_depth"] == 2 and record.config["frozen_dropout"] is True
    assert record.config["prefix_cache"] is False and record.config["save_model"] is False  # flags that are left out
    assert record.config["num_train_epochs"] == 1 and record.config["max_length"] == 32
    assert [run.state for run in staged.runs()] == ["finished"]
