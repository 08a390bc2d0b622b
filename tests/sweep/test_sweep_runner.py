"""The coordinator with real worker processes, on a task that trains nothing (sweep_standin)."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from finetune.commands.sweep import closing
from finetune.config import TrialConfig
from finetune.errors import ConfigError, DataError, EnvironmentProblem
from finetune.results import RecordStore
from finetune.sweep.view.board import Board, duration, label_of, shown_value
from finetune.sweep.view.live import RichView
from finetune.sweep.view.status import state_of, text_of
from finetune.sweep.workers.cards import visible_gpus, weights_at_hand
from finetune.sweep.workers.pool import Machine
from sweeps import sweep, wait_until

METRIC = {"name": "validation/accuracy", "goal": "maximize"}
HERE = Path(__file__).parents[1] / "support"


def grid(data="toy", **changes):
    return {"method": "grid", "metric": METRIC, "parameters": {
        "dataset_name": {"value": data}, "num_train_epochs": {"value": 2},
        "freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2, 3]}}, **changes}


def starts(folder) -> Counter:
    log = folder / "starts.log"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


def records(folder):
    return list(RecordStore(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A grid by two workers: its directory, and how it ended."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, sweep(folder, grid(), workers=2)


@pytest.fixture
def finished(whole, tmp_path):
    """A directory of that grid of the test's own."""
    return shutil.copytree(whole[0], tmp_path / "finished")


def test_a_grid_runs_once_and_is_published_whole(whole):
    folder, ending = whole
    assert ending.exit_code == 0 and set(starts(folder).values()) == {1}
    assert {(r.config["freeze_depth"], r.config["seed"]) for r in records(folder)} == {
        (depth, seed) for depth in (0, 2) for seed in (1, 2, 3)}
    for record in records(folder):
        assert (record.sweep, record.protocol, record.state) == ("test", {"phase": "tune"}, "complete")
        assert RecordStore(folder).predictions(record)["validation_logits"][0, 0] == record.config["seed"]
    plan = json.loads((folder / "sweep.json").read_text())
    assert set(plan["trials"]["tune"]) == set(RecordStore(folder).trial_ids())
    assert plan["spec"]["parameters"]["seed"] == {"values": [1, 2, 3]}
    assert "best accuracy 0.9079 (freeze_depth=0 seed=3)" in closing(ending, folder)


@pytest.mark.fault("kill", "killed between a record and the removal of its checkpoints",
                   "the next sweep removes them, and trains nothing again")
def test_checkpoints_beside_a_record_go_with_the_next_sweep(finished):
    left = finished / "checkpoints" / RecordStore(finished).trial_ids()[0] / "step-00000008-epoch-0002"
    left.mkdir(parents=True)
    sweep(finished, grid())
    assert set(starts(finished).values()) == {1} and not (finished / "checkpoints").exists()


def test_a_rerun_does_only_what_is_missing(finished):
    first, second, *_ = records(finished)
    (finished / "trials" / first.trial_id / "record.json").unlink()
    damaged = finished / "trials" / second.trial_id / "predictions.npz"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    ending = sweep(finished, grid())
    assert ending.boards[0].already == 4 and ending.boards[0].complete == 2
    assert {trial for trial, count in starts(finished).items() if count == 2} == {first.trial_id, second.trial_id}
    assert [path.name.split(".")[0] for path in (finished / "quarantine").iterdir()] == [second.trial_id]


def test_an_edited_file_runs_only_what_is_new(finished):
    bigger = grid()
    bigger["parameters"]["seed"] = {"values": [1, 2, 3, 4]}
    ending = sweep(finished, bigger)
    assert ending.boards[0].already == 6 and ending.boards[0].complete == 2


@pytest.mark.parametrize(("raw", "error", "words"), [
    (grid(data="bad"), DataError, "has no labels"),
    (grid() | {"parameters": {"freeze_depth": {"values": [0, 9, 12]}}}, ConfigError, "depth = 12: allowed: -1..4"),
    (grid(metric={"name": "validation/acuracy"}), ConfigError, "did you mean accuracy"),
])
def test_one_bad_point_and_nothing_runs(tmp_path, raw, error, words):
    with pytest.raises(error, match=re.escape(words)):
        sweep(tmp_path / "new", raw)
    assert not (tmp_path / "new").exists()


def test_what_was_there_stays_when_a_later_sweep_is_refused(finished):
    with pytest.raises(DataError):
        sweep(finished, grid(data="bad"))
    assert len(records(finished)) == 6


