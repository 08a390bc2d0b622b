"""What each depth holds: the questions are fair, and the probes find what is there."""

from __future__ import annotations

import numpy as np
import pytest

import finetune
from analysis.figures.plots_probe import layers_svg, property_lines
from finetune.config import TrialConfig
from finetune.sweep.layers_probe import read_layers
from finetune.sweep.properties import by_label, by_order, by_word, swap_neighbours, words_of

TEXTS = [("a joy and a bore .",), ("dull , dull , dull",), ("Paris is nice",), ("so and so",), ("one two three",),
         ("x9 a , b",)]


def test_groups_hold_one_example_of_each_class_and_no_example_twice():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    groups = by_label(labels).groups(np.random.default_rng(0))
    assert groups.shape == (2, 3) and len(set(groups.ravel())) == 6
    assert (labels[groups] == [0, 1, 2]).all()
    assert by_label(labels).groups(np.random.default_rng(0), 1).shape == (1, 3)


def test_texts_with_and_without_the_word_have_the_same_lengths():
    question = by_word(TEXTS, "And")
    groups = question.groups(np.random.default_rng(0))
    lengths = [[len(words_of(TEXTS[text])) for text in group] for group in groups]
    assert len(groups) == 1 and all(without == having for without, having in lengths)
    assert [("and" in words_of(TEXTS[text])) for text in groups[0]] == [False, True]


def test_a_swap_changes_two_neighbours_and_nothing_else():
    swapped = dict(swap_neighbours(TEXTS, np.random.default_rng(0)))
    assert sorted(swapped) == [0, 2, 3, 4]  # the others have no two neighbours that are plain and differ
    assert swapped[2] == ("Paris nice is",)  # the capital stays
    for index, (text,) in swapped.items():
        before, after = TEXTS[index][0].split(), text.split()
        places = [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        assert len(places) == 2 and places[1] == places[0] + 1
        assert before[places[0]] == after[places[1]] and before[places[1]] == after[places[0]]


def test_both_versions_of_a_text_stand_in_one_group():
    groups = by_order(np.array([4, 7]), np.array([10, 11]))
    drawn = groups.texts[groups.groups(np.random.default_rng(1))]
    assert {tuple(pair) for pair in drawn} == {(4, 10), (7, 11)}


def test_probes_read_what_is_there_and_word_order_is_not_in_the_embeddings(monkeypatch, tmp_path):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    found = finetune.probe_layers(properties=["length", "order"], rows=100, seeds=3, max_length=32,
                                  evaluation_size=100, progress=False)
    table = found.table.set_index(["property", "freeze_depth"])
    assert table.loc[("length", -1), "estimate"] > 0.85 and (table["chance"] == 0.5).all()
    # A mean over tokens without context cannot tell an order: two words keep their places' vectors in all but the norm.
    assert abs(table.loc[("order", -1), "estimate"] - 0.5) < 0.03
    assert table.loc[("order", 2), "low"] > 0.5
    assert (table["low"] <= table["estimate"]).all() and (table["estimate"] <= table["high"]).all()
    lines = property_lines(found.table, "and")
    assert [len(line.depths) for line in lines] == [7, 7]
    drawn = found.save(tmp_path / "layers.svg").read_text()
    assert drawn == layers_svg(lines, "What each depth of all-MiniLM-L6-v2 holds")
    assert drawn.count("after 2 layers") == 2
    assert (tmp_path / "layers.csv").read_text().startswith("property,freeze_depth,estimate")


@pytest.mark.parametrize(("asked", "error", "says"), [
    ({"properties": ["lable"]}, finetune.ConfigError, "did you mean label"),
    ({"properties": []}, finetune.ConfigError, "one or more of length"),
    ({"word": "two words"}, finetune.ConfigError, "word = 'two words'"),
    ({"rows": 2, "seeds": 0}, finetune.ConfigError, "seeds = 0"),
    ({"max_lenght": 3}, finetune.ConfigError, "did you mean max_length"),
    ({"properties": "word", "word": "zyzzyva"}, finetune.DataError, "too few texts with 'zyzzyva'"),
])
def test_questions_that_cannot_be_asked(asked, error, says):
    with pytest.raises(error) as caught:
        finetune.probe_layers(**asked, progress=False)
    assert says in str(caught.value)


def test_a_regression_has_no_classes_to_ask_for(tiny_bert_dir, tmp_path):
    (tmp_path / "r.csv").write_text("text,label\n" + "".join(f"a text of {i} words,{i / 7:.3f}\n" for i in range(60)))
    config = TrialConfig.from_mapping({"model_name_or_path": str(tiny_bert_dir), "task": "regression",
                                       "dataset_name": str(tmp_path / "r.csv")})
    with pytest.raises(finetune.ConfigError, match="is a regression"):
        read_layers(config, ["label"], "and", 40, 3)


def test_a_set_with_tags_is_asked_as_whole_texts(tiny_bert_dir, tmp_path, monkeypatch):
    """The same texts, split into words with tags or not, hold the same."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(["a", "film", "by", "a", "good", "man"], rng.integers(2, 12))) for _ in range(150)]
    (tmp_path / "tags.conll").write_text("\n\n".join(
        "\n".join(f"{word}\t{'B-x' if word == 'man' else 'O'}" for word in row.split()) for row in rows) + "\n")
    base = {"model_name_or_path": str(tiny_bert_dir), "max_length": 32, "dataset_name": str(tmp_path / "tags.conll"),
            "validation_size": 60}
    config = TrialConfig.from_mapping(base)
    readings = read_layers(config, ["length", "order"], "and", 40, 2)
    assert all(reading.estimate > 0.8 for reading in readings if reading.property == "length")
    assert all(reading.chance == 0.5 and reading.test_rows > 0 for reading in readings)
    with pytest.raises(finetune.ConfigError, match="finetune probe DIR"):
        read_layers(config, ["label"], "and", 40, 2)
