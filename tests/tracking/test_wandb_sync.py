"""An offline sweep becomes one of W&B, agents finish it, and the report reads it back: the whole way, real clients."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from wandb_stage import keys_in, stage

from finetune.results import RecordStore
from finetune.tracking.sync import nested

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def staged(tmp_path, tiny_bert_dir):
    with stage(tmp_path, tiny_bert_dir) as director:
        yield director


def finetune(staged, *arguments, **extra):
    code, output = staged.run(sys.executable, "-m", "finetune", *arguments, **extra)
    assert code == 0, output
    return output


def offline_sweep(staged, mode, **parameters):
    file = staged.sweep_file(freeze_depth=[0, 2, 4], seed=[1], num_train_epochs=1, **parameters)
    finetune(staged, "sweep", str(file), "--workers", "1", WANDB_MODE=mode)
    return RecordStore(staged.folder / "out")


@pytest.mark.slow  # two minutes: several agents, each polling every 5 s
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_an_offline_sweep_is_promoted_and_agents_finish_it(staged, mode):
    store = offline_sweep(staged, mode)
    assert not staged.runs() and len(store.trial_ids()) == 3
    lost = next(record for record in store if record.config["freeze_depth"] == 2)
    shutil.rmtree(store.folder(lost.trial_id))  # the sweep stopped before this one
    sweep = finetune(staged, "sync", "out", "--project", "promoted").split()[-1]
    assert sorted(run.params()["freeze_depth"] for run in staged.runs()) == [0, 4]
    assert all(run.state == "finished" and run.sweep == sweep.rsplit("/", 1)[-1] for run in staged.runs())
    assert finetune(staged, "sync", "out", "--project", "promoted").strip().endswith(sweep)  # nothing is sent twice
    staged.finish(staged.agent(sweep))
    assert sorted(run.params()["freeze_depth"] for run in staged.runs()) == [0, 2, 4]
    again = store.load(lost.trial_id)
    assert again is not None
    same_metrics(again, lost)
    check_report(staged, sweep)
    assert not staged.server.unknown and not keys_in(staged.texts())


def same_metrics(one, other):
    """What `wandb agent` gives and what `finetune sweep` gave; to the last digit where they used as many threads."""
    for split in ("validation", "test"):
        for name, value in one.metrics[split].items():
            if isinstance(value, float):
                exact = one.environment["threads"] == other.environment["threads"]
                assert value == pytest.approx(other.metrics[split][name], abs=0 if exact else 1e-5), (split, name)


def check_report(staged, sweep):
    """From disk, from W&B, and from the cache when W&B is gone: the same numbers."""
    cache = {"FINETUNE_CACHE": str(staged.folder / "cache")}
    summaries = []
    for source in ("out", f"wandb:{sweep}"):
        summaries.append(report(staged, source, **cache))
    staged.server.vanish()
    summaries.append(report(staged, f"wandb:{sweep}", WANDB_HTTP_TIMEOUT="2", **cache))
    disk, online, offline = summaries
    assert len(disk["curve"]) == 3
    assert disk["curve"] == online["curve"] == offline["curve"]
    assert not any("W&B" in warning["text"] for warning in online["warnings"])
    assert any("W&B cannot be read" in warning["text"] for warning in offline["warnings"])


def report(staged, source, **extra):
    finetune(staged, "report", source, "--output_dir", "report", **extra)
    return json.loads((staged.folder / "report" / "summary.json").read_text())


def test_dotted_knobs_are_nested_as_wandb_has_them():
    assert nested({"seed": {"value": 1}, "optimizer.beta1": {"value": 0.8}, "optimizer.beta2": {"values": [0.9]}}) == {
        "seed": {"value": 1},
        "optimizer": {"parameters": {"beta1": {"value": 0.8}, "beta2": {"values": [0.9]}}}}


def test_a_directory_without_records_is_refused(staged):
    code, output = staged.run(sys.executable, "-m", "finetune", "sync", "nothing")
    assert code == 2 and "no trial records there" in output and "Traceback" not in output
