"""Several coordinators on one PostgreSQL study: the real server from Debian's package, started for these tests."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest

import sweeps
from finetune.results import RecordStore

wait_until = partial(sweeps.wait_until, seconds=30.0)
HERE = Path(__file__).parents[1] / "support"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if Path("/usr/lib/postgresql").is_dir() else []
GRACE = 3.0
TRIALS = 12

pytestmark = [pytest.mark.needs_root,
              pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server here (Debian: apt-get install postgresql)")]


class Server:
    """A PostgreSQL of its own, run as an unprivileged user (it refuses to be root)."""

    def __init__(self):
        self.bin = BINARIES[-1].parent
        self.user = _unprivileged_user()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        if self.user:
            shutil.chown(self.folder, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "sweeper", "-A", "trust", "--no-sync")
        self.start()

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self):
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def create(self, name):
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "sweeper", name)
        return f"postgresql://sweeper@127.0.0.1:{self.port}/{name}"

    def _run(self, tool, *arguments):
        who = {"user": self.user, "extra_groups": []} if self.user else {}
        subprocess.run([str(self.bin / tool), *arguments], check=True, cwd=self.folder, stdout=subprocess.DEVNULL,
                       **who)


def _unprivileged_user():
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def url(server, request):
    return server.create(request.node.originalname)


def grid(seconds=0.1, **behaviour):
    query = "&".join(f"{key}={value}" for key, value in {"seconds": seconds, **behaviour}.items())
    return {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
        "dataset_name": {"value": f"toy?{query}"}, "num_train_epochs": {"value": 2},
        "freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2, 3, 4, 5, 6]}}}


@pytest.fixture
def start(url):
    """Starts a coordinator: one "machine" with its own output directory."""
    machines = []

    def machine(folder, raw, **options):
        machines.append(subprocess.Popen(
            [sys.executable, str(HERE / "sweep_driver.py"), str(folder), json.dumps(raw),
             json.dumps({"storage": url, "grace": GRACE, "workers": 1, **options})], stderr=subprocess.PIPE, text=True))
        return machines[-1]

    yield machine
    for process in machines:
        process.kill()
        process.wait()


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


def test_two_machines_share_a_grid(tmp_path, start):
    machines = [start(tmp_path / name, grid()) for name in "ab"]
    for machine in machines:
        ends_well(machine)
    assert published(tmp_path / "a", tmp_path / "b") == Counter(
        dict.fromkeys(published(tmp_path / "a", tmp_path / "b"), 1))
    assert len(published(tmp_path / "a", tmp_path / "b")) == TRIALS
    assert starts(tmp_path / "a") and starts(tmp_path / "b")
    assert starts(tmp_path / "a") + starts(tmp_path / "b") == TRIALS


@pytest.mark.fault("sweep", "PostgreSQL: a machine dies", "its trial is taken over after the grace, done once")
def test_a_dead_machine_s_trial_is_taken_over(tmp_path, start):
    doomed = start(tmp_path / "a", grid(seconds=1))
    wait_until(lambda: starts(tmp_path / "a") == 1)
    doomed.kill()
    doomed.wait()
    ends_well(start(tmp_path / "b", grid(seconds=1), workers=4))
    assert published(tmp_path / "b") == Counter(dict.fromkeys(published(tmp_path / "b"), 1))
    assert len(published(tmp_path / "b")) == TRIALS


@pytest.mark.fault("sweep", "PostgreSQL: a frozen machine comes back late",
                   "what it still has is dropped; nothing is published twice")
def test_a_machine_that_comes_back_late_publishes_nothing_twice(tmp_path, start):
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


@pytest.mark.fault("sweep", "PostgreSQL: the server is gone for a while",
                   "waited for as long as the grace; every trial is done once")
def test_a_dropped_connection_is_waited_for(tmp_path, start, server):
    machines = [start(tmp_path / name, grid(seconds=0.3), grace=20.0) for name in "ab"]
    wait_until(lambda: len(published(tmp_path / "a", tmp_path / "b")) >= 2)
    server.stop()
    time.sleep(1.0)
    server.start()
    for machine in machines:
        ends_well(machine)
    assert sorted(published(tmp_path / "a", tmp_path / "b").values()) == [1] * TRIALS


def test_confirmation_is_shared_too(tmp_path, start):
    machines = [start(tmp_path / name, grid(), confirm=3) for name in "ab"]
    for machine in machines:
        ends_well(machine)
    phases = Counter(record.protocol["phase"] for name in "ab" for record in RecordStore(tmp_path / name))
    assert phases == {"tune": TRIALS, "confirm": 2 * 3}
    assert set(published(tmp_path / "a", tmp_path / "b").values()) == {1}


def test_two_machines_take_the_same_adaptive_decisions(start, tmp_path):
    raw = {**sweeps.ADAPTIVE, "name": "shared"}
    raw["parameters"] = {**raw["parameters"], "dataset_name": {"value": "toy?layers=12&test=1000&knee=6&seconds=0.2"}}
    machines = [start(tmp_path / name, raw, adaptive=True) for name in "ab"]
    for machine in machines:
        assert machine.wait(120) == 0, machine.stderr.read()
    a, b = (sweeps.decisions(tmp_path / name) for name in "ab")
    assert a == b and [d["freeze_depth"] for d in a if d["state"] != "undecided"] == [6, 9, 7]
    done = [set(RecordStore(tmp_path / name).trial_ids()) for name in "ab"]
    assert done[0] and done[1] and not done[0] & done[1]  # each trial on one machine
