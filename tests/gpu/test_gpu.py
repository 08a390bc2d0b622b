"""What only a GPU can show: `make test-gpu`. Without one each test is skipped, with the reason."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from finetune.config import TrialConfig
from finetune.prefix import served
from finetune.prefix.resident import residents
from finetune.saving import write
from finetune.sweep.workers.mps import find_tool, is_managed
from finetune.training import graphs
from finetune.trial import head_stacks, idle, run_trial
from sweeps import sweep, wait_until

GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="there is no GPU that torch can use")]
LAYERS = 4


@pytest.fixture(autouse=True)
def on_the_gpu(device_of_its_own, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    yield
    residents.release(torch.device("cuda"))


@pytest.fixture
def trial(tiny_bert_dir):
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 96, "evaluation_size": 32, "max_length": 48,
             "num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2}

    def run(**changes):
        outcome = run_trial(TrialConfig.from_mapping({**knobs, **changes}))
        assert outcome.record.state == "complete", outcome.record.error
        assert outcome.record.environment["device_type"] == PartialState().device.type
        return outcome

    run.knobs = knobs
    return run


def assert_near(found, expected, atol):
    for split in ("validation", "test"):
        np.testing.assert_allclose(found.predictions[f"{split}_logits"], expected.predictions[f"{split}_logits"],
                                   atol=atol)


def test_the_record_says_which_attention_ran(trial):
    environment = trial(freeze_depth=2).record.environment
    assert environment["device_type"] == "cuda" and "cudnn" not in environment["attention"]
    assert environment["padded_to"] == 16 and environment["deterministic"]


@pytest.mark.parametrize("depth", [1, 3, LAYERS])
@pytest.mark.parametrize("precision, atol", [("no", 1e-3), ("bf16", 0.1)])
def test_reuse_gives_the_predictions_of_full_passes(trial, depth, precision, atol):
    knobs = {"freeze_depth": depth, "mixed_precision": precision, "learning_rate": 1e-4, "head_learning_rate": 1e-3,
             "num_train_epochs": 1 if precision == "bf16" else 2}  # rounding may choose another epoch as the best
    found = trial(**knobs)
    assert found.record.prefix["used"], found.record.prefix
    assert residents.held_bytes(torch.device("cuda", torch.cuda.current_device())) > 0
    assert_near(found, trial(**knobs, prefix_cache=False), atol)


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_poolings_of_one_token_draw_the_same_dropout(trial, pooling):
    knobs = {"freeze_depth": LAYERS, "pooling": pooling}
    assert_near(trial(**knobs), trial(**knobs, prefix_cache=False), 1e-3)


@pytest.mark.parametrize("precision, atol", [("no", 1e-3), ("bf16", 0.1)])
@pytest.mark.parametrize("depth", [0, 2, LAYERS])
def test_recorded_steps_train_what_eager_steps_train(trial, depth, precision, atol):
    knobs = {"freeze_depth": depth, "mixed_precision": precision, "learning_rate": 1e-4, "head_learning_rate": 1e-3,
             "num_train_epochs": 1 if precision == "bf16" else 2}  # rounding may choose another epoch as the best
    recorded, eager = (trial(**knobs, cuda_graphs=asked) for asked in ("true", "false"))
    assert recorded.record.trial_id == eager.record.trial_id
    assert_near(recorded, eager, atol)


def test_steps_are_recorded_and_nothing_is_said(trial, monkeypatch):
    from finetune.training import loop

    made, original = [], loop.graphs_for
    monkeypatch.setattr(loop, "graphs_for", lambda trainer: made.append(original(trainer)) or made[-1])
    trial(freeze_depth=2, cuda_graphs="true")
    assert made[-1].refused is None and made[-1].replays > 15


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_micro_batches_are_recorded_one_by_one_and_their_update_too(trial, precision, monkeypatch):
    from finetune.training import loop

    made, original = [], loop.graphs_for
    knobs = {"freeze_depth": 1, "learning_rate": 1e-4, "head_learning_rate": 1e-3, "mixed_precision": precision,
             "gradient_accumulation_steps": 2, "num_train_epochs": 1 if precision == "bf16" else 2}
    eager = trial(**knobs, cuda_graphs="false")
    monkeypatch.setattr(loop, "graphs_for", lambda trainer: made.append(original(trainer)) or made[-1])
    assert_near(trial(**knobs, cuda_graphs="true"), eager, 2e-3 if precision == "no" else 0.1)
    assert made[-1].refused is None and made[-1].replays == (5 if precision == "bf16" else 11)


@pytest.mark.parametrize("depth", [0, 2])
def test_evaluation_and_a_ragged_batch_are_recorded_in_a_long_trial(trial, depth):
    knobs = {"freeze_depth": depth, "learning_rate": 1e-4, "head_learning_rate": 1e-3, "num_train_epochs": 5,
             "train_size": 92}
    idle.forget_idle()
    recorded = trial(**knobs, cuda_graphs="true")
    kept, = (one.graphs for one in idle._idle.values())
    assert kept.refused is None and kept.evaluates and kept._passes and kept.replays == 5 * 12 - 1
    assert_near(recorded, trial(**knobs, cuda_graphs="false"), 2e-3)


def test_a_recording_that_breaks_off_leaves_a_trial_that_ends_well(trial, monkeypatch):
    from finetune.training.graphs import StepGraphs

    eager = trial(freeze_depth=2, cuda_graphs="false")
    original = StepGraphs._whole

    def waits_for_the_host(self, made):
        original(self, made)
        made.found.item()

    monkeypatch.setattr(StepGraphs, "_whole", waits_for_the_host)
    assert_near(trial(freeze_depth=2, cuda_graphs="true"), eager, 1e-3)


def test_two_runs_on_one_card_give_the_same_digits(trial):
    for precision in ("no", "bf16"):
        first, second = (trial(freeze_depth=1, mixed_precision=precision) for _ in range(2))
        for name, values in first.predictions.items():
            np.testing.assert_array_equal(second.predictions[name], values)


def test_the_gpu_trains_what_the_cpu_trains(trial, monkeypatch, tiny_bert_dir, tmp_path):
    """Without dropout, which draws from other generators there."""
    import json
    import shutil

    folder = shutil.copytree(tiny_bert_dir, tmp_path / "quiet")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    knobs = {"model_name_or_path": str(folder), "freeze_depth": 1, "head_dropout": 0.0, "learning_rate": 1e-4,
             "head_learning_rate": 1e-3}
    on_gpu = trial(**knobs)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    on_cpu = trial(**knobs)
    assert on_cpu.record.environment["device_type"] == "cpu"
    assert_near(on_gpu, on_cpu, 2e-3)


def test_without_room_on_the_card_the_host_serves(trial, monkeypatch):
    expected = trial(freeze_depth=2)
    monkeypatch.setattr(served, "RESIDENT_ON", frozenset())
    assert_near(trial(freeze_depth=2), expected, 1e-5)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_recorded_steps_serve_the_next_trial_of_their_kind(trial, depth, precision):
    knobs = {"freeze_depth": depth, "mixed_precision": precision, "cuda_graphs": "true"}
    idle.forget_idle()
    expected = trial(**knobs, seed=2, learning_rate=3e-4)
    idle.forget_idle()
    trial(**knobs, seed=1)
    assert [one.graphs.refused for one in idle._idle.values()] == [None]
    second = trial(**knobs, seed=2, learning_rate=3e-4)
    assert second.record.weights == expected.record.weights
    assert np.array_equal(second.predictions["test_logits"], expected.predictions["test_logits"])


def test_heads_train_as_a_stack_whoever_trains_beside_them(trial, tiny_bert_dir):
    knobs = {"freeze_depth": LAYERS, "mixed_precision": "bf16", "head_size": 20, "subset_seed": 0}
    head_stacks.configure([])
    alone = trial(**knobs, seed=2)
    assert alone.record.prefix["head_slots"] == 64
    head_stacks.configure([trial.knobs | knobs | {"seed": seed, "head_learning_rate": rate}
                           for seed in (1, 2, 3) for rate in (1e-3, 1e-2)])
    head_stacks._trained.clear()
    trial(**knobs, seed=1)
    assert len(head_stacks._trained) == 5, "the others are trained"
    among = trial(**knobs, seed=2)
    head_stacks.configure([])
    assert among.record.weights == alone.record.weights
    assert np.array_equal(among.predictions["test_logits"], alone.predictions["test_logits"])


def test_frozen_layers_are_not_fetched_to_see_whether_they_changed(trial, tmp_path, monkeypatch):
    """They lie on the card once, for all trials of a process: where they lie says that they are as loaded."""
    fetched, fetch = [], write._plain
    monkeypatch.setattr(write, "_plain", lambda tensor: fetched.append(tensor) or fetch(tensor))
    for depth in (LAYERS, 2):
        fetched.clear()
        kept = trial(freeze_depth=depth, output_dir=str(tmp_path / str(depth))).record.model
        assert kept["tensors"] == len(fetched) > 0


@pytest.mark.parametrize("depth", [0, 2])
def test_recorded_steps_in_bf16_have_the_digits_of_autocast(trial, monkeypatch, depth):
    """With copies of the weights (master_weights.py), and without them."""
    knobs = {"mixed_precision": "bf16", "cuda_graphs": "true", "freeze_depth": depth, "num_train_epochs": 3}
    used, original = [], graphs.same_loss
    monkeypatch.setattr(graphs, "same_loss", lambda *given: used.append(original(*given)) or used[-1])
    found = trial(**knobs)
    idle.forget_idle()
    monkeypatch.setattr(graphs, "same_loss", lambda *_: False)
    expected = trial(**knobs)
    idle.forget_idle()
    assert used == [True]
    assert [entry["train"]["loss"] for entry in found.record.history] == [
        entry["train"]["loss"] for entry in expected.record.history]
    assert_near(found, expected, 0)


@pytest.mark.skipif(find_tool() is None or is_managed(), reason="MPS has no control tool here, or a daemon already")
def test_workers_on_one_card_leave_no_daemon(trial, tmp_path):
    def daemons():
        return {process.pid for process in psutil.process_iter(["name"]) if "cuda-mps" in (process.info["name"] or "")}

    before = daemons()
    raw = {"method": "grid", "parameters": {name: {"value": value} for name, value in trial.knobs.items()}
           | {"freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2]}}}
    ending = sweep(tmp_path / "out", raw, workers=2, task="finetune.trial")
    assert ending.boards[0].complete == 4 and not ending.failures
    wait_until(lambda: daemons() <= before)
