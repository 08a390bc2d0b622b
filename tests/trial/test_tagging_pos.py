"""Part of speech from end to end: a CoNLL-U folder, its baseline, a sweep's report with a probe, predictions."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
from tiny import save_tiny_bert

from analysis.report.report import write_report
from analysis.statistics.metrics import BY_WORD
from finetune.cli import main
from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.results import RecordStore
from finetune.sweep.probe import probe_directory
from finetune.trial import run_trial

NOUNS, VERBS = ["film", "plot", "play", "love", "work"], ["play", "love", "work", "make"]  # three are both


def sentence(rng):
    """Words and their universal tags: a word between "the" and the full stop is a noun, after "they" or "to" a verb."""
    found = [("they", "PRON"), (rng.choice(VERBS), "VERB"), ("the", "DET"), (rng.choice(NOUNS), "NOUN")]
    return found + ([("to", "PART"), (rng.choice(VERBS), "VERB")] if rng.random() < 0.5 else []) + [(".", "PUNCT")]


def universal(sentences):
    return "".join(f"# sent_id = {n}\n" + "".join(
        f"{place}\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_\n" for place, (word, tag) in enumerate(words, 1)) + "\n"
        for n, words in enumerate(sentences))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A treebank as Universal Dependencies names its files, and a sweep of three depths and two seeds on it."""
    folder, rng = tmp_path_factory.mktemp("pos"), random.Random(7)
    (folder / "bank").mkdir()
    splits = {name: [sentence(rng) for _ in range(rows)] for name, rows in (("train", 96), ("dev", 30), ("test", 40))}
    for name, sentences in splits.items():
        (folder / "bank" / f"en_tiny-ud-{name}.conllu").write_text(universal(sentences))
    model = save_tiny_bert(folder / "model", layers=2)
    store, records = RecordStore(folder / "run"), []
    for depth in (0, 1, 2):
        for seed in (1, 2):
            outcome = run_trial(TrialConfig.from_mapping({
                "dataset_name": str(folder / "bank"), "model_name_or_path": str(model), "freeze_depth": depth,
                "seed": seed, "num_train_epochs": 4, "learning_rate": 3e-3, "head_learning_rate": 1e-2,
                "max_length": 32, "output_dir": str(folder / "run")}))
            store.publish(outcome.record, outcome.predictions)
            records.append(outcome.record)
    return {"folder": folder, "splits": splits, "records": records}


def test_auto_finds_the_task_and_accuracy_is_its_metric(speech):
    data = load_task_data(TrialConfig(dataset_name=str(speech["folder"] / "bank")))
    assert (data.task, data.scheme, len(data.splits["validation"])) == ("token_classification", None, 30)
    assert data.label_names == ["DET", "NOUN", "PART", "PRON", "PUNCT", "VERB"]
    record = speech["records"][0]
    assert record.metric == "accuracy" and sorted(record.metrics["test"]) == ["accuracy", "f1_macro", "loss"]


def test_the_baseline_gives_each_word_its_most_frequent_tag_and_the_model_reads_more(speech):
    known = Counter(pair for words in speech["splits"]["train"] for pair in words)
    test = [pair for words in speech["splits"]["test"] for pair in words]
    tags = sorted({tag for _, tag in known})
    right = np.mean([max(tags, key=lambda tag: known[word, tag]) == true for word, true in test])
    baseline = speech["records"][0].baseline
    assert baseline["kind"] == BY_WORD and baseline["test"]["accuracy"] == pytest.approx(right)
    best = max(record.metrics["test"]["accuracy"] for record in speech["records"])
    assert right < best, "the words that are both are told by their neighbours"


def test_the_report_reads_as_for_any_task(speech):
    assert probe_directory(speech["folder"] / "run")["metric"] == "accuracy"
    report = write_report([str(speech["folder"] / "run")], folder=speech["folder"] / "report")
    summary = report.summary
    assert summary["metric"] == "accuracy" and [p["freeze_depth"] for p in summary["curve"]] == [0, 1, 2]
    page = (speech["folder"] / "report" / "report.html").read_text()
    for expected in ("Change of recall per class", "Linear probes beside the real curve", "VERB", "accuracy (%)"):
        assert expected in page
    assert "constant answer" not in page and "never reads the text" not in page


@pytest.mark.parametrize("name", ["new.conllu", "new.txt", "stdin"])
def test_new_sentences_get_a_tag_for_each_word(speech, tmp_path, capsys, monkeypatch, name):
    words = sentence(random.Random(0))
    content = universal([words, words]) if name == "new.conllu" else "".join(
        f"{word} {tag}\n" for word, tag in words) + "\n" + "".join(f"{word} {tag}\n" for word, tag in words)
    (tmp_path / name).write_text(content)
    best = max(speech["records"], key=lambda record: record.metrics["test"]["accuracy"])
    file = tmp_path / name
    if name == "stdin":
        monkeypatch.setattr("sys.stdin", file.open())
        file = "-"
    capsys.readouterr()
    assert main(["predict", str(RecordStore(speech["folder"] / "run").folder(best.trial_id)), str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 and rows[0]["tags"] == rows[1]["tags"] and "entities" not in rows[0]
    assert rows[0]["words"] == [word for word, _ in words] and set(rows[0]["tags"]) <= set(best.data["label_names"])
