"""Activations that lie on the device give the same batches as those on the host, within their budget, loaded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prefix_parts import ROWS, classifier_of, mixed_reuse_of, random_split, reuse_of

from finetune.prefix import budget, check, resident, served
from finetune.prefix.budget import PrefixHint
from finetune.prefix.fill import row_offsets
from finetune.prefix.resident import DeviceTokens, Residents
from finetune.prefix.served import Served
from finetune.prefix.store import Entry

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(budget, "_hint", PrefixHint())
    monkeypatch.setattr(check, "_sound", set())
    monkeypatch.setattr(served, "residents", Residents())


def entry_of(rows: int, name: str = "e", dtype=np.float32) -> Entry:
    rng = np.random.default_rng(0)
    return Entry(name, None, rng.normal(size=(rows, 4)).astype(dtype), 0.0, {"dtype": "torch.float32"})


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", [27, 32])
def test_padded_batches_by_index_are_those_of_the_host(side, tokens):
    split = random_split(rows=30, side=side)
    lengths = split.encoded.lengths
    entry = entry_of(int(lengths.sum()))
    host = Served(entry, 1, False, lengths, side, CPU, 0, row_offsets(lengths))
    device = DeviceTokens(torch.cat([torch.from_numpy(entry.array), torch.zeros(1, 4)]),
                          torch.from_numpy(host.offsets), side)
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(30)[:7]
        assert torch.equal(device.padded(rows, tokens), host.padded(rows, tokens))


@pytest.mark.parametrize("make", [reuse_of, mixed_reuse_of])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_trials_logits_are_the_same_bits(make, depth, monkeypatch):
    classifier, stack = classifier_of("BERT")
    split = random_split()
    found = []
    for kinds in (frozenset(), frozenset({"cpu"})):
        monkeypatch.setattr(served, "RESIDENT_ON", kinds)
        reuse = make(classifier, stack, split, depth=depth)
        torch.manual_seed(0)
        with reuse.autocast():
            found.append(reuse.logits(classifier, split, ROWS))
        (one,) = reuse._open.values()
        assert (one.resident is not None) == bool(kinds) and reuse.describe()["used"]
    assert torch.equal(*found)
    if make is mixed_reuse_of:
        assert one.resident.flat.dtype == torch.bfloat16


def test_an_entry_is_loaded_once_and_shared(monkeypatch):
    loads, original = [], resident._load
    monkeypatch.setattr(resident, "_load", lambda *arguments: (loads.append(1), original(*arguments))[1])
    held, entry = Residents(), entry_of(10)
    first, second = (held.get(entry, torch.float32, [0, 4, 10], False, "right", CPU) for _ in range(2))
    assert first is second and len(loads) == 1 and held.held_bytes(CPU) == 11 * 4 * 4


def test_the_budget_counts_and_the_least_recently_used_goes_first():
    held, size = Residents(), entry_of(10).array.nbytes

    def get(name, budget):
        return held.get(entry_of(10, name), torch.float32, [0, 10], True, "right", CPU, budget)

    a, b = get("a", 2 * size), get("b", 2 * size)
    assert get("a", 2 * size) is a
    assert get("c", 2 * size) is not None and get("a", 2 * size) is a and get("b", 2 * size) is not b
    assert get("d", size - 1) is None, "too large for the whole budget"
    held.release(CPU)
    assert held.held_bytes(CPU) == 0


def test_without_room_the_host_serves(monkeypatch):
    monkeypatch.setattr(served, "RESIDENT_ON", frozenset({"cpu"}))
    classifier, stack = classifier_of("BERT")
    split = random_split()
    one = reuse_of(classifier, stack, split, depth=2)
    one.fill(split)
    monkeypatch.setattr(served, "residents", Residents())
    monkeypatch.setattr(budget, "_hint", PrefixHint(10))
    other = reuse_of(classifier, stack, split, depth=2)
    torch.manual_seed(0)
    other.logits(classifier, split, ROWS)
    (found,) = other._open.values()
    assert found.resident is None and other.describe()["used"]
