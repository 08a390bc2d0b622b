"""Out of memory, for real: the process may not take more address space."""

from __future__ import annotations

import re

import killing
import pytest
import torch

from finetune.training.memory import is_out_of_memory

# An address-space limit bounds the CPU's allocator; and a fork can not use CUDA.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="about a CPU's memory, and trials go to the GPU here")
MIB = 2**20


@pytest.fixture(scope="module")
def knobs(tmp_path_factory):
    from tiny import save_tiny_bert

    model = save_tiny_bert(tmp_path_factory.mktemp("wide"), layers=2, width=256)
    return {"model_name_or_path": str(model), "train_size": 256, "evaluation_size": 8, "num_train_epochs": 1,
            "per_device_train_batch_size": 128, "freeze_depth": 0, "prefix_cache": False, "head_dropout": 0.0}


@pytest.mark.parametrize(("error", "expected"), [
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("could not create a primitive"), True), (MemoryError(), True),
    (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),
    (ValueError("could not create a primitive"), False)], ids=str)
def test_what_a_cpu_says_when_memory_runs_out_is_known(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.fault("memory", "a training step runs out of memory",
                   "the trial fails as out-of-memory, with the figure and the knob to change")
def test_out_of_memory_names_the_figure_and_the_knob(tmp_path, knobs):
    code, said = killing.run(knobs, tmp_path / "out", killing.LittleMemory(60 * MIB))
    assert code == 0, said
    (record,) = killing.records(tmp_path / "out")
    assert record.state == "failed" and record.error["kind"] == "out-of-memory" and not record.metrics
    assert re.search(r"out of memory on cpu: \d+ bytes could not be had", record.error["message"])
    assert "use a smaller per_device_train_batch_size (it is 128)" in record.error["message"]
    assert "auto_micro_batch: true" in record.error["message"]


@pytest.mark.fault("memory", "a training step runs out of memory with auto_micro_batch: true",
                   "the rows per pass are halved, the effective batch stays; said, recorded, and in the report")
def test_the_micro_batch_is_halved(tmp_path, knobs):
    knobs = {**knobs, "auto_micro_batch": True}
    code, said = killing.run(knobs, tmp_path / "out", killing.LittleMemory(60 * MIB))
    assert code == 0 and "out of memory" in said and "64 rows at a time instead of 128" in said, said
    (record,) = killing.records(tmp_path / "out")
    assert record.state == "complete" and record.micro_batch <= 64
    assert killing.run(knobs, tmp_path / "roomy")[0] == 0
    (roomy,) = killing.records(tmp_path / "roomy")
    assert roomy.micro_batch is None
    # The backbone's dropout draws other masks for other micro-batches.
    assert record.history[0]["train"]["loss"] == pytest.approx(roomy.history[0]["train"]["loss"], rel=5e-2)
