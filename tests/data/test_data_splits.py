"""Carving, subsets and evaluation limits, as properties over arbitrary labels and duplicates."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.splits.splits import carve, limit_evaluation, stratified_order, subset_train, text_key
from finetune.data.task_data import Split, TaskData, fingerprint
from finetune.errors import ConfigError, DataError


def make_split(labels, texts=None, name="train"):
    labels = np.asarray(labels)
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return Split([(text,) for text in texts], labels, np.array([f"{name}:{i}" for i in range(len(labels))]))


def make_data(train, task="classification", outputs=2):
    splits = {"train": train, "validation": train, "test": train}
    return TaskData("x", None, task, None, outputs, splits, fingerprint(task, None, splits))


@st.composite
def splits(draw):
    """30 to 120 rows of 2 to 5 classes, many of them duplicates."""
    n = draw(st.integers(30, 120))
    labels = draw(st.lists(st.integers(0, draw(st.integers(1, 4))), min_size=n, max_size=n))
    texts = draw(st.lists(st.integers(0, 3 * n), min_size=n, max_size=n))
    return make_split(np.array(labels, dtype=np.int64), [f"Text {t}" if t % 3 else f" text  {t}" for t in texts])


def carve_or_skip(split, size, seed=0, **options):
    try:
        return carve(split, "classification", size, knob="test_size", of_rows=len(split), seed=seed, **options)
    except DataError:
        # Too few different texts: a class keeps its first.
        assert len({text_key(row) for row in split.texts}) < len(split)
        return split, split.take([])


@settings(max_examples=80, deadline=None)
@given(splits(), st.integers(2, 12), st.integers(0, 5))
def test_carving_divides_rows_and_never_a_text(split, size, seed):
    rest, carved = carve_or_skip(split, size, seed)
    assert sorted([*rest.ids, *carved.ids]) == sorted(split.ids)
    assert len(carved) <= size
    keys = [{text_key(row) for row in part.texts} for part in (rest, carved)]
    assert not keys[0] & keys[1]
    for part in (rest, carved):
        assert [part.ids[i] for i in range(len(part))] == [i for i in split.ids if i in set(part.ids)]


@settings(max_examples=40, deadline=None)
@given(splits(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_carving_does_not_depend_on_the_order_of_the_rows(split, seed, random):
    order = list(range(len(split)))
    random.shuffle(order)
    one = carve_or_skip(split, 6, seed)[1]
    other = carve_or_skip(split.take(order), 6, seed)[1]
    keys = [Counter(text_key(row) for row in part.texts) for part in (one, other)]
    labels_agree = all(len({split.labels[i] for i, row in enumerate(split.texts) if text_key(row) == key}) == 1
                       for key in {text_key(row) for row in split.texts})
    if labels_agree:  # a text with two labels stands under the label of its first row
        assert keys[0] == keys[1]


def test_a_carved_split_has_exactly_its_size_and_the_proportions_of_the_source():
    split = make_split(np.repeat([0, 1, 2], [700, 200, 100]))
    rest, carved = carve(split, "classification", 0.1, knob="test_size", of_rows=1000, seed=3)
    assert Counter(carved.labels.tolist()) == {0: 70, 1: 20, 2: 10}
    rest, carved = carve(split, "classification", 55, knob="test_size", of_rows=1000, seed=3)
    assert (len(rest), len(carved)) == (945, 55)


def test_another_seed_carves_other_rows_and_the_same_seed_the_same():
    split = make_split(np.arange(1000) % 2)
    carved = [set(carve(split, "classification", 100, knob="t", of_rows=1000, seed=s)[1].ids) for s in (0, 0, 1)]
    assert carved[0] == carved[1]
    assert len(carved[0] & carved[2]) < 30  # 10 by chance


def test_a_rare_class_stays_in_train():
    split = make_split(np.array([0] * 50 + [1] * 49 + [2]))
    rest, _ = carve(split, "classification", 0.4, knob="t", of_rows=100, seed=0)
    assert 2 in rest.labels


def test_a_text_that_another_split_has_is_not_carved():
    split = make_split(np.arange(100) % 2)
    taken = {text_key(row) for row in split.texts[:80]}
    _, carved = carve(split, "classification", 10, knob="t", of_rows=100, seed=0, taken=taken)
    assert len(carved) == 10
    assert not {text_key(row) for row in carved.texts} & taken


def test_regression_is_stratified_by_quantile():
    split = make_split(np.random.default_rng(0).exponential(size=2000).astype(np.float32))
    rest, carved = carve(split, "regression", 0.1, knob="t", of_rows=2000, seed=0)
    assert len(carved) == 200
    edges = np.quantile(split.labels, np.linspace(0, 1, 11))[1:-1]
    assert np.bincount(np.searchsorted(edges, carved.labels), minlength=10).tolist() == [20] * 10


def test_multilabel_rows_are_stratified_by_their_rarest_label():
    labels = np.zeros((300, 3), dtype=np.float32)
    labels[:, 0] = 1
    labels[:30, 2] = 1
    _, carved = carve(make_split(labels), "multilabel", 0.1, knob="t", of_rows=300, seed=0)
    assert carved.labels.sum(axis=0).tolist() == [30, 0, 3]


@pytest.mark.parametrize("size", [1, 0, 101, 0.001])
def test_sizes_that_leave_nothing_are_refused_by_name(size):
    with pytest.raises(ConfigError, match="test_size.*from 2 to 100"):
        carve(make_split(np.arange(100) % 2), "classification", size, knob="test_size", of_rows=100, seed=0)


def test_one_text_over_and_over_cannot_be_split():
    split = make_split(np.arange(100) % 2, ["same"] * 100)
    with pytest.raises(DataError, match="100 rows of 1 different texts"):
        carve(split, "classification", 10, knob="test_size", of_rows=100, seed=0)


@settings(max_examples=60, deadline=None)
@given(splits(), st.integers(0, 5), st.data())
def test_training_subsets_are_nested_and_stratified(split, seed, data):
    order = stratified_order(split, "classification", seed)
    assert sorted(order) == list(range(len(split)))
    size = data.draw(st.integers(1, len(split)))
    counts = Counter(split.labels[order[:size]].tolist())
    whole = Counter(split.labels.tolist())
    for label, total in whole.items():
        assert abs(counts[label] - size * total / len(split)) <= len(whole)
    if size >= len(whole):
        assert set(counts) == set(whole)


def test_smaller_subsets_lie_inside_larger_ones_whatever_their_form():
    data = make_data(make_split(np.arange(1000) % 2))
    ids = [set(subset_train(data, size, 7).splits["train"].ids) for size in (100, 0.2, 500, 1000, None)]
    assert [len(chosen) for chosen in ids] == [100, 200, 500, 1000, 1000]
    for small, large in zip(ids, ids[1:], strict=False):
        assert small <= large
    assert ids[0] != set(subset_train(data, 100, 8).splits["train"].ids)


def test_a_subset_is_the_same_setting_and_leaves_evaluation_alone():
    data = make_data(make_split(np.arange(1000) % 2))
    subset = subset_train(data, 100, 1)
    assert subset.fingerprint == data.fingerprint
    assert subset.splits["test"] is data.splits["test"]
    assert Counter(subset.splits["train"].labels.tolist()) == {0: 50, 1: 50}


def test_a_subset_larger_than_train_is_refused():
    with pytest.raises(ConfigError, match="train_size = 2000.*from 2 to 1000"):
        subset_train(make_data(make_split(np.arange(1000) % 2)), 2000, 1)


def test_evaluation_is_limited_to_the_same_rows_always():
    data = make_data(make_split(np.arange(1000) % 2))
    limited = limit_evaluation(data, 50)
    assert len(limited.splits["validation"]) == len(limited.splits["test"]) == 50
    assert len(limited.splits["train"]) == 1000
    assert limited.splits["test"].ids.tolist() == limit_evaluation(data, 50).splits["test"].ids.tolist()
    assert limit_evaluation(data, None) is data
    assert limit_evaluation(data, 1000) is data


def test_the_fingerprint_names_every_input():
    train = make_split(np.arange(10) % 2)
    base = {"train": train, "validation": train, "test": train}
    variants = [
        fingerprint("classification", ["a", "b"], base),
        fingerprint("classification", ["b", "a"], base),
        fingerprint("multilabel", ["a", "b"], base),
        fingerprint("classification", ["a", "b"], {**base, "test": train.take(range(9))}),
        fingerprint("classification", ["a", "b"], {**base, "test": make_split(1 - train.labels)}),
        fingerprint("classification", ["a", "b"], {**base, "test": make_split(train.labels, ["te", "xt"] * 5)}),
        fingerprint("classification", ["a", "b"], {**base, "test": make_split(train.labels, ["tex", "t"] * 5)}),
    ]
    assert len(set(variants)) == len(variants)
    assert variants[0] == fingerprint("classification", ["a", "b"], dict(base))
