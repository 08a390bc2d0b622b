"""Heads are shared out among workers, so that none is trained by several of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from finetune.results import RecordStore
from finetune.sweep import head_shares as shares
from finetune.sweep.head_shares import HeadShares, NoShares, head_shares
from sweeps import sweep


class Worker:
    def __init__(self):
        self.told = []

    def send(self, kind, content):
        assert kind == "heads"
        self.told.append([each["seed"] for each in content[1]])


def bench(heads, workers=2, done=(), **machine):
    ids = [f"head-{seed}" for seed in range(heads)]
    plan = SimpleNamespace(heads=lambda: ({"freeze_depth": 4}, [{"seed": seed} for seed in range(heads)]),
                           head_candidates=lambda: [SimpleNamespace(trial_id=trial_id) for trial_id in ids])
    team = SimpleNamespace(workers=[Worker() for _ in range(workers)], count=workers,
                           machine=SimpleNamespace(gpus=("0",), **machine))
    return HeadShares(plan, team, done), team


def test_each_worker_has_heads_of_its_own_and_is_told_once():
    ours, team = bench(10)
    first, second = team.workers
    assert list(ours.preferred(first, "head-0")) == [f"head-{seed}" for seed in range(5)]
    ours.taken("head-0")
    assert list(ours.preferred(first, "head-5")) == [f"head-{seed}" for seed in range(1, 5)]
    assert list(ours.preferred(second, "head-1")) == ["head-5", "head-6", "head-7"]  # half of what is left
    assert first.told == [[0, 1, 2, 3, 4]] and second.told == [[5, 6, 7]]


def test_what_is_no_head_comes_when_it_is_its_turn():
    ours, team = bench(4)
    assert not ours.preferred(team.workers[0], "full") and not team.workers[0].told
    assert not NoShares().preferred(team.workers[0], "head-0")


def test_no_share_is_larger_than_what_trains_together(monkeypatch):
    monkeypatch.setattr(shares, "TOGETHER", 3)
    ours, team = bench(100)
    assert len(ours.preferred(team.workers[0], "head-0")) == 3


def test_who_has_done_its_own_and_finds_none_left_helps_the_others():
    ours, team = bench(2)
    first, second = team.workers
    for worker in team.workers:
        for trial_id in list(ours.preferred(worker, "head-0")):
            ours.taken(trial_id)
    assert not ours.preferred(first, "head-1") and first.told == [[0]] and second.told == [[1]]


def test_the_share_of_a_worker_that_is_gone_is_another_s():
    ours, team = bench(4)
    first, second = team.workers
    ours.preferred(first, "head-0")
    team.workers = [second, Worker()]
    assert list(ours.preferred(second, "head-0")) == ["head-0", "head-1"]


def test_what_is_done_is_nobody_s():
    ours, team = bench(6, done={"head-0", "head-1", "head-3"})
    assert list(ours.preferred(team.workers[0], "head-2")) == ["head-2", "head-4"]


@pytest.mark.parametrize("why", ["another machine", "no GPU", "one worker"])
def test_where_they_are_not_shared_out(why):
    _, team = bench(4, workers=1 if why == "one worker" else 2)
    team.machine.gpus = () if why == "no GPU" else ("0",)
    told = []
    team.tell = lambda *what: told.append(what)
    plan = SimpleNamespace(heads=lambda: "all of them")
    assert isinstance(head_shares(plan, team, (), alone=why != "another machine"), NoShares)
    assert told == ([] if why == "no GPU" else [("heads", "all of them")])


def test_no_head_of_a_sweep_trains_twice(tiny_bert_dir, tmp_path, monkeypatch):
    """With the real trial; the workers are told of a GPU that torch does not find here."""
    monkeypatch.setenv("STACKS", str(tmp_path / "stacks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    fixed = {"model_name_or_path": str(tiny_bert_dir), "train_size": 64, "subset_seed": 0, "evaluation_size": 32,
             "max_length": 32, "num_train_epochs": 1, "freeze_depth": 4, "per_device_train_batch_size": 16}
    raw = {"method": "grid", "parameters": {name: {"value": value} for name, value in fixed.items()}
           | {"seed": {"values": list(range(20))}}}
    ending = sweep(tmp_path / "out", raw, workers=2, task="stacked_task", mps=False)
    assert ending.boards[0].complete == 20 and not ending.failures
    stacks = [line.split() for line in (tmp_path / "stacks").read_text().splitlines()]
    trained = [int(seed) for _, *seeds in stacks for seed in seeds]
    assert set(trained) == set(range(20)) and len(trained) < 30, "twice at most where one helps another at the end"
    alone = sweep(tmp_path / "alone", raw, workers=1, task="stacked_task", mps=False)
    assert alone.boards[0].complete == 20

    def losses(folder):
        return {record.trial_id: record.history[-1]["train"]["loss"] for record in RecordStore(folder)}

    assert losses(tmp_path / "out") == losses(tmp_path / "alone")
