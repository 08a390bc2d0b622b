"""MPS with a stand-in for NVIDIA's control tool: a daemon of the sweep's own, which ends however the sweep does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from finetune.cli import main
from finetune.errors import EnvironmentProblem
from finetune.sweep.workers import mps, mps_keeper, pool
from finetune.sweep.workers.birth import Newborn
from finetune.sweep.workers.cards import visible_gpus
from finetune.sweep.workers.mps import find_tool, mps_for
from finetune.sweep.workers.pool import Machine, Worker
from sweeps import GRID, Lines, alive, sweep, wait_until

SUPPORT = Path(__file__).parents[1] / "support"
TOOL = """#!/bin/sh
# Every call is a line in calls.log. The daemon stays until somebody says `quit`; with a file `stubborn` then, too.
here=$(dirname "$0") pipe=$CUDA_MPS_PIPE_DIRECTORY
if [ "$1" = -f ]; then
    [ -e "$here/broken" ] && exit 1
    echo "daemon $$ $pipe ${CUDA_VISIBLE_DEVICES-unset}" >> "$here/calls.log"
    : > "$pipe/control"
    while [ ! -e "$pipe/quit" ] || [ -e "$here/stubborn" ]; do sleep 0.02; done
    exit 0
fi
read command
echo "$command" >> "$here/calls.log"
case $command in
    get_server_list) if [ -e "$pipe/server" ]; then echo 4242; fi ;;
    quit) : > "$pipe/quit" ;;
esac
"""
# What a driver does when a client asks it for a context.
SERVED = f"import os, pathlib; pathlib.Path(os.environ['{mps.PIPE}'], 'server').touch()"
IN_A_PROCESS = """
import sys
from finetune.sweep.workers import mps, pool
mps.PROBE, pool.AHEAD = sys.argv.pop(), ()
import sweep_driver
sys.exit(sweep_driver.main())
"""


class Tool:
    """The stand-in as the tests see it."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / mps.TOOL
        self.path.write_text(TOOL)
        self.path.chmod(0o755)

    def calls(self):
        log = self.folder / "calls.log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def daemons(self):
        """[process id, directory of its pipes, CUDA_VISIBLE_DEVICES] of each that was started."""
        return [call[1:] for call in self.calls() if call[0] == "daemon"]

    def running(self):
        return alive([psutil.Process(int(daemon[0])) for daemon in self.daemons() if psutil.pid_exists(int(daemon[0]))])

    def left_nothing(self):
        return not self.running() and not any(Path(daemon[1]).parent.exists() for daemon in self.daemons())


