"""A resumed trial equals an uninterrupted one, to the last bit: real SIGKILLs, in processes of their own."""

from __future__ import annotations

import signal

import killing
import pytest

STEPS = 12  # two epochs of six
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_every_step_and_resumed_equals_uninterrupted(tmp_path, knobs, variant):
    knobs = {**knobs, **VARIANTS[variant]}
    expected = uninterrupted(knobs, tmp_path / "whole")
    steps = 6 * knobs["num_train_epochs"]
    every = 1 if variant == "prefix" else 3  # in make test: every step of one variant, every third of the others
    kept = 0  # the newest checkpoint: killed at a step, before that step's own is written
    for step in [*range(every, steps + 1, every), None]:
        code, said = killing.run(knobs, tmp_path / "killed", killing.At(step))
        assert code == (0 if step is None else -signal.SIGKILL), said
        assert f"resumed at {kept} after {kept // 6} epochs" in said if kept else "resumed" not in said
        kept = (step - 1) // 2 * 2 if step else None
    is_same(killing.result(tmp_path / "killed"), expected)
    assert not (tmp_path / "killed" / "checkpoints").exists()
