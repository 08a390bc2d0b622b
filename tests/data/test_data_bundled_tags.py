"""The bundled sentences with tags."""

from __future__ import annotations

from pathlib import Path

from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.data.sources.catalog import bundled_folder


def test_the_bundled_part_of_wnut_is_found_and_names_whom_it_is_from():
    data = load_task_data(TrialConfig(dataset_name="wnut17_mini"))
    assert data.task == "token_classification" and data.scheme == "IOB2" and not data.rejected
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 800, "validation": 300, "test": 500}
    root = Path(__file__).parents[2]
    for text in ((bundled_folder("wnut17_mini") / "info.json").read_text(), (root / "NOTICE").read_text()):
        assert "Derczynski" in text and "CC BY 4.0" in text
