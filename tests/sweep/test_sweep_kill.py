"""Kills at random moments: every trial is done once, none is lost, no worker outlives its coordinator."""

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from finetune.results import RecordStore
from sweeps import GRID, TRIALS, alive, check_everything_was_done_once, children_of, start, wait_until

HERE = Path(__file__).parents[1] / "support"


def started(folder):
    log = folder / "starts.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.fault("sweep", "the coordinator is killed at random moments, again and again",
                   "no worker outlives it; every trial is done once")
def test_a_coordinator_killed_again_and_again_loses_nothing(tmp_path):
    rng = random.Random(1)
    for _ in range(4):
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
    while process.poll() is None and kills < 5:
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
