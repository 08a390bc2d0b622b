"""The architecture: rooms from top to bottom (tests/support/rooms.py has their order), and no way back up."""

from __future__ import annotations

import pytest
import rooms


@pytest.fixture(scope="module")
def edges() -> set[tuple[str, str]]:
    return rooms.imports(rooms.modules())


def test_no_import_goes_upwards(edges):
    told = [f"{a} imports {b}, which stands above it" for a, b in rooms.upwards(edges)]
    assert not told, "imports go from top to bottom (tests/support/rooms.py, ORDER): " + "; ".join(told)


def test_no_two_files_import_each_other(edges):
    told = [f"{a} and {b}" for a, b in rooms.circles(edges)]
    assert not told, "two files never import each other: " + "; ".join(told)


def test_the_rules_see_what_they_forbid():
    edges = {("finetune.data.load", "finetune.trial.recipe"), ("finetune.trial.recipe", "finetune.data.load")}
    assert rooms.upwards(edges) == [("finetune.data.load", "finetune.trial.recipe")]
    assert rooms.circles(edges) == [("finetune.data.load", "finetune.trial.recipe")]


def test_relative_imports_are_seen_too(tmp_path):
    (tmp_path / "load.py").write_text("from ..trial.recipe import run_trial\nfrom . import targets\n")
    found = rooms.modules() | {"finetune.data.load": tmp_path / "load.py"}
    edges = {edge for edge in rooms.imports(found) if edge[0] == "finetune.data.load"}
    assert edges == {("finetune.data.load", "finetune.trial.recipe"), ("finetune.data.load", "finetune.data.targets")}


def test_the_recipe_fits_on_two_screens():
    assert len((rooms.ROOT / "finetune/trial/recipe.py").read_text().splitlines()) <= 170


def test_every_module_has_its_row():
    assert all(rooms.row(name) >= 0 for name in rooms.modules())


def test_files_stay_short():
    long = {name: count for name, path in rooms.modules().items()
            if (count := len(path.read_text(encoding="utf-8").splitlines())) > rooms.MOST_LINES}
    assert not long, f"at most {rooms.MOST_LINES} lines; split by what they hold: {long}"
