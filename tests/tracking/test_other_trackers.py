"""TensorBoard, MLflow and trackio with their real clients, on local files."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from finetune.config import TrialConfig, reporters
from finetune.errors import ConfigError
from finetune.tracking import trackers
from finetune.train import train
from finetune.trial import resolve_trial
from finetune.trial.events import Observer


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    rows = "".join(json.dumps({"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2}) + "\n"
                   for i in range(40))
    (folder / "films.jsonl").write_text(rows)
    return str(folder / "films.jsonl")


def config_of(films, model, folder, **changes):
    return TrialConfig.from_mapping({"model_name_or_path": str(model), "dataset_name": films, "max_length": 16,
                                     "num_train_epochs": 2, "freeze_depth": 4, "output_dir": str(folder), **changes})


@pytest.fixture(scope="module")
def told(films, tiny_bert_dir, tmp_path_factory):
    """(record, folder) of a trial that all three were told of."""
    folder = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        record = train(config_of(films, tiny_bert_dir, folder, report_to="tensorboard,mlflow,trackio"), view=Observer())
    return record, folder


def curve(record):
    return [entry["validation"]["accuracy"] for entry in record.history]


def test_tensorboard_has_rows_summary_and_knobs(told):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, folder = told
    (run,) = (folder / "tensorboard" / "train" / record.setting_id[:12]).iterdir()
    events = EventAccumulator(str(run)).Reload()
    read = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert [step for step, _ in read["validation/accuracy"]] == [1, 2]
    assert [value for _, value in read["validation/accuracy"]] == pytest.approx(curve(record))
    assert read["best/validation/accuracy"] == [(2, pytest.approx(record.metrics["validation"]["accuracy"]))]
    assert read["test/accuracy"][0] == (2, pytest.approx(record.metrics["test"]["accuracy"]))
    (knobs,) = run.glob("*/hparams.yml")
    assert "freeze_depth: 4" in knobs.read_text() and f"setting_id: {record.setting_id}" in knobs.read_text()


def test_mlflow_has_rows_summary_knobs_and_tags(told):
    from mlflow.tracking import MlflowClient

    record, folder = told
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("stellar-finetuning").experiment_id])
    read = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "validation/accuracy")]
    assert read == [(1, pytest.approx(curve(record)[0])), (2, pytest.approx(curve(record)[1]))]
    assert run.data.metrics["test/accuracy"] == pytest.approx(record.metrics["test"]["accuracy"])
    assert run.data.params["freeze_depth"] == "4" and run.data.tags["trial_id"] == record.trial_id
    assert run.data.tags["phase"] == "train" and run.info.status == "FINISHED"


def test_trackio_has_rows_summary_and_group(told):
    record, folder = told
    with sqlite3.connect(folder / "trackio" / "stellar-finetuning.db") as database:
        rows = [(step, json.loads(metrics)) for step, metrics in
                database.execute("select step, metrics from metrics order by id")]
        (config,) = (json.loads(text) for (text,) in database.execute("select config from configs"))
    assert [(step, row["validation/accuracy"]) for step, row in rows[:2]] == [
        (1, pytest.approx(curve(record)[0])), (2, pytest.approx(curve(record)[1]))]
    assert rows[-1][1]["test/accuracy"] == pytest.approx(record.metrics["test"]["accuracy"])
    assert config["freeze_depth"] == 4 and record.setting_id[:12] in json.dumps(config)


def test_it_is_no_part_of_the_trials_identity(told, films, tiny_bert_dir, tmp_path):
    record, _ = told
    assert resolve_trial(config_of(films, tiny_bert_dir, tmp_path, report_to="none")).trial_id == record.trial_id


def test_a_tracker_that_fails_never_stops_a_trial(films, tiny_bert_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/mlflow.db")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    record = train(config_of(films, tiny_bert_dir, tmp_path, report_to=["tensorboard", "mlflow"]), view=Observer())
    assert record.state == "complete"
    said = capsys.readouterr().err
    assert "tensorboard is lost while starting" in said and "mlflow is lost while starting" in said


def test_what_is_not_installed_names_the_command(films, tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.trial.resolve.TRACKERS", {"trackio": "no_such_module_here"})
    with pytest.raises(ConfigError, match=r"pip install 'stellar-finetuning\[trackio\]'"):
        resolve_trial(config_of(films, tiny_bert_dir, tmp_path, report_to="trackio"))


@pytest.mark.parametrize(("given", "names"), [
    (None, ("wandb",)), ("none", ()), ("mlflow, wandb", ("mlflow", "wandb")), (["trackio", "trackio"], ("trackio",))])
def test_names(given, names):
    assert reporters(given) == names


@pytest.mark.parametrize("wrong", ["tensorbord", "none,wandb", "all"])
def test_a_wrong_name_is_one_sentence(wrong):
    with pytest.raises(ConfigError, match="report_to = .*allowed: wandb, tensorboard, mlflow, trackio, or none alone"):
        TrialConfig.from_mapping({"report_to": wrong})


def test_stdout_stays_the_records(films, tiny_bert_dir, tmp_path):
    knobs = {"dataset_name": films, "model_name_or_path": tiny_bert_dir, "max_length": 16, "num_train_epochs": 1,
             "freeze_depth": 4, "output_dir": tmp_path, "report_to": "trackio"}
    done = subprocess.run([sys.executable, "-m", "finetune.train", "--json", *(f"--{k}={v}" for k, v in knobs.items())],
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "complete"


def test_an_attempt_that_does_not_count_keeps_its_rows_to_itself(told, films, tiny_bert_dir, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record, _ = told
    described = {"strategy": "prefix:4", "setting_id": record.setting_id, "trial_id": record.trial_id}
    with trackers(config_of(films, tiny_bert_dir, tmp_path, report_to="tensorboard")) as (_, (tracker,)):
        tracker.started(described)
        tracker.epoch_ended(1, {"epoch": 1, "validation": {"accuracy": 0.1}})
        tracker.retried()
        tracker.started(described)
        for epoch, accuracy in ((1, 0.75), (2, 0.875)):
            tracker.epoch_ended(epoch, {"epoch": epoch, "validation": {"accuracy": accuracy}})
        tracker.close()
    (run,) = (tmp_path / "tensorboard" / "train" / record.setting_id[:12]).iterdir()
    rows = EventAccumulator(str(run)).Reload().Scalars("validation/accuracy")
    assert [(row.step, row.value) for row in rows] == [(1, 0.75), (2, 0.875)]
