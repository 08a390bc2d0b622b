"""Fixtures that several test files share, and what CI does not let pass."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

if "FINETUNE_CACHE" not in os.environ:  # tests leave nothing in the user's
    os.environ["FINETUNE_CACHE"] = tempfile.mkdtemp(prefix="finetune-test-cache-")
    atexit.register(shutil.rmtree, os.environ["FINETUNE_CACHE"], ignore_errors=True)
# Before torch is imported: trials are compared to the last digit with those of other processes, which a launcher gives
# one thread, and several test processes share the cores.
# A sweep's only worker has a thread per core all the same: it shall not spin for a core that others use.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("WANDB_MODE", "disabled")  # tests about W&B say what they want

# Minutes each, and a file stays on one worker: they begin first, so that none is left for the end.
LONGEST = ("test_wandb_stops", "test_wandb_sweep", "test_tutorial", "test_interface_sweep", "test_wandb_modes",
           "test_sweep_slurm", "test_sweep_postgres", "test_sweep_journal", "test_distributed", "test_resume",
           "test_sweep_runner", "test_sweep_kill", "test_analysis_report", "test_wandb_macros", "test_faults_sweep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Needs --no-loadscope-reorder."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT (4 layers, width 32) and a WordPiece tokenizer trained on the bundled text."""
    from tiny import save_tiny_bert

    return save_tiny_bert(tmp_path_factory.mktemp("tiny_bert"))


@pytest.fixture
def device_of_its_own():
    """Accelerate keeps the first device of a process: another test's may have been another one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """.ci/run installs what needs root, so that there a skip for want of it is a failure."""
    report = yield
    if report.skipped and item.get_closest_marker("needs_root") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped although CI installs what it needs: {report.longrepr}"
    return report
