"""What the pages on strategies show is what the code does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import test_freezing_strategies as strategies
from families import build
from training import train, trainer_for

from finetune.freezing import rules
from finetune.freezing.language import FORMS, reads_layers, strategy
from finetune.freezing.strategies import strategy_table

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- strategies: generated -->\n", "<!-- end -->\n"


def test_the_example_of_a_new_strategy_works_as_written(monkeypatch):
    page = (DOCS / "adding_a_strategy.md").read_text(encoding="utf-8")
    rule, test = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {**vars(strategies), **vars(rules), "strategy": strategy, "reads_layers": reads_layers,
             "build": build, "train": train, "trainer_for": trainer_for}
    before = dict(FORMS)
    try:
        exec(f"from __future__ import annotations\n{rule}\n{test}", names)
        assert FORMS.keys() - before.keys() == {"every"}
        names["test_every_other_layer_trains"]()
    finally:
        FORMS.clear()
        FORMS.update(before)


def test_the_table_of_strategies_is_the_registry_s():
    path = DOCS / "strategies.md"
    page = path.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    written, ended, after = rest.partition(END)
    assert found and ended
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(before + BEGIN + strategy_table() + END + after, encoding="utf-8")
        written = strategy_table()
    assert written == strategy_table()
    assert all(f"`{form.syntax}`" in written for form in FORMS.values())
