"""The bundled sentences with tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.commands.data import describe
from finetune.config import TrialConfig
from finetune.data import encode_split, load_task_data
from finetune.data.sources.catalog import bundled_folder
from finetune.models import load_backbone


def test_the_bundled_part_of_wnut_is_found_and_names_whom_it_is_from():
    data = load_task_data(TrialConfig(dataset_name="wnut17_mini"))
    assert data.task == "token_classification" and data.scheme == "IOB2" and not data.rejected
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 800, "validation": 300, "test": 500}
    root = Path(__file__).parents[2]
    for text in ((bundled_folder("wnut17_mini") / "info.json").read_text(), (root / "NOTICE").read_text()):
        assert "Derczynski" in text and "CC BY 4.0" in text


@pytest.mark.parametrize("max_length", [12, 40])
def test_finetune_data_counts_entities_per_type_and_the_words_that_are_unseen(tiny_bert_dir, max_length):
    config = TrialConfig(dataset_name="wnut17_mini", model_name_or_path=str(tiny_bert_dir), max_length=max_length)
    described, data, tokenizer = describe(config, None), load_task_data(config), load_backbone(config).tokenizer
    of_test = described["splits"]["test"]
    assert of_test["entities"]["person"] == of_test["labels"]["B-person"] and sum(of_test["entities"].values()) == sum(
        count for name, count in of_test["labels"].items() if name.startswith("B-"))
    cut = [encode_split(split, tokenizer, max_length).words for split in data.splits.values()]
    lost = int(sum((words.counts - words.kept).sum() for words in cut))
    assert lost > 0 and list(described["unseen_words"].values()) == [lost]
