"""A resumed trial equals an uninterrupted one, to the last bit: real SIGKILLs, in processes of their own."""

from __future__ import annotations

import signal

import killing
import pytest
import resume_driver

VARIANTS = {
    "prefix": {"freeze_depth": 2},
    "accumulation": {"freeze_depth": 0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "phases between epochs": {"strategy": "lp_ft:1"},
    "phases inside an epoch": {"strategy": "lisa:1/4"},
    "phases from gradient norms": {"strategy": "auto:80", "num_train_epochs": 3},
    "reuse": {"freeze_depth": 2, "prefix_cache": True},
}


@pytest.fixture(scope="module")
def knobs(tiny_bert_dir):
    return {"model_name_or_path": str(tiny_bert_dir), "train_size": 48, "evaluation_size": 24, "num_train_epochs": 2,
            "per_device_train_batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2, "prefix_cache": False,
            "checkpointing_steps": 2}


def uninterrupted(knobs, folder):
    code, said = killing.run({**knobs, "checkpointing_steps": None}, folder)
    assert code == 0, said
    return killing.result(folder)


def is_same(result, expected):
    expected["config"]["checkpointing_steps"] = result["config"]["checkpointing_steps"]
    assert result == expected


def check_kills(tmp_path, knobs, variant, every):
    """Killed at each `every`-th step, one after the other, then let through."""
    knobs = {**knobs, **VARIANTS[variant]}
    expected = uninterrupted(knobs, tmp_path / "whole")
    steps = 6 * knobs["num_train_epochs"]
    kept = 0  # the newest checkpoint: killed at a step, before that step's own is written
    for step in [*range(every, steps + 1, every), None]:
        code, said = killing.run(knobs, tmp_path / "killed", killing.At(step))
        assert code == (0 if step is None else -signal.SIGKILL), said
        assert f"resumed at {kept} after {kept // 6} epochs" in said if kept else "resumed" not in said
        kept = (step - 1) // 2 * 2 if step else None
    is_same(killing.result(tmp_path / "killed"), expected)
    assert not (tmp_path / "killed" / "checkpoints").exists()


@pytest.mark.fault("kill", "SIGKILL at every step of a trial",
                   "resumed from the last checkpoint: metrics, predictions and weights, bit for bit")
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_every_step_and_resumed_equals_uninterrupted(tmp_path, knobs, variant):
    check_kills(tmp_path, knobs, variant, 1 if variant == "prefix" else 3)


@pytest.mark.faults
@pytest.mark.fault("kill", "SIGKILL at every step, in each variant: accumulation, phases, gradient norms, reuse",
                   "resumed from the last checkpoint: metrics, predictions and weights, bit for bit")
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_every_single_step_of_every_variant(tmp_path, knobs, variant):
    check_kills(tmp_path, knobs, variant, 1)


@pytest.mark.faults
@pytest.mark.fault("kill", "one SIGKILL, at any step, in each variant",
                   "resumed from the last checkpoint: metrics, predictions and weights, bit for bit")
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_once_at_any_step(tmp_path, knobs, variant):
    knobs = {**knobs, **VARIANTS[variant]}
    expected = uninterrupted(knobs, tmp_path / "whole")
    for step in range(1, 6 * knobs["num_train_epochs"] + 1):
        folder = tmp_path / f"killed-{step}"
        assert killing.run(knobs, folder, killing.At(step))[0] == -signal.SIGKILL
        code, said = killing.run(knobs, folder)
        assert code == 0, said
        is_same(killing.result(folder), expected)


@pytest.mark.fault("kill", "SIGINT or SIGTERM to a trial",
                   "a checkpoint after the running step, exit 130 or 143; resumed, bit for bit the same")
def test_a_signal_checkpoints_and_the_next_run_goes_on(tmp_path, knobs):
    knobs = {**knobs, "freeze_depth": 4, "checkpointing_steps": None}
    expected = uninterrupted(knobs, tmp_path / "whole")
    for step, number in ((3, signal.SIGINT), (8, signal.SIGTERM)):
        code, said = killing.run(knobs, tmp_path / "stopped", killing.At(step, number))
        assert code == 128 + number and f"a checkpoint is kept at step {step} of 12" in said, said
    code, said = killing.run(knobs, tmp_path / "stopped")
    assert code == 0 and "resumed at 8 after 1 epochs" in said
    is_same(killing.result(tmp_path / "stopped"), expected)


@pytest.mark.fault("kill", "a second Ctrl-C to a trial",
                   "it ends at once, exit 130; the last checkpoint stays")
def test_a_second_ctrl_c_ends_a_trial_at_once(tmp_path, knobs):
    code, said = killing.run({**knobs, "freeze_depth": 4}, tmp_path / "out", killing.Twice(5))
    assert code == 130 and "kept" not in said
    assert [path.name for path in (tmp_path / "out" / "checkpoints").glob("*/*")] == ["step-00000004-epoch-0000"]


@pytest.mark.fault("kill", "killed or stopped while the validation split is evaluated",
                   "the trained epoch is kept by the checkpoint of a signal; resumed, it equals an uninterrupted one")
def test_stopped_while_it_evaluates(tmp_path, knobs):
    knobs = {**knobs, "strategy": "lisa:1/3", "checkpointing_steps": None, "per_device_eval_batch_size": 4}
    expected = uninterrupted(knobs, tmp_path / "whole")
    code, said = killing.run(knobs, tmp_path / "stopped", killing.WhileEvaluating(6, signal.SIGTERM))
    assert code == 143 and "kept at step 6" in said, said
    code, said = killing.run(knobs, tmp_path / "stopped")
    assert code == 0 and "resumed at 6 after 0 epochs" in said
    is_same(killing.result(tmp_path / "stopped"), expected)


@pytest.mark.fault("kill", "resumed with other versions, another device or other threads",
                   "said, and in the record")
def test_a_change_of_threads_is_said(tmp_path, knobs):
    knobs = {**knobs, "freeze_depth": 4}
    killing.run(knobs, tmp_path / "out", killing.At(5))
    code, said = killing.run(knobs, tmp_path / "out", killing.At(), threads=2)
    assert code == 0 and "resumed with threads 1 -> 2: the result may differ in the last digits" in said
    (record,) = killing.records(tmp_path / "out")
    assert record.resumes == [{"step": 4, "changed": {"threads": [1, 2]}}]


@pytest.mark.fault("bytes", "the only checkpoint of a trial is damaged",
                   "said; the trial starts again, to the same result")
def test_a_damaged_checkpoint_is_skipped_by_the_trial(tmp_path, knobs):
    knobs = {**knobs, "freeze_depth": 4}
    expected = uninterrupted(knobs, tmp_path / "whole")
    killing.run(knobs, tmp_path / "killed", killing.At(5))
    (tensors,) = (tmp_path / "killed" / "checkpoints").rglob("tensors.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    code, said = killing.run(knobs, tmp_path / "killed")
    assert code == 0 and "is skipped: tensors.safetensors does not match its checksum" in said and "resumed" not in said
    is_same(killing.result(tmp_path / "killed"), expected)


@pytest.mark.fault("kill", "a signal to one of two ranks, in the middle of an epoch",
                   "both stop at the same step; resumed on both, bit for bit the same")
@pytest.mark.parametrize("reuse", [False, True])
def test_two_ranks_stop_together_and_go_on(tmp_path, knobs, reuse):
    knobs = {**knobs, "freeze_depth": 2, "per_device_train_batch_size": 4, "checkpointing_steps": None,
             "prefix_cache": reuse}
    failed = killing.ranks(2, tmp_path / "out", resume_driver.main, tmp_path, knobs, 8)
    assert not failed, failed
    assert len(list(tmp_path.glob("interrupted.*"))) == 2
    (record,) = killing.records(tmp_path / "stopped")
    assert [resume["step"] for resume in record.resumes] == [8] and record.environment["processes"] == 2
    assert killing.result(tmp_path / "stopped") == killing.result(tmp_path / "whole")