@pytest.fixture
def tool(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv(mps.PIPE, raising=False)
    monkeypatch.setattr(mps, "OF_THE_MACHINE", tmp_path / "no_daemon")
    monkeypatch.setattr(mps, "PLACES", ())
    monkeypatch.setattr(mps, "PROBE", SERVED)
    monkeypatch.setattr(pool, "AHEAD", ())  # the stand-in for trials needs no torch
    return Tool(tmp_path / "bin")


def toy(behaviour="seconds=0.1&environment=1", seeds=(1, 2, 3, 4)):
    return {"method": "grid", "parameters": {"dataset_name": {"value": f"toy?{behaviour}"},
                                             "num_train_epochs": {"value": 1}, "seed": {"values": list(seeds)}}}


def environments(folder):
    return [json.loads(line) for line in (folder / "environment.log").read_text().splitlines()]


def test_workers_on_one_card_share_a_daemon_that_ends_with_the_sweep(tool, tmp_path):
    ending = sweep(tmp_path / "out", toy(), workers=2)
    ((_, pipes, visible),) = tool.daemons()
    assert pipes.startswith("/tmp/mps-") and visible == "3"
    for seen in environments(tmp_path / "out"):
        assert seen[mps.PIPE] == pipes and seen["CUDA_MPS_LOG_DIRECTORY"] == str(Path(pipes).parent / "log")
        assert seen["CUDA_VISIBLE_DEVICES"] == "0"  # the daemon's number for the coordinator's 3
    assert ["quit"] in tool.calls() and tool.left_nothing() and not any("MPS" in line for line in ending.lines)
    assert mps.PIPE not in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_worker_has_the_daemon_s_number_of_its_gpu(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    machine, sent = Machine(4, tuple(visible_gpus()), 2**30), []
    connection = SimpleNamespace(send=sent.append)
    with mps_for(len(machine.gpus), 3, pytest.fail) as ours:
        for index in (1, 2, 3):
            Worker(index, 3, machine, task="", log=tmp_path / "log", ask_verdicts=False, mps=ours,
                   born=Newborn(None, connection)).begin()
    assert [options.variables["CUDA_VISIBLE_DEVICES"] for _, options in sent] == ["0", "1", "0"]
    assert [daemon[2] for daemon in tool.daemons()] == ["3,GPU-7"]


def test_without_cuda_visible_devices_the_daemon_has_none_either(tool, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with mps_for(1, 2, pytest.fail) as ours:
        assert ours.variables(0)["CUDA_VISIBLE_DEVICES"] == "0"
    assert [daemon[2] for daemon in tool.daemons()] == ["unset"] and tool.left_nothing()


@pytest.mark.parametrize("why", ["a card each", "no GPU", "no tool", "off", "managed", "default daemon"])
def test_nothing_is_started_where_nothing_is_to_be_shared(why, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    if why == "no tool":
        tool.path.unlink()
    if why == "managed":
        monkeypatch.setenv(mps.PIPE, str(tmp_path))
    if why == "default daemon":
        mps.OF_THE_MACHINE.touch()
    gpus = {"a card each": 2, "no GPU": 0}.get(why, 1)
    with mps_for(gpus, 2, pytest.fail, wanted=why != "off") as ours:
        assert ours is None


def test_a_sweep_that_shall_have_no_mps_has_none(tool, tmp_path):
    sweep(tmp_path / "out", toy(), workers=2, mps=False)
    assert not tool.calls() and {seen[mps.PIPE] for seen in environments(tmp_path / "out")} == {None}
    assert {seen["CUDA_VISIBLE_DEVICES"] for seen in environments(tmp_path / "out")} == {"3"}


@pytest.mark.parametrize(("probe", "reason"), [
    ("import sys; sys.exit('cuInit gives error 805')", "cuInit gives error 805"),
    ("import os; os._exit(3)", "a first client ended with exit code 3"),
    ("pass", "its control daemon has started no server for a first client"),
    (mps.PROBE.replace("libcuda.so.1", "libnone.so.1"), "libnone.so.1"),
])
def test_a_first_client_that_is_not_served_means_one_sentence_and_no_variables(probe, reason, tool, tmp_path,
                                                                              monkeypatch):
    monkeypatch.setattr(mps, "PROBE", probe)
    ending = sweep(tmp_path / "out", toy(), workers=2)
    (said,) = [line for line in ending.lines if "MPS" in line]
    assert said.startswith("workers on one GPU take turns: no MPS (") and reason in said
    assert {(seen[mps.PIPE], seen["CUDA_VISIBLE_DEVICES"]) for seen in environments(tmp_path / "out")} == {(None, "3")}
    assert ending.exit_code == 0 and tool.left_nothing()


def test_a_daemon_that_does_not_start_is_one_sentence(tool):
    (tool.folder / "broken").touch()
    view = Lines()
    with mps_for(1, 2, view.say) as ours:
        assert ours.variables(0) == ours.variables(0) == {}
    assert view.lines == ["workers on one GPU take turns: no MPS (its control daemon does not start)"]


def test_a_client_that_hangs_is_given_up(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(mps_keeper, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(mps_keeper, "_coordinator_is_gone", lambda seconds: False)
    (tmp_path / "pipe").mkdir()
    environment = {**os.environ, **mps_keeper.variables(tmp_path)}
    daemon = subprocess.Popen([tool.path, "-f"], env=environment, start_new_session=True)
    try:
        said = mps_keeper._why_not(str(tool.path), tmp_path, "import time; time.sleep(1000)", daemon)
        assert said == "a first client had no answer within 0.2 s"
    finally:
        mps_keeper._end(str(tool.path), tmp_path, daemon)
    assert daemon.returncode == 0


def test_a_daemon_that_does_not_obey_is_killed(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(mps_keeper, "END_SECONDS", 0.2)
    (tool.folder / "stubborn").touch()
    (tmp_path / "pipe").mkdir()
    environment = {**os.environ, **mps_keeper.variables(tmp_path)}
    daemon = subprocess.Popen([tool.path, "-f"], env=environment, start_new_session=True)
    mps_keeper._end(str(tool.path), tmp_path, daemon)
    assert ["quit"] in tool.calls() and daemon.returncode < 0


def test_a_daemon_that_was_never_used_ends_too(tool):
    with mps_for(1, 2, pytest.fail) as ours:
        wait_until(tool.daemons)
    assert tool.left_nothing() and not ours.folder.exists()


def test_it_ends_with_an_error(tool, tmp_path):
    with pytest.raises(EnvironmentProblem, match="no_such_task"):
        sweep(tmp_path / "out", toy(), workers=2, task="no_such_task")
    assert len(tool.daemons()) == 1 and tool.left_nothing()


def test_workers_that_come_after_the_daemon_s_end_do_without(tool):
    view = Lines()
    with mps_for(1, 2, view.say) as ours:
        assert ours.variables(0)
        os.kill(int(tool.daemons()[0][0]), signal.SIGKILL)
        ours._keeper.wait(60)
        assert ours.variables(0) == ours.variables(0) == {}
    assert view.lines == ["further workers on one GPU take turns: no MPS any more (its control daemon has ended)"]
    assert tool.left_nothing()


@pytest.mark.fault("sweep", "with MPS: the coordinator is killed or interrupted",
                   "its control daemon ends too, and leaves no folder")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_with_a_coordinator_that_is_killed_or_stopped(tool, tmp_path, number, code):
    words = [str(tmp_path / "out"), json.dumps(GRID), "{}", SERVED]
    process = subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, *words], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": f"{SUPPORT}:{SUPPORT.parents[1]}"})
    wait_until(lambda: (tmp_path / "out" / "starts.log").exists() or process.poll() is not None)
    assert len(tool.running()) == 1
    process.send_signal(number)
    assert process.wait(60) == code, process.stderr.read()
    wait_until(tool.left_nothing)
    assert ["quit"] in tool.calls()


def test_the_server_lets_go_of_a_worker_that_is_going_to_be_killed(tool, tmp_path):
    sweep(tmp_path / "out", toy("hang=1", [1]), workers=2, trial_timeout=0.5, retries=0)
    assert not tool.calls()  # one trial, one worker: nothing to share
    sweep(tmp_path / "out", toy("hang=2", [2, 3]), workers=2, trial_timeout=0.5, retries=0)
    pids = {line.split()[1] for line in (tmp_path / "out" / "starts.log").read_text().splitlines()}
    told = [call[1:] for call in tool.calls() if call[0] == "terminate_client"]
    assert told and all(server == "4242" and client in pids for server, client in told) and tool.left_nothing()


@pytest.mark.fault("sweep", "with MPS: a worker is killed while others train on its GPU",
                   "they begin anew, since their kernels may hang; of their trials' tries none is used up")
def test_the_neighbours_of_a_killed_worker_begin_anew(tool, tmp_path):
    ending = sweep(tmp_path / "out", toy("crash=3&seconds=0.2", range(1, 9)), workers=2, retries=0)
    assert len(ending.failures) == 1 and "crash" in ending.failures[0][1] and ending.boards[0].complete == 7
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "trials").glob("*/record.json")]
    failed = next(record["trial_id"] for record in records if record["state"] == "failed")
    starts = [line.split() for line in (tmp_path / "out" / "starts.log").read_text().splitlines()]
    pids = [pid for _, pid in starts]
    until = next(index for index, (trial_id, _) in enumerate(starts) if trial_id == failed)
    assert pids[-1] not in pids[:until + 1], "neither worker of before goes on"
    assert tool.left_nothing()


def test_a_client_is_let_go_only_where_there_is_a_server(tool, monkeypatch):
    monkeypatch.setattr(mps, "PROBE", "raise SystemExit('no')")
    with mps_for(1, 2, lambda _: None) as ours:
        ours.variables(0)
        ours.release(1)
    assert not [call for call in tool.calls() if call[0] == "terminate_client"]


def test_a_keeper_that_cannot_start_is_one_sentence(tool, monkeypatch):
    view, before = Lines(), set(Path("/tmp").glob("mps-*"))
    monkeypatch.setattr(sys, "executable", "/no/python")
    with mps_for(1, 2, view.say) as ours:
        assert ours is None
    assert len(view.lines) == 1 and "/no/python" in view.lines[0] and set(Path("/tmp").glob("mps-*")) <= before


def test_the_tool_lies_beside_nvidia_smi_too(tool, tmp_path, monkeypatch):
    assert find_tool() == str(tool.path)
    (tmp_path / "path").mkdir()
    (tool.folder / "nvidia-smi").write_text("#!/bin/sh\n")
    (tool.folder / "nvidia-smi").chmod(0o755)
    (tmp_path / "path" / "nvidia-smi").symlink_to(tool.folder / "nvidia-smi")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_tool() == str(tool.path)
    (tool.folder / "nvidia-smi").unlink()
    assert find_tool() is None
    monkeypatch.setattr(mps, "PLACES", (str(tool.folder),))
    assert find_tool() == str(tool.path)


def test_the_option_is_checked_and_handed_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(json.dumps(toy()))
    assert main(["sweep", "toy.yaml", "--mps", "on", "--slurm_script"]) == 2
    assert "--mps = 'on': allowed: auto | off" in capsys.readouterr().err
    assert main(["sweep", "toy.yaml", "--mps", "off", "--slurm_script"]) == 0
    assert "toy.yaml --mps off" in capsys.readouterr().out
    assert main(["sweep", "toy.yaml", "--slurm_script"]) == 0
    assert "--mps" not in capsys.readouterr().out


def test_it_is_light():
    code = ("import sys, finetune.sweep.workers.mps; "
            "print({'torch', 'numpy', 'multiprocessing', 'psutil'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
