"""Texts with marked spans, in the forms that annotation tools write."""

from __future__ import annotations

import json

import pytest

from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.errors import DataError

TEXT = "Ada Lovelace met Babbage in London (1833), then left Turin. #{}"
SPANS = [(0, 12, "PER"), (17, 24, "PER"), (28, 34, "LOC"), (53, 58, "LOC")]
FORMS = {
    "plain": lambda text: {"text": text, "entities": [{"start": s, "end": e, "label": x} for s, e, x in SPANS]},
    "doccano": lambda text: {"id": 1, "text": text, "label": [[s, e, x] for s, e, x in SPANS]},
    "doccano with relations": lambda text: {"id": 1, "text": text, "relations": [], "Comments": [], "entities": [
        {"id": 7, "label": x, "start_offset": s, "end_offset": e} for s, e, x in SPANS]},
    "prodigy": lambda text: {"text": text, "answer": "accept", "spans": [
        {"start": s, "end": e, "token_start": 0, "label": x} for s, e, x in SPANS]},
    "Label Studio": lambda text: {"id": 1, "data": {"text": text}, "predictions": [], "annotations": [
        {"id": 2, "was_cancelled": True, "result": []},
        {"id": 3, "was_cancelled": False, "result": [
            {"type": "labels", "value": {"start": s, "end": e, "text": "…", "labels": [x]}} for s, e, x in SPANS]}]},
    "Label Studio JSON-MIN": lambda text: {"id": 1, "text": text, "annotator": 1, "label": [
        {"start": s, "end": e, "text": "…", "labels": [x]} for s, e, x in SPANS]},
    "spaCy": lambda text: [text, {"entities": [[s, e, x] for s, e, x in SPANS]}],
}


def _load(file, **knobs):
    return load_task_data(TrialConfig.from_mapping({"dataset_name": str(file), **knobs}))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lines", [False, True])
def test_every_form_is_the_same_set(tmp_path, form, lines):
    if form == "spaCy" and lines:
        pytest.skip("spaCy's training data is one list")
    rows = [FORMS[form](TEXT.format(n)) for n in range(20)]
    file = tmp_path / ("set.jsonl" if lines else "set.json")
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    data = _load(file)
    assert data.task == "token_classification" and data.label_names == ["O", "B-LOC", "B-PER", "I-PER"]
    words = data.splits["train"].texts[0]
    tags = [data.label_names[tag] for tag in data.splits["train"].labels[0][:len(words)]]
    assert [(w, t) for w, t in zip(words, tags, strict=True) if t != "O"] == [
        ("Ada", "B-PER"), ("Lovelace", "I-PER"), ("Babbage", "B-PER"), ("London", "B-LOC"), ("Turin", "B-LOC")]


def test_rows_that_cannot_be_are_named_and_spans_inside_words_are_counted(tmp_path):
    rows = [FORMS["doccano"](TEXT.format(n)) for n in range(20)]
    rows[1]["label"] = [[0, 12, "PER"], [4, 16, "PER"]]
    rows[2]["label"] = [[50, 900, "LOC"]]
    rows[3]["label"] = [[0, 2, "PER"]]
    rows[4]["label"] = []
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = _load(file)
    assert [str(row).partition("line ")[2] for row in data.rejected] == [
        "2: the span 4 to 16 shares a word with the one before it, and a word has one tag",
        f"3: the span 50 to 900 is not in its text of {len(TEXT) - 1} characters"]
    assert any("1 begin or end inside a word" in note for note in data.notes)
    assert sum(len(split) for split in data.splits.values()) == 18


def test_a_file_whose_spans_all_lie_outside_is_one_sentence(tmp_path):
    file = tmp_path / "set.json"
    file.write_text(json.dumps([{"text": "short", "entities": [[0, 99, "X"]]}] * 9))
    with pytest.raises(DataError, match="no row with spans can be used; set.json line 1: the span 0 to 99 is not in"):
        _load(file)


def test_lists_of_labels_are_no_spans(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"text {n}", "labels": ["a", "b"][:1 + n % 2]}) for n in range(30)))
    assert _load(file).task == "multilabel"
