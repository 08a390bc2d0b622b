"""`finetune.run_sweep` where people call it: a script without a guard, a thread, a notebook with its stop button."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import finetune
from finetune.results import RecordStore


def sweep_of(model, **parameters):
    fixed = {"model_name_or_path": str(model), "train_size": 64, "evaluation_size": 32, "max_length": 32,
             "num_train_epochs": 1, "save_model": False}
    return {"name": "mine", "method": "grid", "parameters": {
        **{name: {"value": value} for name, value in {**fixed, **parameters}.items()},
        "freeze_depth": {"values": [0, 4]}}}


def test_a_script_needs_no_guard(tiny_bert_dir, tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(f"""\
        import finetune
        print("once")
        result = finetune.run_sweep({sweep_of(tiny_bert_dir)!r}, set={{"seed": range(1, 3)}}, workers=1)
        print(result.output_dir, len(result.trials), result.failures)
        print(len(result.report().curve))
        """))
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "once\nruns/mine 4 []\n2\n", done.stderr
    again = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout == done.stdout


@pytest.fixture(scope="module")
def from_a_thread(tiny_bert_dir, tmp_path_factory):
    """A sweep of two learning rates, of which one ends in numbers that are none, without an output_dir."""
    found = []
    sweep = sweep_of(tiny_bert_dir, max_grad_norm=0, head_learning_rate=1e-3, weight_decay=10,
                     lr_scheduler_type="constant", mixed_precision="bf16") | {"name": "lr-0.1"}
    call = threading.Thread(target=lambda: found.append(finetune.run_sweep(
        sweep, set={"freeze_depth": 0, "learning_rate": [1e-4, 10], "num_train_epochs": 8}, workers=1,
        progress=False)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("thread"))
        call.start()
        call.join()
        yield found[0]


def test_a_thread_may_call_it(from_a_thread):
    assert from_a_thread.output_dir == Path("runs/lr-0.1")  # the whole name: lr-0.2 is another sweep
    assert len(RecordStore(from_a_thread.output_dir).trial_ids()) == 2


def test_failures_are_told(from_a_thread):
    assert len(from_a_thread.failures) == 1 and "failed" in from_a_thread._repr_html_()
    assert sorted(from_a_thread.trials["state"]) == ["complete", "failed"]


@pytest.fixture
def kernel(tmp_path):
    """A notebook's kernel, and a function that runs a cell in it and gives back what it printed."""
    notebook = nbformat.v4.new_notebook()
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": tmp_path}})

    def run(source):
        cell = nbformat.v4.new_code_cell(source)
        client.nb.cells.append(cell)
        client.execute_cell(cell, len(client.nb.cells) - 1)
        return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "")
                       for output in cell.outputs)

    with client.setup_kernel(env={**os.environ}):
        yield client, run


def stopped(run, source, when, presses=1):
    """What a cell says that the stop button ends, once or several times, as soon as `when` holds."""
    pid = int(run("import os; print(os.getpid())"))
    done = threading.Event()

    def press_stop():
        while not when() and not done.is_set():
            time.sleep(0.05)
        for _ in range(presses):
            os.kill(pid, signal.SIGINT)  # what the button does
            time.sleep(0.01)

    button = threading.Thread(target=press_stop)
    button.start()
    try:
        with pytest.raises(CellExecutionError) as caught:
            run(source)
    finally:
        done.set()
        button.join()
    assert "KeyboardInterrupt" in str(caught.value)
    return str(caught.value)


@pytest.mark.timeout(600)  # against a hang; on a busy machine a cell alone has taken over two minutes
def test_a_notebook_stops_and_goes_on(kernel, tiny_bert_dir, tmp_path):
    _, run = kernel
    sweep = sweep_of(tiny_bert_dir, num_train_epochs=40)
    run(f"import finetune, json, os\nsweep = json.loads({json.dumps(sweep)!r}); kept = 'still here'")
    assert "the same call goes on where this one stopped" in stopped(
        run, "finetune.run_sweep(sweep, workers=1)", lambda: list(tmp_path.glob("runs/mine/checkpoints/*")))
    before = len(RecordStore(tmp_path / "runs/mine").trial_ids())
    assert before < 2 and list((tmp_path / "runs/mine/checkpoints").iterdir())
    said = run("sweep_result = finetune.run_sweep(sweep, workers=1)\nprint(kept, len(sweep_result.trials))")
    assert "still here 2" in said and "goes on from a checkpoint" in said and "mine (tune)" in said
    records = [RecordStore(tmp_path / "runs/mine").load(i) for i in RecordStore(tmp_path / "runs/mine").trial_ids()]
    assert [len(record.history) for record in records] == [40, 40]
    assert sum(bool(record.resumes) for record in records) == 1

    trial = {**{name: entry["value"] for name, entry in sweep["parameters"].items() if "value" in entry},
             "freeze_depth": 2, "num_train_epochs": 100}
    run(f"trial = json.loads({json.dumps(trial)!r})")
    for presses in (1, 2):  # the second raises at once, and nothing is lost either
        stopped(run, f"finetune.run_trial(**trial, seed={presses})",
                lambda: list(tmp_path.glob("runs/single/checkpoints/*/*/state.json")), presses)
        said = run(f"record = finetune.run_trial(**trial, seed={presses})\nprint(kept, len(record.history))")
        assert "still here 100" in said and "goes on from a checkpoint" in said
