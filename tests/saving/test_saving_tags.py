"""A kept token classifier: predicting with it, and the folder that transformers loads as its own class."""

from __future__ import annotations

import ast
import json

import numpy as np
import pytest
from tiny import save_tiny_bert, save_tiny_roberta

import finetune
from finetune.cli import main
from finetune.commands.data import describe
from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.data.formats.conll import has_tags
from finetune.data.schema.words import split_words
from finetune.results import RecordStore
from finetune.saving.predict import predict
from finetune.saving.read import load_kept
from finetune.trial import run_trial

SENTENCE = ("a\tO\nfilm\tO\nby\tO\nwoody\tB-person\nallen\tI-person\n{n}\tO\n.\tO\n\n"
            "new\tB-place\nyork\tI-place\n{n}\tO\n\n")


def trial(folder, model, **knobs):
    data = folder / "set.conll"
    data.write_text("".join(SENTENCE.format(n=f"take{n}") for n in range(20)))
    config = TrialConfig.from_mapping({
        "dataset_name": str(data), "model_name_or_path": str(model), "num_train_epochs": 6,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2,
        "output_dir": str(folder), **knobs})
    outcome = run_trial(config)
    store = RecordStore(folder)
    store.publish(outcome.record, outcome.predictions)
    split = load_task_data(config).splits["test"]
    position = {row: index for index, row in enumerate(split.ids)}
    return {"folder": store.folder(outcome.record.trial_id), "record": outcome.record,
            "logits": outcome.predictions["test_logits"],
            "words": [split.texts[position[row]] for row in outcome.predictions["test_ids"]]}


MODELS = {"BERT": (save_tiny_bert, {}), "RoBERTa": (save_tiny_roberta, {}), "a hidden layer": (save_tiny_bert, {
    "head_size": 8}), "lora": (save_tiny_bert, {"strategy": "lora:2"}), "bf16": (save_tiny_bert, {
        "mixed_precision": "bf16", "freeze_depth": 1})}


@pytest.fixture(scope="module", params=MODELS)
def kept(request, tmp_path_factory):
    save, knobs = MODELS[request.param]
    folder = tmp_path_factory.mktemp("tags")
    found = trial(folder, save(folder / "model"), **knobs)
    assert main(["export", str(found["folder"]), str(folder / "exported")]) == 0
    return found | {"exported": folder / "exported", "name": request.param}


def test_delta_and_exported_folder_predict_what_the_trial_tested(kept):
    rounding = 0.05 if kept["name"] == "bf16" else 1e-4  # the kept model computes in float32
    for folder in (kept["folder"], kept["exported"]):
        np.testing.assert_allclose(predict(load_kept(folder), kept["words"], 4), kept["logits"], atol=rounding)