def test_points_that_differ_in_inert_knobs_are_one_trial(tmp_path):
    raw = grid()
    raw["parameters"] |= {"freeze_depth": {"values": [2, 4]}, "learning_rate": {"values": [1e-4, 1e-3]}}
    ending = sweep(tmp_path, raw)
    assert "12 points are 9 trials: 3 differ from another one only in knobs that act on nothing there " \
           "(learning_rate)" in ending.lines
    assert len(starts(tmp_path)) == 9


def test_a_crashed_worker_s_trial_is_taken_over(tmp_path):
    ending = sweep(tmp_path, grid(data="toy?crash=2&once=1"), workers=2)
    assert ending.exit_code == 0 and len(records(tmp_path)) == 6
    assert sorted(starts(tmp_path).values()) == [1, 1, 1, 1, 2, 2]


@pytest.mark.fault("sweep", "a trial meets a CUDA error", "tried again, in a new process")
def test_a_worker_that_has_met_a_cuda_error_is_replaced(tmp_path):
    ending = sweep(tmp_path, grid(data="toy?cuda=2&once=1"))
    assert ending.exit_code == 0 and len(records(tmp_path)) == 6
    lines = [line.split() for line in (tmp_path / "starts.log").read_text().splitlines()]
    assert len(lines) == 8 and len({pid for _, pid in lines}) == 3  # two trials have this seed
    again = {trial for trial, count in starts(tmp_path).items() if count == 2}
    assert len(again) == 2 and all(len({pid for each, pid in lines if each == trial}) == 2 for trial in again)


@pytest.mark.fault("sweep", "a trial crashes, runs out of memory or diverges",
                   "tried again as often as --retries where that may help, then failed with the reason")
def test_failures_have_their_reason_in_the_record_and_in_the_closing_table(tmp_path):
    ending = sweep(tmp_path, grid(data="toy?crash=1&fail=2&nan=3"), retries=1)
    reasons = {record.config["seed"]: record.error["kind"] for record in records(tmp_path)}
    assert reasons == {1: "crash", 2: "out-of-memory", 3: "non-finite"}
    assert sorted(starts(tmp_path).values()) == [1, 1, 2, 2, 2, 2]  # a non-finite loss would only repeat itself
    assert ending.exit_code == 3
    text = closing(ending, tmp_path)
    assert "freeze_depth=0 seed=1: crash: its worker was killed by SIGKILL" in text
    assert "freeze_depth=2 seed=3: non-finite: the loss is nan at step 3" in text
    assert {record.setting_id for record in records(tmp_path)} and all(r.effective for r in records(tmp_path))


def test_a_failed_trial_is_tried_again_by_the_next_sweep(tmp_path):
    assert sweep(tmp_path, grid(data="toy?fail=1&once=1"), retries=0).exit_code == 3
    ending = sweep(tmp_path, grid(data="toy?fail=1&once=1"), retries=0)
    assert ending.exit_code == 0 and ending.boards[0].already == 4
    assert {record.state for record in records(tmp_path)} == {"complete"}


@pytest.mark.fault("sweep", "a trial hangs", "ended by --trial_timeout, tried again")
def test_a_hung_trial_is_ended_with_its_children(tmp_path):
    ending = sweep(tmp_path, grid(data="toy?hang=2&once=1"), trial_timeout=1.0)
    assert ending.exit_code == 0 and len(records(tmp_path)) == 6
    pids = {int(line.split()[1]) for line in (tmp_path / "starts.log").read_text().splitlines()}
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_hyperband_prunes_and_the_pruned_stay_pruned(tmp_path):
    raw = grid(early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3})
    raw["parameters"]["freeze_depth"] = {"values": [0, 1, 3]}
    ending = sweep(tmp_path, raw)
    pruned = {record.config["freeze_depth"] for record in records(tmp_path) if record.state == "pruned"}
    assert pruned == {1, 3} and ending.exit_code == 0
    assert all(len(record.history) == 1 for record in records(tmp_path) if record.state == "pruned")
    assert sweep(tmp_path, raw).boards[0].already == 9


def test_random_respects_cap_and_seed(tmp_path):
    raw = grid(method="random", run_cap=5)
    raw["parameters"] |= {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}}
    rates = []
    for folder, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        assert sweep(tmp_path / folder, raw, search_seed=seed, workers=workers).boards[0].complete == 5
        rates.append({record.config["learning_rate"] for record in records(tmp_path / folder)})
    assert rates[0] == rates[1] and rates[0].isdisjoint(rates[2])


def test_the_target_ends_the_search(tmp_path):
    raw = grid(method="random", metric={**METRIC, "target": 0.85})
    raw["parameters"] = {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2}}
    ending = sweep(tmp_path, raw)
    values = [record.metrics["validation"]["accuracy"] for record in records(tmp_path)]
    assert sum(value >= 0.85 for value in values) == 1 and ending.exit_code == 0
    assert "no run_cap: the search goes on until it is stopped (Ctrl-C)" in ending.lines


