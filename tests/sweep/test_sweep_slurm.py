"""The sbatch script, on a real slurmctld and slurmd: shared, requeued, out of time, cancelled."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import slurm
import yaml

from finetune.cli import main
from finetune.config import TrialConfig
from finetune.results import RecordStore
from finetune.trial import run_trial

ROOT = Path(__file__).parents[2]
REASON = slurm.why_not()
on_slurm = pytest.mark.skipif(bool(REASON), reason=REASON or "runs")
pytestmark = pytest.mark.timeout(900)
PATIENCE = 240.0  # seconds; an idle machine needs a tenth


@pytest.fixture(scope="module")
def cluster():
    cluster = slurm.Cluster()
    yield cluster
    cluster.stop()


def sweep_file(folder, model, epochs, seeds):
    knobs = {"model_name_or_path": str(model), "train_size": 1600, "evaluation_size": 32, "max_length": 16,
             "num_train_epochs": epochs, "per_device_train_batch_size": 4, "freeze_depth": 0}
    parameters = {name: {"value": value} for name, value in knobs.items()} | {"seed": {"values": seeds}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "method": "grid", "parameters": parameters}))
    return path


def script_of(path, capsys, tasks, *options):
    """Written beside the sweep, which is where it is run."""
    capsys.readouterr()
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        assert main(["sweep", str(path), "--slurm_script", str(tasks), "--output_dir", "runs", "--gpus_per_task", "0",
                     "--workers", "1", *options]) == 0
    finally:
        os.chdir(before)
    script = path.with_suffix(".sh")
    # The tests' own tree; and two tasks share the cores of one machine.
    text = capsys.readouterr().out.replace("\ncd ", f"\nexport PYTHONPATH={ROOT}\ncd ", 1)
    script.write_text(text.replace("--cpus-per-task=4", "--cpus-per-task=1"))
    return script


def in_the_middle(folder):
    """Whether a task has trained some steps of its trial, and is still at it."""
    try:
        running = json.loads((folder / "status.json").read_text())["running"]
    except (OSError, ValueError):
        return False
    return any(20 <= (trial["step"] or 0) <= 0.8 * trial["steps"] for trial in running)


def records(runs):
    return [record for folder in sorted(runs.glob("task-*")) for record in RecordStore(folder)]


def told(record):
    """What training has found, to the last digit."""
    history = [{split: entry[split]["loss"] for split in ("train", "validation")} for entry in record.history]
    return record.weights, record.metrics, history


def uninterrupted(path, folder):
    """Its only trial, in this process, which has imported torch."""
    knobs = {name: entry["value"] if "value" in entry else entry["values"][0]
             for name, entry in yaml.safe_load(path.read_text())["parameters"].items()}
    record = run_trial(TrialConfig.from_mapping({**knobs, "output_dir": str(folder)})).record
    return {record.trial_id: told(record)}


def locks(runs):
    return [path.name for path in runs.rglob("*") if path.is_symlink() and path.name.endswith(".lock")]


def held(runs):
    return [path.name for path in runs.glob("study.journal.alive/*") if path.name != "now"]


@pytest.mark.slow
@pytest.mark.needs_root
@on_slurm
@pytest.mark.fault("sweep", "SLURM: an array is cancelled in the middle of its trials",
                   "no process and no lock stays; submitted again, every trial is done once")
def test_an_array_shares_a_sweep_and_a_cancelled_one_leaves_nothing(cluster, tmp_path, tiny_bert_dir, capsys):
    script = script_of(sweep_file(tmp_path, tiny_bert_dir, 3, [1, 2, 3]), capsys, 2)
    runs = tmp_path / "runs"
    job = cluster.submit(script)
    cluster.wait_until(lambda: any(in_the_middle(runs / f"task-{task}") for task in (1, 2)), PATIENCE)
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED", 60)
    cluster.wait_until(lambda: not slurm.processes_of(job), 10, lambda: str(slurm.processes_of(job)))
    assert not locks(runs) and not held(runs)
    cluster.wait_for(cluster.submit(script), seconds=PATIENCE)
    found = records(runs)
    assert Counter(record.config["seed"] for record in found) == dict.fromkeys([1, 2, 3], 1)
    assert all((runs / f"task-{task}" / "trials").is_dir() for task in (1, 2))  # both have worked
    assert any(record.resumes for record in found) and not locks(runs) and not held(runs)


def goes_on_bit_for_bit(cluster, path, script, stop):
    """One trial, stopped in its middle by `stop`; its task comes back. The record is that of a trial left alone."""
    folder = path.parent / "runs" / "task-1"
    expected = uninterrupted(path, path.parent / "whole")
    job = cluster.submit(script)
    cluster.wait_until(lambda: in_the_middle(folder), PATIENCE)
    cluster.run(*stop(job))
    cluster.wait_until(lambda: set(cluster.states(job)) != {"RUNNING"}, PATIENCE)
    assert not records(path.parent / "runs")
    cluster.run("scontrol", "update", f"job={job}", "TimeLimit=60")
    cluster.wait_for(job, seconds=PATIENCE)
    record, = records(path.parent / "runs")
    assert len(record.resumes) == 1 and record.resumes[0]["step"] > 0
    assert {record.trial_id: told(record)} == expected


@pytest.mark.needs_root
@on_slurm
@pytest.mark.fault("sweep", "SLURM: a task is requeued in the middle of a trial",
                   "a checkpoint; the task comes back and goes on bit for bit")
def test_a_requeued_task_goes_on_bit_for_bit(cluster, tmp_path, tiny_bert_dir, capsys):
    path = sweep_file(tmp_path, tiny_bert_dir, 3, [1])
    goes_on_bit_for_bit(cluster, path, script_of(path, capsys, 1), lambda job: ("scontrol", "requeue", job))


@pytest.mark.slow  # SLURM looks at the limits twice a minute: a trial has to last
@pytest.mark.needs_root
@on_slurm
@pytest.mark.fault("sweep", "SLURM: a task's time is up in the middle of a trial",
                   "a checkpoint; the task queues itself again and goes on bit for bit")
def test_a_task_whose_time_is_up_goes_on_bit_for_bit(cluster, tmp_path, tiny_bert_dir, capsys):
    path = sweep_file(tmp_path, tiny_bert_dir, 40, [1])
    goes_on_bit_for_bit(cluster, path, script_of(path, capsys, 1),
                        lambda job: ("scontrol", "update", f"job={job}", "TimeLimit=1"))


def test_the_script_says_what_was_asked_for(tmp_path, capsys):
    path = sweep_file(tmp_path, "nothing", 1, [1, 2, 3])
    script = script_of(path, capsys, 9, "--set", "train_size=32", "--storage", "postgresql://me@host/db").read_text()
    assert "#SBATCH --array=1-3\n" in script and "--gpus" not in script  # never more tasks than trials
    assert "--set train_size=32 --workers 1" in script and "--storage postgresql://me@host/db" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(("options", "said"), [
    (["--slurm_script", "0"], "--slurm_script = 0: allowed: an integer >= 1"),
    (["--gpus_per_task", "1"], "--gpus_per_task = 1: allowed: with --slurm_script"),
    (["--slurm_script", "--json"], "--json = True: allowed: a script, or this"),
])
def test_a_script_that_cannot_be_is_refused(tmp_path, capsys, options, said):
    assert main(["sweep", str(sweep_file(tmp_path, "nothing", 1, [1])), *options]) == 2
    assert said in capsys.readouterr().err
