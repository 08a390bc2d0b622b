"""The built wheel, used outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What the wheel puts into site-packages, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                    "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, tmp_path: Path, *code: str) -> str:
    done = subprocess.run([sys.executable, *code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_every_module_the_data_and_the_sweeps(installed):
    modules = {path.relative_to(ROOT) for package in ("finetune", "analysis") for path in (ROOT / package).rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    missing = sorted(str(path) for path in modules if not (installed / path).is_file())
    sweeps = {path.name for path in (ROOT / "sweeps").glob("*.yaml")}

    assert not missing
    assert {path.name for path in (installed / "finetune/sweep/library").glob("*.yaml")} == sweeps
    assert not (installed / "tests").exists() and not (installed / "sweeps").exists()


def test_it_works_outside_the_checkout(installed, tmp_path):
    code = ("import finetune, analysis; from finetune.config import TrialConfig; from finetune.data import "
            "load_task_data; from finetune.commands.sweep import find_sweep; print(finetune.__file__); "
            "print(find_sweep('quickstart')); print(len(load_task_data(TrialConfig()).splits['train']))")

    package, sweep, rows = run(installed, tmp_path, "-c", code).splitlines()

    assert package.startswith(str(installed)) and sweep.startswith(str(installed)) and rows == "4000"
    assert "finetune COMMAND" in run(installed, tmp_path, "-m", "finetune", "--help")
