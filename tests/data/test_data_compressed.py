"""Inputs as people have them: compressed files, fastText's lines, pandas' orient="index", lists of tokens."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pytest

from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.data.formats import compressed
from finetune.data.load import clear_memory
from finetune.errors import DataError

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film number {i}", "label": i % 2} for i in range(60)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.fixture(autouse=True)
def _fresh():
    clear_memory()


def load(path):
    return load_task_data(TrialConfig(dataset_name=str(path)))


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize(("suffix", "content"), [(".csv", CSV), (".tsv", CSV.replace(",", "\t")), (".jsonl", JSONL)])
def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path, ending, suffix, content):
    (tmp_path / f"train{suffix}").write_text(content)
    plain = load(tmp_path / f"train{suffix}")
    path = tmp_path / "packed" / f"train{suffix}{ending}"
    path.parent.mkdir()
    path.write_bytes(PACKED[ending](content.encode()))
    assert load(path).fingerprint == load(path.parent).fingerprint == plain.fingerprint


def test_zst_is_read(tmp_path):
    import pyarrow

    with pyarrow.output_stream(str(tmp_path / "train.csv.zst"), compression="zstd") as stream:
        stream.write(CSV.encode())
    assert sum(map(len, load(tmp_path / "train.csv.zst").splits.values())) == 60


def test_compressed_splits_are_told_by_their_names(tmp_path):
    for name, rows in (("train", ROWS[:40]), ("dev", ROWS[40:50]), ("test", ROWS[50:])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert {name: len(split) for name, split in load(tmp_path).splits.items()} == {
        "train": 40, "validation": 10, "test": 10}


@pytest.mark.parametrize("content", [b"not gzip at all", gzip.compress(CSV.encode())[:-20], b""])
def test_damaged_ones_are_one_sentence(tmp_path, content):
    (tmp_path / "train.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match="train.csv.gz"):
        load(tmp_path / "train.csv.gz")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "MOST_BYTES", 1 << 20)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"a" * (3 << 20)))
    with pytest.raises(DataError, match="unpacks to more than"):
        load(tmp_path / "train.csv.gz")


def test_an_archive_stays_refused(tmp_path):
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="not a data format"):
        load(tmp_path / "train.tar.gz")


def test_fasttext_lines_are_read(tmp_path):
    (tmp_path / "ft.txt").write_text("".join(f"__label__{row['label']} {row['text']}\n" for row in ROWS))
    data = load(tmp_path / "ft.txt")
    assert data.task == "classification" and data.label_names == ["0", "1"]
    assert any(text[0] == "a bad film number 0" for split in data.splits.values() for text in split.texts)


def test_several_fasttext_labels_are_several_labels(tmp_path):
    lines = [f"__label__{'a' if i % 2 else 'b'} {'__label__c ' if i % 3 == 0 else ''}a film number {i}"
             for i in range(60)]
    (tmp_path / "ft.txt").write_text("\n".join(lines))
    data = load(tmp_path / "ft.txt")
    assert data.task == "multilabel" and data.label_names == ["a", "b", "c"]


def test_a_plain_txt_says_how_to_convert_it(tmp_path):
    (tmp_path / "train.txt").write_text("pos a good film\nneg a bad film\n")
    with pytest.raises(DataError, match="sed -E"):
        load(tmp_path / "train.txt")


def test_a_txt_with_tabs_is_called_what_it_is(tmp_path):
    (tmp_path / "train.txt").write_text("pos\ta good film\nneg\ta bad film\n")
    with pytest.raises(DataError, match="call it .tsv"):
        load(tmp_path / "train.txt")


def test_a_readme_in_a_folder_is_no_data(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "README.txt").write_text("about the data")
    assert load(tmp_path).task == "classification"


def test_a_mapping_of_rows_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({str(i): row for i, row in enumerate(ROWS)}))
    (tmp_path / "b.jsonl").write_text(JSONL)
    assert load(tmp_path / "a.json").fingerprint == load(tmp_path / "b.jsonl").fingerprint


def test_pandas_columns_of_a_mapping_are_still_columns(tmp_path):
    columns = {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ("text", "label")}
    (tmp_path / "a.json").write_text(json.dumps(columns))
    assert sum(map(len, load(tmp_path / "a.json").splits.values())) == 60


def test_lists_of_tokens_are_joined_with_a_note(tmp_path):
    rows = [{"tokens": row["text"].split(), "label": row["label"]} for row in ROWS]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(tmp_path / "t.jsonl")
    assert any("joined by spaces" in note for note in data.notes)
    (tmp_path / "b.jsonl").write_text(JSONL)
    assert data.fingerprint == load(tmp_path / "b.jsonl").fingerprint


def test_one_label_per_token_is_not_joined(tmp_path):
    rows = [{"tokens": row["text"].split(), "tags": ["O"] * len(row["text"].split())} for row in ROWS]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError):
        load(tmp_path / "t.jsonl")


# -- several labels in one cell ----------------------------------------------------------------------------------------

def labelled(tmp_path, cells, **knobs):
    rows = "".join(f"film number {i} is a film\t{cells[i % len(cells)]}\n" for i in range(80))
    (tmp_path / "labels.tsv").write_text("text\tlabels\n" + rows)
    return load_task_data(TrialConfig(dataset_name=str(tmp_path / "labels.tsv"), **knobs))


@pytest.mark.parametrize(("cells", "names"), [
    (["a", "b", "a|b", "c;a"], ["a", "b", "c"]), (["red", "blue", "red; blue"], ["blue", "red"]),
    (["drama", "comedy", "drama, comedy", "war, drama", "war"], ["comedy", "drama", "war"]),
    (["a|b", "b|c", "a|c", "a|b|c"], ["a", "b", "c"]), (["0", "1", "2", "0,1", "0,1,2"], ["0", "1", "2"]),
    (["Paris, TX|Rome, GA", "Paris, TX", "Rome, GA"], ["Paris, TX", "Rome, GA"])])
def test_several_labels_in_a_cell_are_told_by_the_column(tmp_path, cells, names):
    data = labelled(tmp_path, cells)
    assert data.task == "multilabel" and data.label_names == names
    assert any("set task: classification" in note for note in data.notes)


@pytest.mark.parametrize("cells", [
    ["Washington, DC", "Portland, OR", "Portland, ME"], ["yes, please", "no, thanks", "yes"], ["a", "b"],
    ["C|C++", "Java", "R"], ["R&D; Ops", "Sales; EMEA", "Law"]])
def test_a_name_that_contains_a_comma_is_one_class(tmp_path, cells):
    data = labelled(tmp_path, cells)
    assert data.task == "classification" and data.num_outputs == len(cells)


def test_numbers_with_a_comma_are_left_to_the_user(tmp_path):
    data = labelled(tmp_path, ["0,1", "0,2", "1", "2"])
    assert data.task == "classification" and any("set task: multilabel" in note for note in data.notes)
    clear_memory()
    assert labelled(tmp_path, ["0,1", "0,2", "1", "2"], task="multilabel").label_names == ["0", "1", "2"]
