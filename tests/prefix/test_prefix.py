"""Reuse of frozen-prefix activations: the same numbers for every family and depth, and entries that can be trusted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from families import FAMILIES, LAYERS
from prefix_parts import ROWS, classifier_of, loss_and_gradients, random_split, reuse_of

from finetune.prefix.budget import PrefixHint, configure
from finetune.prefix.fill import fill_batches

SKIPPABLE = [name for name in FAMILIES if name != "T5 encoder"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("depth", range(1, LAYERS + 1))
@pytest.mark.parametrize("family", SKIPPABLE)
def test_logits_and_gradients_are_those_of_the_full_forward(family, depth):
    classifier, stack = classifier_of(family)
    split = random_split()
    reuse = reuse_of(classifier, stack, split, depth=depth)
    inputs = split(ROWS)
    torch.manual_seed(0)
    expected = classifier(**inputs)
    expected_gradients = loss_and_gradients(classifier, expected)
    torch.manual_seed(0)
    logits = reuse.logits(classifier, split, ROWS)
    gradients = loss_and_gradients(classifier, logits)
    assert reuse.describe()["used"] and reuse.reason is None
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(expected_gradients[name].abs().max()))
        torch.testing.assert_close(gradient / scale, expected_gradients[name] / scale, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("depth", range(1, LAYERS + 1))
@pytest.mark.parametrize("family", SKIPPABLE)
def test_equal_batch_shapes_give_equal_bits(family, depth):
    classifier, stack = classifier_of(family)
    split = random_split(rows=10)
    (rows,) = fill_batches(split.encoded.lengths, "cpu")
    reuse = reuse_of(classifier, stack, split, depth=depth)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = classifier(**split(rows))
        torch.manual_seed(0)
        assert torch.equal(reuse.logits(classifier, split, rows), expected)
        torch.manual_seed(0)
        assert torch.equal(classifier(**split(rows)), expected), "the model is its own again afterwards"


@pytest.mark.parametrize("depth", [2, LAYERS])
def test_layers_that_hand_on_more_than_their_hidden_state_are_computed_unless_all_are_frozen(depth):
    classifier, stack = classifier_of("T5 encoder")
    split = random_split()
    reuse = reuse_of(classifier, stack, split, depth=depth)
    torch.manual_seed(0)
    logits = reuse.logits(classifier, split, ROWS)
    torch.manual_seed(0)
    torch.testing.assert_close(logits, classifier(**split(ROWS)), atol=1e-5, rtol=1e-5)
    assert reuse.describe()["used"] == (depth == LAYERS)
    assert depth == LAYERS or "hidden state" in reuse.describe()["reason"]


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "DeBERTa-v2 with convolution", "XLNet", "Qwen3", "Llama"])
def test_padding_on_the_left(family):
    classifier, stack = classifier_of(family, "last" if family in ("Qwen3", "Llama", "XLNet") else "mean")
    split = random_split(side="left")
    reuse = reuse_of(classifier, stack, split, depth=2)
    torch.manual_seed(0)
    logits = reuse.logits(classifier, split, ROWS)
    torch.manual_seed(0)
    torch.testing.assert_close(logits, classifier(**split(ROWS)), atol=1e-5, rtol=1e-5)


def test_where_padding_shifts_positions_nothing_is_replayed():
    classifier, stack = classifier_of("GPT-2", "last")
    split = random_split(side="left")
    reuse = reuse_of(classifier, stack, split, depth=2)
    torch.manual_seed(0)
    logits = reuse.logits(classifier, split, ROWS)
    torch.manual_seed(0)
    assert torch.equal(logits, classifier(**split(ROWS)))
    assert not reuse.describe()["used"] and "padding" in reuse.describe()["reason"]


def test_what_is_filled_depends_on_the_texts_alone():
    """Not on how many depths are filled in the same pass, nor on what was filled before."""
    arrays = []
    for wanted in ({2: 1}, {1: 1, 2: 1, 3: 1}):
        classifier, stack = classifier_of("BERT")
        split = random_split(rows=80)
        reuse = reuse_of(classifier, stack, split, depth=2, model=f"model {len(arrays)}")
        configure(PrefixHint(None, {"p": wanted}))
        reuse.fill(split)
        arrays.append(reuse.store.read(reuse.key(split, 2)).array)
    configure(PrefixHint())
    np.testing.assert_array_equal(*arrays)


def test_the_key_names_everything_that_decides_the_bytes():
    classifier, stack = classifier_of("BERT")
    split = random_split()
    reuse = reuse_of(classifier, stack, split, depth=2)
    key = reuse.key(split, 2)
    others = [reuse.key(split, 1), reuse.key(random_split(seed=1), 2), reuse.key(random_split(side="left"), 2)]
    for change in ({"model": "other"}, {"attention": "eager"}, {"mixed_precision": "bf16"}):
        reuse.source = dataclasses.replace(reuse.source, **change)
        others.append(reuse.key(split, 2))
    assert len({key, *others}) == 1 + len(others)
    pooled = reuse.key(split, LAYERS)
    reuse.source = dataclasses.replace(reuse.source, pooling="cls")
    assert reuse.key(split, LAYERS) != pooled and reuse.key(split, 2) == others[-1]
