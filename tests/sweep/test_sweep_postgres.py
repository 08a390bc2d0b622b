"""Several coordinators on one PostgreSQL study: the real server from Debian's package, started for these tests."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from shared_study import TRIALS, SharedStudy, ends_well, grid, published, wait_until

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if Path("/usr/lib/postgresql").is_dir() else []

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


class TestPostgreSQL(SharedStudy):
    @pytest.mark.fault("sweep", "PostgreSQL: the server is gone for a while",
                       "waited for as long as the grace; every trial is done once")
    def test_a_dropped_connection_is_waited_for(self, tmp_path, start, server):
        machines = [start(tmp_path / name, grid(seconds=0.3), grace=20.0) for name in "ab"]
        wait_until(lambda: len(published(tmp_path / "a", tmp_path / "b")) >= 2)
        server.stop()
        time.sleep(1.0)
        server.start()
        for machine in machines:
            ends_well(machine)
        assert sorted(published(tmp_path / "a", tmp_path / "b").values()) == [1] * TRIALS
