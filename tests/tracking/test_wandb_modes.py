"""W&B offline, off, out of reach, gone in the middle, its core killed: training goes on, the record is complete."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil
import pytest
import wandb
from wandb_server import API_KEY
from wandb_stage import keys_in, stage, until

from finetune import cli, train
from finetune.results import RecordStore

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def staged(tmp_path, tiny_bert_dir):
    with stage(tmp_path, tiny_bert_dir) as director:
        yield director


def the_record(staged, epochs=2):
    (record,) = RecordStore(staged.folder / "out")
    assert record.state == "complete" and len(record.history) == epochs and record.metrics["test"]
    assert RecordStore(staged.folder / "out").predictions(record)
    return record


def warnings(output):
    return [line for line in output.splitlines() if line.startswith("finetune: ")]


def start(staged, **changes):
    arguments = [f"--{name}={value}" for name, value in staged.knobs(**changes).items()]
    return staged.start("python", "-m", "finetune.train", *arguments, WANDB_FINISH_TIMEOUT="5")


def test_online(staged):
    code, output = staged.train("--preemptible=False", freeze_depth=2)
    assert code == 0, output
    record, (run,) = the_record(staged), staged.runs()
    assert run.state == "finished" and record.wandb_run["id"] == run.name and record.wandb_run["mode"] == "online"
    assert [row["epoch"] for row in run.rows()] == [row["_step"] for row in run.rows()] == [1, 2]
    assert run.params()["optimizer"] == {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-08}
    assert run.summary["parameters/trainable_share"] == pytest.approx(
        record.parameters["trainable"] / record.parameters["total"])
    assert run.summary["deepest_trainable_layer"] == 2 and run.summary["cost/train_seconds"] > 0
    assert run.summary["validation/accuracy"] == record.metrics["validation"]["accuracy"]
    assert run.attributes["groupName"] == record.setting_id and "prefix:2" in run.attributes["tags"]
    assert run.attributes["displayName"].startswith("prefix:2 ") and run.attributes["displayName"].endswith("seed=1")
    (artifact,) = staged.server.state.artifacts.values()
    sent = {name: staged.server.state.blobs[key] for name, key in artifact.files.items()}
    folder = RecordStore(staged.folder / "out").folder(record.trial_id)
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert not warnings(output) and not staged.server.unknown and not keys_in(staged.texts())


@pytest.mark.slow
def test_offline_runs_are_recorded_and_nothing_is_sent(staged):
    code, output = staged.train(freeze_depth=2, extra={"WANDB_MODE": "offline"})
    assert code == 0, output
    assert the_record(staged).wandb_run["mode"] == "offline"
    assert list(staged.folder.glob("out/wandb/offline-run-*/*.wandb"))
    assert not staged.server.requests and not keys_in(staged.texts())


@pytest.mark.parametrize(("changes", "told"), [
    ({"WANDB_MODE": "disabled"}, []), ({"WANDB_API_KEY": ""}, ["no API key"]),
    ({"WANDB_MODE": "", "WANDB_API_KEY": ""}, ["no API key"])], ids=["disabled", "no-key", "empty-mode"])
def test_off_means_no_run_and_at_most_one_line(staged, in_this_process, capfd, changes, told):
    with in_this_process(**changes):
        code = train.main([f"--{name}={value}" for name, value in staged.knobs(freeze_depth=2).items()])
    assert code == 0
    assert the_record(staged).wandb_run is None and not staged.server.requests
    lines = warnings(capfd.readouterr().err)
    assert len(lines) == len(told) and all(part in line for part, line in zip(told, lines, strict=True))

    with in_this_process(**changes):
        assert cli.main(["sync", str(staged.folder / "out")]) == 5
    why = ("no API key for W&B: run `wandb login`, or set WANDB_API_KEY" if told else
           "W&B's mode is disabled: nothing can be sent; unset WANDB_MODE")
    assert capfd.readouterr().err == f"finetune sync: {why}\n"


@pytest.mark.parametrize("command", [["train", "--train_size=8"], ["sweep", "quickstart"], ["doctor"]])
@pytest.mark.fault("input", "a WANDB_MODE that W&B does not know", "one sentence with the modes there are, exit 2")
def test_a_mode_that_nobody_knows_is_one_sentence(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "WANDB_MODE = 'ofline': allowed: online, offline" in error and "offline?" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.fixture
def in_this_process(staged, monkeypatch):
    """Run W&B's client in the test's own process, with the stage's environment: for what starts no wandb-core."""
    @contextlib.contextmanager
    def inside(**changes):
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("WANDB_")]:
                patch.delenv(name)
            for name, value in {**staged.environment(), **changes}.items():
                patch.setenv(name, value)
            patch.setattr("finetune.tracking.client._said", set())
            wandb.teardown()
            yield
            wandb.teardown()

    return inside


def test_a_server_out_of_reach_makes_it_an_offline_run_after_one_warning(staged):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    code, output = staged.train(freeze_depth=2, extra={"WANDB_BASE_URL": url, "WANDB_INIT_TIMEOUT": "4"})
    assert code == 0, output
    assert the_record(staged).wandb_run["mode"] == "offline"
    assert len(warnings(output)) == 1 and "cannot be reached" in warnings(output)[0]
    assert not keys_in(staged.texts()) and "Traceback" not in output


def test_a_server_that_vanishes_in_the_middle(staged):
    process = start(staged, freeze_depth=4, num_train_epochs=80)
    until(lambda: staged.runs() and len(staged.runs()[0].rows()) >= 2, "the run logs")
    staged.server.vanish()
    code, output = process.wait(280), process.log.read_text()
    assert code == 0, output
    record = the_record(staged, epochs=80)
    assert record.wandb_run["id"] == staged.runs()[0].name and record.wandb_run["lost"]
    assert len(warnings(output)) == 1 and "finetune sync" in warnings(output)[0], output
    assert API_KEY not in output and "Traceback" not in output


def test_a_killed_wandb_core(staged):
    process = start(staged, freeze_depth=4, num_train_epochs=80)
    until(lambda: staged.runs() and len(staged.runs()[0].rows()) >= 2, "the run logs")
    (core,) = [child for child in psutil.Process(process.pid).children(recursive=True) if "wandb-core" in child.name()]
    core.kill()
    code, output = process.wait(280), process.log.read_text()
    assert code == 0, output
    record = the_record(staged, epochs=80)
    assert record.wandb_run["lost"] and len(warnings(output)) == 1, output
    assert "Traceback" not in output and not keys_in(staged.texts())


@pytest.mark.slow
def test_a_key_that_the_server_refuses(staged):
    code, output = staged.train(freeze_depth=2, extra={"WANDB_API_KEY": "f" * 40})
    assert code == 0, output
    the_record(staged)
    assert len(warnings(output)) == 1 and "f" * 40 not in output
