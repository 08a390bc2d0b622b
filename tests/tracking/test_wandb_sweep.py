"""`wandb sweep` and `wandb agent`, unchanged, against a server on the loopback interface."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from wandb_stage import LAUNCHED, keys_in, stage, until

from finetune.config import TrialConfig
from finetune.results import RecordStore
from finetune.trial import run_trial

pytestmark = pytest.mark.timeout(600)
SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


@pytest.fixture
def staged(tmp_path, tiny_bert_dir):
    with stage(tmp_path, tiny_bert_dir) as director:
        yield director


def records(staged):
    return {record.trial_id: record for record in RecordStore(staged.folder / "out")}


def test_two_agents_exhaust_the_grid_under_accelerate_launch(staged):
    sweep = staged.wandb_sweep(str(staged.sweep_file(command=LAUNCHED, freeze_depth=[0, 4])))
    staged.finish(staged.agent(sweep), staged.agent(sweep))
    runs, found = staged.runs(), records(staged)
    assert [run.state for run in runs] == ["finished"] * 2
    assert sorted(run.params()["freeze_depth"] for run in runs) == [0, 4]
    assert len({run.agent for run in runs}) == 2 and len(found) == 2
    for run in runs:
        record = found[run.params()["trial"]["trial_id"]]
        assert record.wandb_run["id"] == run.name and record.sweep == sweep.rsplit("/", 1)[-1]
        assert run.attributes["groupName"] == record.setting_id and run.attributes["jobType"] == "train"
        for split in ("validation", "test"):  # the best epoch's, where the last logged row has the last epoch's
            assert run.summary[f"{split}/loss"] == record.metrics[split]["loss"]
        assert run.values("validation/accuracy") == [entry["validation"]["accuracy"] for entry in record.history]
        alone = run_trial(TrialConfig.from_mapping({**staged.knobs(), **record.config}))
        assert alone.record.metrics == record.metrics
    read_back(staged, sweep, found)
    published(staged, sweep)
    assert not staged.server.unknown and not keys_in(staged.texts())
    until(lambda: not staged.left_behind(), "every process has ended", 120)


READ = """
import json, sys, wandb
sweep = wandb.Api().sweep(sys.argv[1])
runs = {run.id: {"state": run.state, "group": run.group, "summary": dict(run.summary), "config": run.config,
                 "rows": list(run.scan_history()), "artifacts": [a.type for a in run.logged_artifacts()]}
        for run in sweep.runs}
print("READ" + json.dumps({"best": sweep.best_run().id, "runs": runs, "state": sweep.state}, default=str))
"""


def read_back(staged, sweep, found):
    """wandb.Api() finds every run, sorts them by the sweep's metric, and has what the records say."""
    code, output = staged.run(sys.executable, "-c", READ, sweep)
    assert code == 0, output
    told = json.loads(output.partition("READ")[2].splitlines()[0])
    assert told["state"] == "FINISHED" and len(told["runs"]) == len(found)
    accuracies = {record.wandb_run["id"]: record.metrics["validation"]["accuracy"] for record in found.values()}
    assert accuracies[told["best"]] == max(accuracies.values())
    for record in found.values():
        run = told["runs"][record.wandb_run["id"]]
        assert (run["state"], run["group"], run["artifacts"]) == ("finished", record.setting_id, ["trial"])
        assert run["config"]["seed"] == record.config["seed"] and run["summary"]["state"] == "complete"
        assert [row["validation/loss"] for row in run["rows"]] == [
            entry["validation"]["loss"] for entry in record.history]


def published(staged, sweep):
    """The answer lies beside the runs."""
    trials = {run.name for run in staged.runs()}
    code, output = staged.run(sys.executable, "-m", "finetune", "report", f"wandb:{sweep}", "--output_dir", "report",
                              "--publish")
    assert code == 0 and "published: http" in output, output
    (run,) = (run for run in staged.runs() if run.name not in trials)
    assert (run.attributes["jobType"], run.state, run.project) == ("report", "finished", "stage")
    summary = json.loads((staged.folder / "report" / "summary.json").read_text())
    assert run.summary["answer"] == summary["answer"]
    assert run.summary["curve"]["_type"] == "table-file" and run.summary["curve"]["nrows"] == 2
    assert run.summary["report"]["_type"] == "html-file"


@pytest.mark.slow
def test_finetune_sweep_opens_one_run_per_trial(staged):
    file = staged.sweep_file(freeze_depth=[2], seed=[1, 2], num_train_epochs=1)
    code, output = staged.run(sys.executable, "-m", "finetune", "sweep", str(file), "--workers", "1")
    assert code == 0, output
    runs, found = staged.runs(), records(staged)
    assert [(run.state, run.project, run.attributes["jobType"]) for run in runs] == [("finished", "stage", "tune")] * 2
    assert {run.name for run in runs} == {record.wandb_run["id"] for record in found.values()}
    assert {run.attributes["groupName"] for run in runs} == {record.setting_id for record in found.values()}
    assert all(run.params()["trial"]["sweep"] == record.sweep == "staged" for run in runs for record in found.values())
    assert not keys_in(staged.texts())


