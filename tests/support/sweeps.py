"""A sweep of stand-in trials in a process of its own, and the check that each trial was done once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from finetune.results import RecordStore
from finetune.sweep.plan import SweepOptions
from finetune.sweep.runner import run_sweep
from finetune.sweep.search.search import Search
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.storages import open_storage
from finetune.sweep.view.live import PlainView, counts_of

HERE = Path(__file__).parent


TRIALS = 12
GRID = {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
    "dataset_name": {"value": "toy?seconds=0.15"}, "num_train_epochs": {"value": 2},
    "freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2, 3, 4, 5, 6]}}}


# 12 layers, of which more than six cost accuracy on test: 37 points to tune, 20 fresh seeds at most.
ADAPTIVE = {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
    "dataset_name": {"value": "toy?layers=12&test=1000&knee=6"}, "num_train_epochs": {"value": 1},
    "freeze_depth": {"values": list(range(13))}, "learning_rate": {"values": [1e-4, 1e-3, 1e-5]},
    "seed": {"values": [1, 2]}}}


class Lines(PlainView):
    """Keeps what a user would have read."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def show(self, board):
        self.lines.append(counts_of(board))


def sweep(folder, raw, **options):
    """A sweep of stand-in trials in this process; its ending has the `lines`. One worker: each costs half a second."""
    view = Lines()
    ending = run_sweep(parse_spec(raw, default_name="test"),
                       SweepOptions(folder, **{"task": "sweep_standin", "workers": 1, **options}), view)
    ending.lines = view.lines
    return ending


def decisions(folder):
    return json.loads((folder / "sweep.json").read_text())["adaptive"]["decisions"]


def start(folder, raw=GRID, **options):
    return subprocess.Popen([sys.executable, str(HERE / "sweep_driver.py"), str(folder), json.dumps(raw),
                             json.dumps({"retries": 50, **options})], stderr=subprocess.PIPE, text=True)


def children_of(process):
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(condition, seconds=120.0):
    """Patient where nothing is said: the machine may be busy."""
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
    storage = open_storage(None, folder)
    search = Search(storage, parse_spec(GRID, default_name="driven"), name, maximize=True)
    done = [t.user_attrs["trial_id"] for t in search.study.trials if t.state.name == "COMPLETE"]
    assert len(done) == TRIALS == len(set(done)) and not search.waiting() and not search.running()
    storage.close()
