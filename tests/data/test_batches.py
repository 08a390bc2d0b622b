"""Batches: every row once, the same at every depth, a shuffle that stays a shuffle."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.encoding.batches import evaluation_batches, padding_share, training_batches


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 400), size=st.integers(1, 33), seed=st.integers(0, 99), epoch=st.integers(1, 5))
def test_every_row_is_in_exactly_one_batch_and_only_the_last_is_short(rows, size, seed, epoch):
    lengths = np.random.default_rng(rows).integers(1, 60, rows)
    batches = training_batches(lengths, size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    assert all(len(batch) == size for batch in batches[:-1]) and 0 < len(batches[-1]) <= size


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(5, 60, 300)
    orders = {(seed, epoch): np.concatenate(training_batches(lengths, 8, seed, epoch)).tolist()
              for seed in (1, 2) for epoch in (1, 2)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert orders[1, 1] == np.concatenate(training_batches(lengths, 8, 1, 1)).tolist()


def test_grouping_by_length_removes_most_padding():
    lengths = np.random.default_rng(0).integers(5, 60, 2000)
    grouped = padding_share(lengths, training_batches(lengths, 16, 1, 1))
    shuffled = np.random.default_rng(1).permutation(2000)
    plain = padding_share(lengths, [shuffled[i:i + 16] for i in range(0, 2000, 16)])
    assert grouped < 0.1 < plain
    assert padding_share(lengths, evaluation_batches(lengths, 16)) < 0.02


def test_batches_of_one_length_are_spread_over_the_epoch():
    lengths = np.repeat([5, 50], 800)
    first = np.concatenate(training_batches(lengths, 16, 1, 1))[:800]
    assert 0.3 < np.mean(lengths[first] == 5) < 0.7