@pytest.mark.slow
def test_a_command_without_arguments_takes_them_from_the_sweep(staged):
    command = [sys.executable, "-m", "finetune.train"]
    sweep = staged.wandb_sweep(str(staged.sweep_file(command=command, freeze_depth=[2],
                                                     optimizer={"parameters": {"beta2": {"value": 0.98}}})))
    staged.finish(staged.agent(sweep))
    (record,) = records(staged).values()
    assert record.config["freeze_depth"] == 2 and record.config["optimizer"]["beta2"] == 0.98
    assert [run.state for run in staged.runs()] == ["finished"]


@pytest.mark.slow
def test_a_function_of_wandb_agent_is_the_same_trial(staged):
    sweep = staged.wandb_sweep(str(staged.sweep_file(freeze_depth=[2])))
    code = f"import wandb, finetune.train as t; wandb.agent({sweep!r}, function=lambda: t.run([]), count=1)"
    exit_code, output = staged.run(sys.executable, "-c", code)
    assert exit_code == 0, output
    (record,) = records(staged).values()
    assert record.config["freeze_depth"] == 2 and [run.state for run in staged.runs()] == ["finished"]


@pytest.mark.slow
def test_a_function_may_have_opened_the_run_itself(staged):
    sweep = staged.wandb_sweep(str(staged.sweep_file(freeze_depth=[2])))
    code = ("import wandb, finetune.train as t\ndef function():\n    with wandb.init(): t.run([])\n"
            f"wandb.agent({sweep!r}, function=function, count=1)")
    exit_code, output = staged.run(sys.executable, "-c", code)
    assert exit_code == 0, output
    assert [run.state for run in staged.runs()] == ["finished"]
    assert staged.runs()[0].summary["state"] == "complete"


@pytest.mark.parametrize("file", [
    pytest.param(path, id=path.stem, marks=[] if path.stem == "freeze_depth" else pytest.mark.slow) for path in SWEEPS])
def test_wandb_sweep_takes_our_files(staged, file):
    code, output = staged.run("wandb", "sweep", "--project", "stage", str(file))
    assert code == 0 and "wandb agent tester/stage/" in output, output
    assert "warning" not in output.lower()
    config = next(iter(staged.server.state.sweeps.values())).config
    assert config["command"] == ["accelerate", "launch", "-m", "finetune.train", "${args}"]


def test_a_child_that_dies_says_why_and_the_agent_goes_on(staged):
    """freeze_depth 9 has no layer; `${args}` of the other point is fine."""
    sweep = staged.wandb_sweep(str(staged.sweep_file(freeze_depth=[9, 2], num_train_epochs=1)))
    staged.finish(staged.agent(sweep))
    bad, good = staged.runs()
    assert (bad.state, bad.exitcode, good.state) == ("failed", 2, "finished")
    assert "-1 to 4" in bad.summary["error/message"] and bad.summary["error/kind"] == "ConfigError"
    assert len(records(staged)) == 1
    code, output = staged.run(sys.executable, "-m", "finetune", "report", f"wandb:{sweep}", "--output_dir", "report")
    assert code == 0, output
    assert "1 of 2 runs" in output and "-1 to 4" in output
    assert "1 of 2 points of the grid have no result: freeze_depth=9" in output


def test_a_wrong_knob_is_told_to_the_sweep_too(staged):
    sweep = staged.wandb_sweep(str(staged.sweep_file(freez_depth=[2])))
    staged.finish(staged.agent(sweep))
    (run,) = staged.runs()
    assert run.state == "failed" and "did you mean freeze_depth" in run.summary["error/message"]


@pytest.mark.slow
def test_a_child_that_dies_before_init_costs_one_point(staged):
    command = ["bash", "-c", 'if [ "$2" = 1 ]; then exit 3; fi; exec python -m finetune.train $0 $1 --seed=$2']
    file = staged.sweep_file(command=[*command, "--freeze_depth=2", f"--model_name_or_path={staged.model}", "1"])
    sweep = staged.wandb_sweep(str(file))
    staged.finish(staged.agent(sweep))
    assert [(run.state, run.connections) for run in staged.runs()] == [("crashed", 0)]


@pytest.mark.slow
def test_points_that_are_one_trial_are_trained_once(staged):
    """At depth L the backbone's learning rate acts on nothing: two points, one record, two finished runs."""
    sweep = staged.wandb_sweep(str(staged.sweep_file(freeze_depth=[4], learning_rate=[0.001, 0.01])))
    staged.finish(staged.agent(sweep))
    assert [run.state for run in staged.runs()] == ["finished"] * 2
    (record,) = records(staged).values()
    told = [json.dumps({key: value for key, value in run.summary.items() if key.startswith("test/")}, sort_keys=True)
            for run in staged.runs()]
    assert told[0] == told[1] and len(record.history) == len(staged.runs()[1].rows())
