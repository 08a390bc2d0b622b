"""Several coordinators on one study: the same tests for every storage that machines can share."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

import sweeps
from finetune.results import RecordStore
from sweeps import wait_until

HERE = Path(__file__).parent
GRACE = 3.0
TRIALS = 12


def grid(seconds=0.1, **behaviour):
    query = "&".join(f"{key}={value}" for key, value in {"seconds": seconds, **behaviour}.items())
    return {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
        "dataset_name": {"value": f"toy?{query}"}, "num_train_epochs": {"value": 2},
        "freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2, 3, 4, 5, 6]}}}


def published(*folders) -> Counter:
    """How often each trial was published, over all machines."""
    return Counter(trial_id for folder in folders for trial_id in RecordStore(folder).trial_ids())


def starts(folder):
    log = folder / "starts.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def ends_well(process):
    output = process.communicate(timeout=150)[1]
    assert process.returncode == 0, output
    return output


class SharedStudy:
    """The contract of a storage that machines share; a test file gives it a fixture `url`."""

    @pytest.fixture
    def start(self, url):
        """Starts a coordinator of the study at `url` (a fixture): one "machine" with its own output directory."""
        machines = []

        def machine(folder, raw, **options):
            machines.append(subprocess.Popen(
                [sys.executable, str(HERE / "sweep_driver.py"), str(folder), json.dumps(raw),
                 json.dumps({"storage": url, "grace": GRACE, "workers": 1, **options})],
                stderr=subprocess.PIPE, text=True))
            return machines[-1]

        yield machine
        for process in machines:
            process.kill()
            process.wait()

    def test_two_machines_share_a_grid_and_its_confirmation(self, tmp_path, start):
        machines = [start(tmp_path / name, grid(), confirm=3) for name in "ab"]
        for machine in machines:
            ends_well(machine)
        phases = Counter(record.protocol["phase"] for name in "ab" for record in RecordStore(tmp_path / name))
        assert phases == {"tune": TRIALS, "confirm": 2 * 3}
        assert set(published(tmp_path / "a", tmp_path / "b").values()) == {1}
        assert starts(tmp_path / "a") and starts(tmp_path / "b")
        assert starts(tmp_path / "a") + starts(tmp_path / "b") == TRIALS + 2 * 3

    @pytest.mark.fault("sweep", "shared study: a machine dies", "its trial is taken over after the grace, done once")
    def test_a_dead_machine_s_trial_is_taken_over(self, tmp_path, start):
        doomed = start(tmp_path / "a", grid(seconds=1))
        wait_until(lambda: starts(tmp_path / "a") == 1)
        doomed.kill()
        doomed.wait()
        ends_well(start(tmp_path / "b", grid(seconds=1), workers=4))
        assert published(tmp_path / "b") == Counter(dict.fromkeys(published(tmp_path / "b"), 1))
        assert len(published(tmp_path / "b")) == TRIALS

    @pytest.mark.fault("sweep", "shared study: a frozen machine comes back late",
                       "what it still has is dropped; nothing is published twice")
    def test_a_machine_that_comes_back_late_publishes_nothing_twice(self, tmp_path, start):
        sleeper = start(tmp_path / "a", grid(seconds=0.5))
        wait_until(lambda: starts(tmp_path / "a") == 1)
        family = [psutil.Process(sleeper.pid), *psutil.Process(sleeper.pid).children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGSTOP)
        ends_well(start(tmp_path / "b", grid(seconds=0.5), workers=4))
        assert len(published(tmp_path / "b")) == TRIALS
        for process in reversed(family):
            process.send_signal(signal.SIGCONT)
        said = ends_well(sleeper)
        assert "another machine has taken this trial over" in said
        assert not published(tmp_path / "a")

    def test_two_machines_take_the_same_adaptive_decisions(self, tmp_path, start):
        raw = {**sweeps.ADAPTIVE, "name": "shared"}
        data = {"value": "toy?layers=12&test=1000&knee=6&seconds=0.2"}
        raw["parameters"] = {**raw["parameters"], "dataset_name": data, "learning_rate": {"value": 1e-4},
                             "seed": {"value": 1}}  # what is tuned is not the question
        machines = [start(tmp_path / name, raw, adaptive=True) for name in "ab"]
        for machine in machines:
            assert machine.wait(120) == 0, machine.stderr.read()
        a, b = (sweeps.decisions(tmp_path / name) for name in "ab")
        assert a == b and [d["freeze_depth"] for d in a if d["state"] != "undecided"] == [6, 9, 7]
        done = [set(RecordStore(tmp_path / name).trial_ids()) for name in "ab"]
        assert done[0] and done[1] and not done[0] & done[1]  # each trial on one machine
