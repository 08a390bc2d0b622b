"""examples/: the notebook runs from top to bottom, the script runs; what they show is what they find."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
ONE_CORE = {"SLURM_CPUS_PER_TASK": "1"}  # one worker of one thread: each worker more imports torch once more


def executed(folder: Path, **environment: str) -> dict[str, str]:
    """{cell id: its text output} of the notebook, run in `folder`. Raises for a cell that fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment})
    return {cell["id"]: "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "")
                                for output in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"}


def check(told: dict[str, str]) -> None:
    said = "\n".join(told.values())
    assert "layer 3: frozen\nlayer 4: trains" in said and "that a gradient reaches: 4" in said
    assert "0 failed" in said and "all-MiniLM-L6-v2 on rotten_tomatoes_mini" in said and "P(positive)" in said


@pytest.mark.timeout(900)  # against a hang only
def test_the_notebook_runs_with_fewer_rows(tmp_path):
    check(executed(tmp_path, TUTORIAL_QUICK="1", **ONE_CORE))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebook_runs_as_a_student_runs_it(tmp_path):
    check(executed(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [False, True])
def test_its_first_cell_installs_what_lies_beside_it(zipped, tmp_path):
    """In an environment that has what the project needs but not the project: pip runs, and downloads setuptools."""
    venv.create(tmp_path / "venv", with_pip=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    (tmp_path / "here").mkdir()
    with zipfile.ZipFile(tmp_path / "here" / "stellar-finetuning-main.zip", "w") as archive:
        for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                                   check=True).stdout.splitlines():
            archive.write(ROOT / name, f"stellar-finetuning-main/{name}")
    if not zipped:
        shutil.unpack_archive(tmp_path / "here" / "stellar-finetuning-main.zip", tmp_path / "here")
        (tmp_path / "here" / "stellar-finetuning-main.zip").unlink()
    cell = next(c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code")
    python = [tmp_path / "venv" / "bin" / "python", "-c"]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    empty = subprocess.run([*python, cell], cwd=tmp_path / "venv", capture_output=True, text=True, env=outside)
    assert "Put a copy of the project" in empty.stderr
    done = subprocess.run([*python, f"{cell}\nprint(finetune.__file__, len(finetune.load_data().labels))"],
                          cwd=tmp_path / "here", capture_output=True, text=True, env=outside)
    assert done.stdout == f"{site / 'finetune' / '__init__.py'} 2\n", done.stderr


def test_the_notebook_is_small_and_kept_without_errors():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", [])}
    assert "error" not in kinds and NOTEBOOK.stat().st_size < 300_000
    steps = [cell.source for cell in notebook.cells if cell.source.startswith("## ")]
    assert len(steps) == 12
    text = "\n".join(cell.source for cell in notebook.cells)
    assert text.count("**Question to try.**") == 11 and text.count("**What can go wrong.**") == 10


def test_the_script_runs(tmp_path):
    script = ROOT / "examples" / "depths.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    done = subprocess.run([sys.executable, str(script), "16"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, **ONE_CORE, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout and (tmp_path / "depths.png").stat().st_size > 1000
