"""Runs that do not end by themselves: stopped by the server, paused, cancelled, preempted, killed."""

from __future__ import annotations

import signal

import pytest
from wandb_stage import DIRECT, LAUNCHED, stage, until

from finetune.results import RecordStore

pytestmark = pytest.mark.timeout(900)
LONG = 300  # epochs of a few hundredths of a second: long enough to be interrupted


@pytest.fixture
def staged(tmp_path, tiny_bert_dir):
    with stage(tmp_path, tiny_bert_dir) as director:
        yield director


def records(staged):
    return list(RecordStore(staged.folder / "out"))


def training(staged, count=1):
    """The runs that have logged an epoch and still train, once there are `count`."""
    def found():
        runs = [run for run in staged.runs() if run.state == "running" and len(run.rows()) >= 2]
        return runs if len(runs) >= count else None

    return until(found, f"{count} runs train")


def nothing_left(staged):
    until(lambda: not staged.left_behind(), "every process has ended", 60)


def test_a_stop_from_the_server_prunes_the_trial_under_accelerate_launch(staged):
    sweep = staged.wandb_sweep(str(staged.sweep_file(command=LAUNCHED, freeze_depth=[4], num_train_epochs=10 * LONG)))
    agent = staged.agent(sweep)
    (run,) = training(staged)
    run.stopped = True
    staged.finish(agent)
    (record,) = records(staged)
    assert record.state == "pruned" and 0 < len(record.history) < 10 * LONG and "test" not in record.metrics
    assert record.best_epoch is not None and not run.preempting
    assert run.summary["state"] == "pruned" and run.state in ("finished", "killed")
    nothing_left(staged)


@pytest.mark.slow
def test_hyperband_stops_the_worse_half(staged):
    """Two agents, four runs: the server compares them at epoch 30 and stops what is not in the better half."""
    top = {"early_terminate": {"type": "hyperband", "min_iter": 30, "eta": 2},
           "metric": {"name": "validation/loss", "goal": "minimize"}}
    file = staged.sweep_file(top=top, head_learning_rate=[1e-2, 1e-6, 1e-7, 1e-8], freeze_depth=[4],
                             num_train_epochs=LONG)
    sweep = staged.wandb_sweep(str(file))
    staged.finish(staged.agent(sweep), staged.agent(sweep))
    by_state = {record.config["head_learning_rate"]: record.state for record in records(staged)}
    assert by_state[1e-2] == "complete" and "pruned" in by_state.values()
    for record in records(staged):
        assert len(record.history) == LONG if record.state == "complete" else 30 <= len(record.history) < LONG
        assert not any(run.preempting for run in staged.runs())


@pytest.mark.slow
def test_pause_resume_cancel(staged):
    file = staged.sweep_file(freeze_depth=[4], seed=[1, 2, 3], num_train_epochs=LONG)
    sweep = staged.wandb_sweep(str(file))
    name = sweep.rsplit("/", 1)[-1]
    agent = staged.agent(sweep)
    training(staged)
    assert staged.run("wandb", "sweep", "--pause", sweep)[0] == 0
    until(lambda: len(records(staged)) == 1, "the run that was under way is complete")
    assert len(staged.runs()) == 1 and agent.poll() is None
    assert staged.run("wandb", "sweep", "--resume", sweep)[0] == 0
    until(lambda: len(staged.runs()) == 2, "the next run begins")
    training(staged)
    assert staged.run("wandb", "sweep", "--cancel", sweep)[0] == 0
    agent.wait(120)
    assert staged.server.state.sweeps[name].state == "CANCELED" and len(staged.runs()) == 2
    nothing_left(staged)
    assert sorted(record.state for record in records(staged)) == ["complete", "pruned"]
    assert not any(run.preempting for run in staged.runs())


@pytest.mark.slow
def test_a_cancel_that_kills_leaves_no_process_behind(staged):
    """W&B may send `exit`, on which the agent kills the launcher: the trainer behind it ends by itself."""
    staged.server.engine.cancel_kills = True
    file = staged.sweep_file(command=LAUNCHED, freeze_depth=[4], num_train_epochs=10 * LONG)
    agent = staged.agent(sweep := staged.wandb_sweep(str(file)))
    training(staged)
    assert staged.run("wandb", "sweep", "--cancel", sweep)[0] == 0
    agent.wait(120)
    nothing_left(staged)


@pytest.mark.parametrize("command", [pytest.param(DIRECT, marks=pytest.mark.slow), LAUNCHED],
                         ids=["direct", "launched"])
def test_sigterm_to_the_agent_leaves_no_process_behind(staged, command):
    file = staged.sweep_file(command=command, freeze_depth=[4], num_train_epochs=10 * LONG)
    agent = staged.agent(staged.wandb_sweep(str(file)))
    (run,) = training(staged)
    agent.send_signal(signal.SIGTERM)
    agent.wait(60)
    nothing_left(staged)
    assert not records(staged) and not run.preempting
    until(lambda: run.exitcode == 143, "the run ends with 143", 20)
    assert (run.state, run.summary["state"]) == ("failed", "interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_a_preempted_run_goes_on_with_another_agent_and_the_grid_is_whole(staged, signum):
    """Two agents, one of them ended in the middle of a run: no point twice, none missing."""
    epochs = LONG // 2
    file = staged.sweep_file(command=[*LAUNCHED, "--preemptible=True"], freeze_depth=[4], seed=[1, 2],
                             num_train_epochs=epochs)
    sweep = staged.wandb_sweep(str(file))
    ended, other = staged.agent(sweep), staged.agent(sweep)
    run = next(run for run in training(staged, 2))
    victim, heir = (ended, other) if _is_running(run, ended) else (other, ended)
    victim.send_signal(signum)
    victim.wait(60)
    until(lambda: run.exitcode == 143, "the run is preempted", 60)
    assert run.state == "preempted"
    staged.server.engine.agent_grace = 3.0
    staged.finish(heir)
    runs, found = staged.runs(), records(staged)
    assert sorted(run.params()["seed"] for run in runs) == [1, 2]
    assert [run.state for run in runs] == ["finished"] * 2 and [record.state for record in found] == ["complete"] * 2
    assert run.connections == 2
    for told in runs:
        assert [row["epoch"] for row in told.rows()] == list(range(1, epochs + 1))
    nothing_left(staged)


def _is_running(run, agent):
    return run.name in agent.log.read_text()