def test_an_endless_search_ends_when_its_space_does(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.sweep.dispatch.MAX_REPEATS", 30)  # each draw is written into the study
    raw = grid(method="random")
    raw["parameters"] = {"freeze_depth": {"min": 0, "max": 2}}
    assert sweep(tmp_path, raw).boards[0].complete == 3


def test_a_range_that_is_no_configuration_is_refused_before_anything_runs(tmp_path):
    raw = grid(method="bayes", run_cap=13)
    raw["parameters"] = {"head_dropout": {"min": 0.0, "max": 1.5}}
    with pytest.raises(ConfigError, match="head_dropout"):
        sweep(tmp_path, raw)
    assert not starts(tmp_path)


def test_bayes_runs_to_its_cap(tmp_path):
    raw = grid(method="bayes", run_cap=13)
    raw["parameters"] = {"learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2}}
    ending = sweep(tmp_path, raw)
    assert ending.boards[0].complete == 13 == len(records(tmp_path))
    assert sweep(tmp_path, raw).boards[0].complete == 0 and set(starts(tmp_path).values()) == {1}


def test_confirm_trains_each_depth_s_choice_on_fresh_seeds(tmp_path):
    raw = grid()
    raw["parameters"] |= {"learning_rate": {"values": [1e-4, 1e-3]}}
    ending = sweep(tmp_path, raw, confirm=2)
    confirming = [record for record in records(tmp_path) if record.protocol["phase"] == "confirm"]
    assert {(r.config["freeze_depth"], r.config["learning_rate"], r.config["seed"]) for r in confirming} == {
        (depth, 1e-4, seed) for depth in (0, 2) for seed in (4, 5)}
    assert len(records(tmp_path)) == 12 + 4 and confirming[0].protocol["tuning_seeds"] == [1, 2, 3]
    assert [choice.rivals for choice in ending.chosen] == [2, 2]
    assert set(json.loads((tmp_path / "sweep.json").read_text())["trials"]["confirm"]) == {
        record.trial_id for record in confirming}
    again = sweep(tmp_path, raw, confirm=2)
    assert [board.already for board in again.boards] == [12, 4]


@pytest.mark.fault("sweep", "a second sweep on the same directory", "exit 5, told who holds it")
def test_a_second_sweep_is_told_who_holds_the_directory(tmp_path):
    with subprocess.Popen([sys.executable, str(HERE / "sweep_driver.py"), str(tmp_path), json.dumps(
            grid(data="toy?seconds=30")), "{}"]) as holder:
        try:
            wait_until(lambda: len(starts(tmp_path)) == 2)
            with pytest.raises(EnvironmentProblem, match=f"pid {holder.pid}"):
                sweep(tmp_path, grid())
            # A worker's start can be seen before the coordinator's next word on it, at most two seconds later.
            wait_until(lambda: len((state_of(tmp_path)["live"] or {}).get("running", [])) == 2)
            state = state_of(tmp_path)
            labels = {trial["label"] for trial in state["live"]["running"]}
            assert state["running"] and labels == {"freeze_depth=0 seed=1", "freeze_depth=0 seed=2"}
            assert f"running in process {holder.pid}" in text_of(state)
        finally:
            holder.kill()


def test_a_directory_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot write a lock"):
        sweep(tmp_path / "file" / "runs", grid())


def test_a_task_that_cannot_start_is_one_sentence(tmp_path):
    with pytest.raises(EnvironmentProblem, match="No module named 'no_such_task'"):
        sweep(tmp_path, grid(), task="no_such_task")


def test_workers_fit_the_machine():
    assert Machine(2, (), 16 * 2**30).workers(None, 100) == 2
    assert Machine(64, (), 2**40).workers(None, 100) == 16
    assert Machine(64, (), 7 * 2**30).workers(None, 100) == 2
    assert Machine(64, ("0", "1", "2"), 2**40).workers(None, 100) == 3
    assert Machine(64, ("0", "1", "2"), 2**40).workers(None, 2) == 2
    assert Machine(2, (), 2**30).workers(8, 100) == 8


def test_workers_fit_the_gpus():
    base, card = 440 * 10**6, 80 * 2**30  # BERT-base's weights
    assert Machine(16, ("0",), 2**37, card).workers(None, 100, base) == 4
    assert Machine(16, ("0",), 2**37, card).workers(None, 100) == 1  # what is not downloaded may be large
    assert Machine(16, ("0",), 2**37).workers(None, 100, base) == 1
    assert Machine(16, ("0",), 2**37, 16 * 2**30).workers(None, 100, base) == 2
    assert Machine(16, ("0",), 2**37, 2**30).workers(None, 100, base) == 1
    assert Machine(6, ("0",), 2**37, card).workers(None, 100, base) == 3
    assert Machine(16, ("0", "1"), 2**37, card).workers(None, 100, base) == 8
    assert Machine(16, ("0", "1"), 2**30, card).workers(None, 100, base) == 2
    assert Machine(16, ("0",), 2**37, card).workers(None, 100, 30 * base) == 1


def test_the_weights_of_a_sweep_are_known_where_its_models_are_here(tmp_path, tiny_bert_dir):
    here, away = (TrialConfig(model_name_or_path=str(name)) for name in (tiny_bert_dir, tmp_path / "none"))
    size = (tiny_bert_dir / "model.safetensors").stat().st_size
    assert weights_at_hand([here, here]) == size and weights_at_hand([here, away]) is None
    halved = shutil.copytree(tiny_bert_dir, tmp_path / "halved")
    config = json.loads((halved / "config.json").read_text())
    (halved / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert weights_at_hand([here, TrialConfig(model_name_or_path=str(halved))]) == 2 * size


def test_gpus_are_found_without_torch(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho 'GPU 1: H100 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7")
    assert visible_gpus() == ["3", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_each_worker_gets_its_gpu_and_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    sweep(tmp_path, grid(data="toy?seconds=0.3&environment=1"), workers=2)
    seen = [json.loads(line) for line in (tmp_path / "environment.log").read_text().splitlines()]
    assert {entry["CUDA_VISIBLE_DEVICES"] for entry in seen} == {"5", "6"}
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {entry["OMP_NUM_THREADS"] for entry in seen} == {share}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,6"


def test_status_of_a_finished_sweep(tmp_path):
    sweep(tmp_path, grid(data="toy?nan=2"))
    text = text_of(state_of(tmp_path))
    assert "6 of 6 trials ended (4 complete, 2 failed)" in text and "not running" in text
    assert "failed: freeze_depth=2 seed=2: non-finite: the loss is nan at step 3" in text
    with pytest.raises(ConfigError, match="no sweep here"):
        state_of(tmp_path / "elsewhere")


def test_the_live_view_draws_what_runs():
    import io

    from rich.console import Console

    board = Board("demo", "accuracy", total=4, workers=2)
    screen = io.StringIO()
    view = RichView(Console(file=screen, force_terminal=True, width=160))
    from finetune.sweep.view.board import Running

    board.running[1] = Running("freeze_depth=2 [red]seed=1[/red]", "prefix:2", time.monotonic(), epoch=1, epochs=3,
                               step=30, steps=60, loss=0.25, value=0.8125)
    board.durations["prefix:2"].append(60.0)
    board.pending["prefix:2"] = 2
    board.offer_best(0.8125, "freeze_depth=2 seed=1")
    view.show(board)
    view.say("[bold]not markup")
    view.close()
    shown = screen.getvalue()
    for words in ("[red]seed=1[/red]", "2/3 (50%)", "0.2500", "idle", "best accuracy 0.8125", "about 1m 30s left",
                  "[bold]not markup"):
        assert words in shown


def test_labels_are_short_and_inert():
    assert label_of({"learning_rate": 3e-5, "seed": 1}, ["learning_rate", "seed"]) == "learning_rate=3e-05 seed=1"
    assert label_of({"dataset_name": "a\x1b[31mb" + "x" * 90}, ["dataset_name"]) == (
        "dataset_name=a?[31mbxxxxxxxx…xxxxxxxxxxxxxxxx")
    assert (duration(44.6), duration(200), duration(7500)) == ("45s", "3m 20s", "2h 5m")


def test_who_shares_a_sweep_is_told_how_many_trials_ended_elsewhere(tmp_path):
    shared = {"storage": f"journal:{tmp_path / 'shared.journal'}"}
    first = sweep(tmp_path / "first", grid(), **shared)
    assert first.boards[0].elsewhere == 0 and first.boards[0].complete == 6
    second = sweep(tmp_path / "second", grid(), **shared)
    assert second.boards[0].elsewhere == 6 and second.boards[0].complete == 0
    assert closing(second, tmp_path / "second").startswith("test (tune): 6 of 6 trials done · 6 on other machines")
    assert closing(second, tmp_path / "second").endswith("and the directories of the other machines")
    text = text_of(state_of(tmp_path / "second"))
    assert "not running; 6 more trials ended on other machines" in text and "goes on where it stopped" not in text


@pytest.mark.parametrize("value, text", [(0.7830, "0.7830"), (0.0, "0.0000"), (0.000048, "4.8e-05"), (-0.5, "-0.5000"),
                                         (0.00123, "0.00123"), (3e6, "3000000.0000")])
def test_small_values_are_not_shown_as_nothing(value, text):
    assert shown_value(value) == text
