"""Kills at random moments: every trial is done once, none is lost, no worker outlives its coordinator."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from finetune.results import RecordStore
from finetune.sweep.search.search import Search
from finetune.sweep.search.storage import StudyStorage
from finetune.sweep.spec.schema import parse_spec

HERE = Path(__file__).parents[1] / "support"
TRIALS = 12
GRID = {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
    "dataset_name": {"value": "toy?seconds=0.15"}, "num_train_epochs": {"value": 2},
    "freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2, 3, 4, 5, 6]}}}


def start(folder, raw=GRID, **options):
    return subprocess.Popen([sys.executable, str(HERE / "sweep_driver.py"), str(folder), json.dumps(raw),
                             json.dumps({"retries": 50, **options})], stderr=subprocess.PIPE, text=True)


def children_of(process):
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def check_everything_was_done_once(folder):
    store = RecordStore(folder)
    records = [store.load_complete(trial_id) for trial_id in store.trial_ids()]
    assert len(records) == TRIALS and {record.state for record in records} == {"complete"}
    assert {(r.config["freeze_depth"], r.config["seed"]) for r in records} == {
        (depth, seed) for depth in (0, 2) for seed in range(1, 7)}
    assert not list(folder.rglob("*.tmp"))
    name = json.loads((folder / "sweep.json").read_text())["study"]
    storage = StudyStorage(None, folder)
    search = Search(storage, parse_spec(GRID, default_name="driven"), name, maximize=True)
    done = [t.user_attrs["trial_id"] for t in search.study.trials if t.state.name == "COMPLETE"]
    assert len(done) == TRIALS == len(set(done)) and not search.waiting() and not search.running()
    storage.close()


def started(folder):
    log = folder / "starts.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.fault("sweep", "the coordinator is killed at random moments, again and again",
                   "no worker outlives it; every trial is done once")
def test_a_coordinator_killed_again_and_again_loses_nothing(tmp_path):
    rng = random.Random(1)
    for _ in range(6):
        process = start(tmp_path)
        time.sleep(rng.uniform(0.3, 2.0))
        workers = children_of(process)
        process.kill()
        process.wait()
        wait_until(lambda workers=workers: not alive(workers), 5)
    process = start(tmp_path)
    assert process.wait(60) == 0, process.stderr.read()
    check_everything_was_done_once(tmp_path)


@pytest.mark.fault("sweep", "workers are killed at random moments",
                   "their trials are taken over at once; every trial is done once")
def test_workers_killed_at_random_are_replaced(tmp_path):
    rng = random.Random(2)
    process = start(tmp_path)
    wait_until(lambda: started(tmp_path) > 0)
    kills = 0
    while process.poll() is None and kills < 8:
        time.sleep(rng.uniform(0.05, 0.5))
        victims = [child for child in children_of(process) if "resource_tracker" not in " ".join(_command(child))]
        if victims:
            rng.choice(victims).kill()
            kills += 1
    assert process.wait(60) == 0, process.stderr.read()
    check_everything_was_done_once(tmp_path)


def _command(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return ["resource_tracker"]


def test_a_sweep_that_is_stopped_while_it_plans_leaves_nothing(tmp_path):
    folder = tmp_path / "out"
    process = start(folder)
    wait_until((folder / "logs").exists)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and not folder.exists()
    assert "nothing had begun; the same command starts it" in said


@pytest.mark.fault("sweep", "SIGINT or SIGTERM to a sweep",
                   "running trials checkpoint and are released; exit 130 or 143; the next sweep goes on")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_sweep_and_the_next_one_goes_on(tmp_path, number, code):
    process = start(tmp_path)
    wait_until(lambda: started(tmp_path) >= 3)
    workers = children_of(process)
    process.send_signal(number)
    assert process.wait(20) == code
    assert "stopping" in process.stderr.read()
    wait_until(lambda: not alive(workers), 5)
    before = len(RecordStore(tmp_path).trial_ids())
    assert 0 < before < TRIALS
    assert start(tmp_path).wait(60) == 0
    check_everything_was_done_once(tmp_path)
    assert started(tmp_path) <= TRIALS + 2  # only what was running is run again


@pytest.mark.fault("sweep", "a second Ctrl-C", "everything ends at once, exit 130")
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    stubborn = json.loads(json.dumps(GRID))
    stubborn["parameters"]["dataset_name"] = {"value": "toy?stubborn=1&seconds=30"}
    process = start(tmp_path, stubborn)
    wait_until(lambda: started(tmp_path) == 2)
    workers = children_of(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None  # the trials do not listen, the coordinator gives them time
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130 and time.monotonic() - began < 2
    wait_until(lambda: not alive(workers), 5)


@pytest.mark.fault("sweep", "a hung trial with children of its own", "ended with its children, tried again")
def test_a_grandchild_does_not_outlive_a_killed_trial(tmp_path):
    raw = json.loads(json.dumps(GRID))
    raw["parameters"]["dataset_name"] = {"value": "toy?child=1&hang=1&once=1"}
    process = start(tmp_path, raw, trial_timeout=1.5)
    assert process.wait(60) == 0
    pids = [int(line) for line in (tmp_path / "children.log").read_text().split()]
    assert pids
    wait_until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
                               for pid in pids), 5)