def test_transformers_own_class_gives_the_same_tags(kept):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model, loading = AutoModelForTokenClassification.from_pretrained(kept["exported"], output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(kept["exported"])
    if kept["name"] == "a hidden layer":
        assert loading["missing_keys"], "its one linear layer cannot hold two"
        return
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    said = []
    for words in kept["words"]:
        inputs = tokenizer(list(words), is_split_into_words=True, return_tensors="pt")
        logits = model(**inputs).logits[0].detach().numpy()
        of = inputs.word_ids()
        said += [model.config.id2label[int(logits[of.index(word)].argmax())] for word in range(len(words))]
    names = kept["record"].data["label_names"]
    assert said == [names[tag] for tag in kept["logits"].argmax(axis=1)]


def test_the_card_s_own_lines_give_the_tags_of_predict(kept, capsys):
    card = (kept["exported"] / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert ("AutoModelForTokenClassification" in card) == (kept["name"] != "a hidden layer")
    code = card.partition("```python\n")[2].partition("```")[0].replace('"FOLDER"', repr(str(kept["exported"])))
    words = ["a", "film", "by", "woody", "allen", "York"]
    capsys.readouterr()
    exec(code.replace('["a", "sentence"]', repr(words)), {})
    answer = finetune.predict(kept["exported"], iter([words])).iloc[0]
    assert ast.literal_eval(capsys.readouterr().out) == list(zip(words, answer["tags"], strict=True))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model that knows its few sentences by heart."""
    folder = tmp_path_factory.mktemp("learnt")
    found = trial(folder, save_tiny_bert(folder / "model"), num_train_epochs=20, max_length=32)
    assert found["record"].metrics["test"]["f1"] == 1
    return found["folder"]


def _rows(capsys, *args):
    capsys.readouterr()
    assert main(["predict", *map(str, args)]) == 0
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_entities_stand_where_the_text_has_them(learnt, tmp_path, capsys):
    (tmp_path / "new.txt").write_text("a film by woody allen take3.\n  new york,  take1\n")
    rows, told = _rows(capsys, learnt, tmp_path / "new.txt")
    assert not told and [row["row"] for row in rows] == [0, 1]
    assert [(e["text"], e["type"]) for row in rows for e in row["entities"]] == [
        ("woody allen", "person"), ("new york", "place")]
    for row in rows:
        assert len(row["words"]) == len(row["tags"]) == len(row["scores"])
        for entity in row["entities"]:
            assert row["text"][entity["start"]:entity["end"]] == entity["text"] and 0 < entity["score"] <= 1


def test_words_are_read_as_they_are_given(learnt, tmp_path, capsys):
    (tmp_path / "new.jsonl").write_text('{"words": ["new", "york", "take1"]}\n')
    (tmp_path / "new.conll").write_text("new\nyork\ntake1\n\n")
    (tmp_path / "tagged.conll").write_text("new\tNNP\tO\nyork\tNNP\tB-x\ntake1\tCD\tO\n")
    (tmp_path / "tagged.txt").write_text("-DOCSTART- -X- O\n\nnew NNP O\nyork NNP B-x\ntake1 CD O\n\n")
    (tmp_path / "one.txt").write_text("new\tO\r\nyork\tO\r\ntake1\tO\r\n")
    listed, *others = (_rows(capsys, learnt, tmp_path / name)[0] for name in (
        "new.jsonl", "new.conll", "tagged.conll", "tagged.txt", "one.txt"))
    assert all(columns == listed for columns in others) and listed[0]["tags"] == ["B-place", "I-place", "O"]
    assert listed[0]["entities"][0]["end"] == len("new york")


@pytest.mark.parametrize(("content", "columns"), [
    ("new NOUN\n\nyork NOUN\n", True), ("new\tNOUN\nyork\tNOUN\n", True), ("# sent_id\nnew x B-a\n\nyork x O\n", True),
    ("blood of type O\nhe is of type O\n", False), ("a film\n\nby woody\n", False), ("NOUN\n\nNOUN\n", False),
    ("new NOUN\n\nnew york NOUN\n", False),
])
def test_columns_are_told_by_the_model_s_tags(content, columns):
    assert has_tags(content, ["NOUN", "VERB"]) == columns


def test_words_beyond_the_model_s_length_have_no_tag_and_are_counted(learnt, tmp_path, capsys):
    (tmp_path / "new.txt").write_text(f"new york {'take1 ' * 40}\n")
    (row,), told = _rows(capsys, learnt, tmp_path / "new.txt")
    assert row["tags"][0] == "B-place" and row["tags"][-1] is None and row["scores"][-1] is None
    assert f"{row['tags'].count(None)} of 42 words lie beyond the model's 32 tokens" in told


@pytest.mark.parametrize(("content", "says"), [
    ('{"tokens": ["a", ""]}\n', "new.jsonl line 1: there are no words, or one of them is empty; every row"),
    ('{"text": "a"}\n{"text": " "}\n', "line 2: there are no words"), ('{"body": "x", "n": 1}\n', "no column 'tokens'"),
])
def test_a_file_without_words_is_one_sentence(learnt, tmp_path, capsys, content, says):
    (tmp_path / "new.jsonl").write_text(content)
    assert main(["predict", str(learnt), str(tmp_path / "new.jsonl")]) == 4
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize(("text", "words"), [
    ("Don't go, Mr. Ng!", ["Don", "'", "t", "go", ",", "Mr", ".", "Ng", "!"]), ("東京へ", ["東", "京", "へ"]),
    ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]), ("caf\u0065\u0301\u00a0x", ["caf\u0065\u0301", "x"]), ("\u200b \t", []),
])
def test_a_text_is_split_into_words(text, words):
    sentence = split_words(text)
    assert list(sentence.words) == words == [text[start:end] for start, end in sentence.places]


def test_words_that_are_unseen_are_counted_where_the_tokenizer_wants_a_space_before_each(tmp_path):
    save_tiny_roberta(tmp_path / "model")
    config = TrialConfig(dataset_name="wnut17_mini", model_name_or_path=str(tmp_path / "model"), max_length=40)
    ((length, unseen),) = describe(config, None)["unseen_words"].items()
    assert length == 40 and unseen > 0
