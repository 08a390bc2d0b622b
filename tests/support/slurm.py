"""A SLURM of one node for tests: Debian's munged, slurmctld and slurmd, run as root in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

TOOLS = ("setpriv", "munged", "mungekey", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
# How long a requeued job has to wait, too; by default two minutes.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """The reason to skip, or ""."""
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"no {', '.join(missing)} here (Debian: apt-get install slurmctld slurmd slurm-client munge)" * bool(missing)


class Cluster:
    """Up from the start to `stop`. Its commands find it by SLURM_CONF."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o711 if name == "munge" else 0o755)
        host = socket.gethostname().partition(".")[0]
        configuration = self.folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(host=host, folder=self.folder, ports=_free_ports(2)))
        self.environment = {**os.environ, "SLURM_CONF": str(configuration)}
        munge = self.folder / "munge"
        self.run("mungekey", "--create", f"--keyfile={munge / 'key'}")
        self._daemons = [self._start("munged", "--foreground", "--force", f"--key-file={munge / 'key'}",
                                     *(f"--{name}-file={munge / name}" for name in ("pid", "log", "seed")),
                                     f"--socket={munge / 'socket'}")]
        self.wait_until((munge / "socket").exists)
        self._daemons += [self._start("slurmctld", "-D"), self._start("slurmd", "-D")]
        self.wait_until(lambda: "idle" in self.run("sinfo", "--noheader", check=False))

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "daemons.log", "ab") as log:
            # They end with the tests, however those end.
            return subprocess.Popen(["setpriv", "--pdeathsig=TERM", *command], env=self.environment, stdout=log,
                                    stderr=log, start_new_session=True)

    def run(self, *command: str, check: bool = True, **options) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, **options)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: Path, *options: str) -> str:
        """The job's number."""
        return self.run("sbatch", "--parsable", *options, str(script), cwd=script.parent)

    def states(self, job: str) -> list[str]:
        """Of its tasks; a finished one is remembered for five minutes."""
        return self.run("squeue", "--noheader", "--array", "--states=all", "--job", job, "--format=%T").split()

    def wait_for(self, job: str, state: str = "COMPLETED", seconds: float = 120.0) -> None:
        """Every task of the job is in this state."""
        self.wait_until(lambda: set(self.states(job)) == {state}, seconds, lambda: str(self.states(job)))

    def wait_until(self, condition, seconds: float = 30.0, told=lambda: "") -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds:g} s: {told()} {self._last_words()}"
            time.sleep(0.1)

    def _last_words(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        self.run("scancel", "--user=root", check=False)
        self.run("scancel", "--user=root", "--signal=KILL", check=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for process in psutil.process_iter():  # a slurmstepd outlives its slurmd, and waits for it
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def processes_of(job: str) -> list[str]:
    """What still runs in the environment of this job (or of its array)."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if job in (environment.get("SLURM_JOB_ID"), environment.get("SLURM_ARRAY_JOB_ID")):
            found.append(" ".join(process.info["cmdline"] or []))
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
