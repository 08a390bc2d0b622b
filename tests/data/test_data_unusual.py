"""Files as people have them: workbooks, labels behind the text, rows that lack a column, tokens as Python's text."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tarfile

import pandas as pd
import pytest

from finetune.config import TrialConfig
from finetune.data.load import clear_memory, load_task_data
from finetune.errors import DataError, EnvironmentProblem

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film number {i}", "label": i % 2} for i in range(60)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def _forget():
    clear_memory()


def load(path, **knobs):
    return load_task_data(TrialConfig(dataset_name=str(path), **knobs))


def fingerprint_of_jsonl(tmp_path):
    (tmp_path / "same.jsonl").write_text(JSONL)
    return load(tmp_path / "same.jsonl").fingerprint


# -- Excel -------------------------------------------------------------------------------------------------------------

def test_a_workbook_is_read_like_any_table(tmp_path):
    pd.DataFrame(ROWS).to_excel(tmp_path / "films.xlsx", index=False)
    assert load(tmp_path / "films.xlsx").fingerprint == fingerprint_of_jsonl(tmp_path)


def test_sheets_named_like_splits_are_splits(tmp_path):
    with pd.ExcelWriter(tmp_path / "films.xlsx") as book:
        for name, rows in (("train", ROWS[:40]), ("dev", ROWS[40:50]), ("test", ROWS[50:])):
            pd.DataFrame(rows).to_excel(book, sheet_name=name, index=False)
    assert {name: len(split) for name, split in load(tmp_path / "films.xlsx").splits.items()} == {
        "train": 40, "validation": 10, "test": 10}


def test_of_other_sheets_the_first_is_read_with_a_note(tmp_path):
    with pd.ExcelWriter(tmp_path / "films.xlsx") as book:
        pd.DataFrame(ROWS).to_excel(book, sheet_name="films", index=False, startrow=2)  # a title is often above
        pd.DataFrame({"key": [1], "value": [2]}).to_excel(book, sheet_name="about", index=False)
    data = load(tmp_path / "films.xlsx")
    assert data.fingerprint == fingerprint_of_jsonl(tmp_path)
    assert any("'films' is read; 'about' not" in note for note in data.notes), data.notes


def test_what_is_no_workbook_is_one_sentence(tmp_path):
    (tmp_path / "films.xlsx").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a readable .xlsx workbook"):
        load(tmp_path / "films.xlsx")


def test_an_empty_sheet_has_no_rows(tmp_path):
    pd.DataFrame({"text": [], "label": []}).to_excel(tmp_path / "films.xlsx", index=False)
    with pytest.raises(DataError, match="no sheet has a header and a row"):
        load(tmp_path / "films.xlsx")


def test_without_the_extra_the_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    pd.DataFrame(ROWS).to_excel(tmp_path / "films.xlsx", index=False)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'stellar-finetuning\[excel\]'"):
        load(tmp_path / "films.xlsx")


# -- fastText, JSON, tokens --------------------------------------------------------------------------------------------

def test_fasttext_labels_may_stand_behind_the_text(tmp_path):
    (tmp_path / "ft.txt").write_text("".join(f"{row['text']} __label__{row['label']}\n" for row in ROWS))
    data = load(tmp_path / "ft.txt")
    assert data.label_names == ["0", "1"] and data.text_columns == ("text",)


def test_a_txt_that_only_mentions_a_label_is_no_fasttext(tmp_path):
    (tmp_path / "ft.txt").write_text("".join(f"about __label__{i} and more\n" for i in range(30)))
    with pytest.raises(DataError, match="plain .txt"):
        load(tmp_path / "ft.txt")


def test_a_mapping_of_rows_may_lack_a_column_here_and_there(tmp_path):
    rows = {f"row-{i}": row | ({"remark": "seen twice"} if i % 7 == 0 else {}) for i, row in enumerate(ROWS)}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert sum(map(len, load(tmp_path / "a.json", text_column="text").splits.values())) == 60


def test_tokens_written_as_python_lists_are_joined(tmp_path):
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tokens", "label"])
        writer.writerows([str(row["text"].split()), row["label"]] for row in ROWS)
    data = load(tmp_path / "t.csv")
    assert data.fingerprint == fingerprint_of_jsonl(tmp_path) and any("joined by spaces" in n for n in data.notes)


def test_tokens_of_a_pair_are_joined(tmp_path):
    rows = [{"premise": row["text"].split(), "hypothesis": ["it", "is", "good"], "label": row["label"]} for row in ROWS]
    (tmp_path / "nli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(tmp_path / "nli.jsonl")
    assert data.text_columns == ("premise", "hypothesis") and data.splits["test"].texts[0][1] == "it is good"


def test_an_archive_under_a_tables_name_is_told(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.csv"), io.BytesIO())
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(packed.getvalue()))
    with pytest.raises(DataError, match="archive in it"):
        load(tmp_path / "train.csv.gz")
