"""One label per token: from a CoNLL file to a record, with exact reuse, and what cannot be read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import save_tiny_bert, save_tiny_roberta

from analysis.load.records import load_sources
from analysis.statistics import metrics
from analysis.statistics.influence import influence, row_values
from analysis.statistics.metrics import TAGGED
from finetune.config import TrialConfig
from finetune.data.formats.conll import read_conll
from finetune.data.load import load_task_data
from finetune.data.schema.tags import check_tags, scheme_of, spans, written
from finetune.errors import DataError
from finetune.results import RecordStore
from finetune.training.tagging import ENTITY_METRICS, count_metrics, sentence_counts
from finetune.trial import run_trial

SENTENCE = ("a\tO\nfilm\tO\nby\tO\nwoody\tB-person\nallen\tI-person\n{n}\tO\n.\tO\n\n"
            "new\tB-place\nyork\tI-place\n{n}\tO\n\n")


@pytest.fixture
def conll(tmp_path):
    file = tmp_path / "set.conll"
    file.write_text("# a comment\n-DOCSTART-\tO\n\n" + "".join(SENTENCE.format(n=f"take{n}") for n in range(20)))
    return file


def _config(file, model, **knobs):
    return TrialConfig.from_mapping({"dataset_name": str(file), "model_name_or_path": str(model), "num_train_epochs": 2,
                                     "save_model": False, **knobs})


MODELS = {"BERT": (save_tiny_bert, {}), "RoBERTa": (save_tiny_roberta, {}),
          "bf16": (save_tiny_bert, {"mixed_precision": "bf16"})}
FREEZES = [{"freeze_depth": 1}, {"freeze_depth": 2}, {"strategy": "lp_ft:1"}]
REUSING = [(model, freeze) for model in MODELS for freeze in FREEZES if freeze in FREEZES[:2] or model == "BERT"]


@pytest.mark.parametrize(("model", "freeze"), REUSING)
def test_reuse_is_exact_and_the_record_agrees_with_its_predictions(tmp_path, conll, model, freeze):
    save, knobs = MODELS[model]
    folder = save(tmp_path / "model")
    reused = run_trial(_config(conll, folder, max_length=12, **freeze, **knobs))
    plain = run_trial(_config(conll, folder, max_length=12, prefix_cache=False, **freeze, **knobs))
    assert reused.record.prefix["used"] and not plain.record.prefix["used"]
    found, expected = (one.predictions["test_logits"] for one in (reused, plain))
    assert np.isnan(expected).any(), "max_length cuts words here"
    np.testing.assert_allclose(found, expected, atol=0.02 if model == "bf16" else 1e-4)
    assert len(found) == len(reused.predictions["test_labels"]) == reused.predictions["test_offsets"][-1]
    RecordStore(tmp_path / "runs").publish(reused.record, reused.predictions)
    counts, labels, _ = load_sources([str(tmp_path / "runs")]).trials[0].predictions("test")
    ones = np.ones((1, len(labels)), np.float32)
    for name, value in reused.record.metrics["test"].items():
        assert metrics.weighted(name, "token_classification", counts, labels, ones)[0] == pytest.approx(value)


def test_adapters_in_every_layer_leave_nothing_to_reuse_and_change_nothing(tmp_path, conll):
    model = save_tiny_bert(tmp_path / "model", layers=2)
    one, other = (run_trial(_config(conll, model, strategy="lora:2", prefix_cache=cache)) for cache in (True, False))
    assert not one.record.prefix["used"]
    np.testing.assert_array_equal(one.predictions["test_logits"], other.predictions["test_logits"])


def test_pooling_is_inert_and_cut_words_count_as_wrong(tmp_path, conll):
    model = save_tiny_bert(tmp_path / "model", layers=2)
    one, other = (run_trial(_config(conll, model, num_train_epochs=1, pooling=pooling, max_length=6))
                  for pooling in (None, "pooler"))
    assert one.record.trial_id == other.record.trial_id
    cut = np.isnan(one.predictions["test_logits"]).all(axis=1)
    assert 0 < cut.mean() < 1
    assert one.record.metrics["test"]["accuracy"] <= 1 - cut.mean()


def test_strict_counts_are_seqevals(tmp_path):
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    names, rng = ["O", "B-x", "I-x", "B-y", "I-y"], np.random.default_rng(0)
    offsets = np.arange(0, 201, 10)
    true = [written(spans([names[tag] for tag in rng.integers(0, 5, 10)]), 10, "IOB2") for _ in range(20)]
    labels = np.array([names.index(tag) for tags in true for tag in tags])
    logits = rng.normal(size=(200, 5)) + 2 * np.eye(5)[labels]
    said = [[names[tag] for tag in logits[a:b].argmax(1)] for a, b in zip(offsets, offsets[1:], strict=False)]
    computed = count_metrics(sentence_counts(logits, labels, offsets, names, "IOB2"), "IOB2")
    assert computed["f1"] == pytest.approx(f1_score(true, said, mode="strict", scheme=IOB2))


def test_influence_of_a_sentence_is_the_derivative_of_the_metric():
    rng = np.random.default_rng(1)
    true, said = rng.integers(0, 4, (30, 3)), rng.integers(0, 4, (30, 3))
    words = rng.integers(12, 20, 30)
    last = np.column_stack([rng.integers(0, 12, 30), words, rng.random(30) * words])[:, None]
    counts = np.concatenate([np.stack([np.minimum(true, said), said, true], axis=2), last], axis=1).astype(float)
    labels, step = counts[:, :, 2], 1e-5
    for name in ENTITY_METRICS:
        weights = 1 + step * np.eye(30)
        moved = metrics.weighted(name, TAGGED, counts, labels, weights)
        value = metrics.weighted(name, TAGGED, counts, labels, np.ones((1, 30)))[0]
        np.testing.assert_allclose(influence(name, TAGGED, counts, labels), 30 * (moved - value) / step, atol=1e-3)
        assert row_values(name, TAGGED, counts, labels).mean() == pytest.approx(value)


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES", "BILOU"])
def test_schemes_are_told_apart_and_lose_nothing(scheme):
    entities = [("x", 0, 1), ("x", 2, 2), ("y", 4, 6)]
    tags = written(entities, 8, scheme)
    assert scheme_of([tags]) == scheme and spans(tags) == entities
    assert [spans(mended) for mended in check_tags([tags], ["f line 1"]).sentences] == [entities]


def test_a_sequence_that_cannot_be_is_named_and_repaired_by_rule():
    checked = check_tags([["B-x", "I-x", "O"], ["O", "I-x", "O"], ["B-x", "B-x", "O"]],
                         ["f line 1", "f line 5", "f line 9"])
    assert checked.sentences[1] == ["O", "B-x", "O"]
    assert "1 tag sequences cannot be in BIO (first: f line 5, word 2: 'I-x' after 'O')" in checked.notes[-1]


def test_conll_u_leaves_ranges_out_and_a_short_line_is_named():
    word = "{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t_\n"
    text = "# sent_id = 1\n" + word.format("1-2", "im", "_") + word.format(1, "in", "ADP")
    text += word.format(2, "dem", "DET")
    table = read_conll(text + "\n", "f.conllu", ".conllu")
    assert table.column("tokens") == [["in", "dem"]] and table.column("upos") == [["ADP", "DET"]]
    with pytest.raises(DataError, match="f.conll line 2: 1 columns"):
        read_conll("a\tO\nb\n", "f.conll", ".conll")


def test_the_data_set_is_found_without_being_told(conll):
    data = load_task_data(TrialConfig.from_mapping({"dataset_name": str(conll)}))
    assert data.task == "token_classification" and data.scheme == "IOB2"
    assert data.label_names == ["O", "B-person", "I-person", "B-place", "I-place"]


def test_conll_2003_s_own_names_are_a_folder_of_splits_and_a_readme_is_none(tmp_path):
    word = "{} X X {}\n"
    text = "-DOCSTART- -X- O O\n\n" + "".join(
        word.format("in", "O") + word.format(f"town{n}", "B-LOC") + word.format("today", "O") + "\n" for n in range(9))
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text(text.replace("town", name[:2]))
    (tmp_path / "readme.txt").write_text("Read me.\n\nO B-LOC\n")
    data = load_task_data(TrialConfig.from_mapping({"dataset_name": str(tmp_path)}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "validation": 9, "test": 9}
    (tmp_path / "alone.tsv").write_text("".join(SENTENCE.format(n=f"t{n}") for n in range(9)))
    assert load_task_data(TrialConfig.from_mapping({"dataset_name": str(tmp_path / "alone.tsv")})).scheme == "IOB2"


def test_a_test_split_without_tags_is_carved_anew_and_its_rows_are_counted(tmp_path):
    rows = [{"tokens": ["in", f"town{n}"], "tags": ["O", "B-LOC"]} for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row | {"tags": []}) for row in rows[:7]))
    data = load_task_data(TrialConfig.from_mapping({"dataset_name": str(tmp_path)}))
    assert any("the source's test split has no labels (7 rows)" in note for note in data.notes)
