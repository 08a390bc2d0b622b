"""Whole trials with and without reuse: the same predictions, only where it is sound, whatever happens to the cache."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.config import TrialConfig
from finetune.errors import EnvironmentProblem
from finetune.prefix import budget
from finetune.prefix import store as store_module
from finetune.prefix.budget import PrefixHint
from finetune.prefix.store import DATA, PrefixStore
from finetune.trial import run_trial

LAYERS = 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(budget, "_hint", PrefixHint())


@pytest.fixture
def trial(tiny_bert_dir):
    def run(**changes):
        knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 40, "evaluation_size": 20, "max_length": 24,
                 "num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3,
                 "head_learning_rate": 1e-2, **changes}
        return run_trial(TrialConfig.from_mapping(knobs))

    return run


def assert_same_predictions(outcome, expected):
    for split in ("validation", "test"):
        ours, theirs = outcome.predictions[f"{split}_logits"], expected.predictions[f"{split}_logits"]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
    assert outcome.record.trial_id == expected.record.trial_id


@pytest.mark.parametrize("depth", range(1, LAYERS + 1))
def test_a_whole_run_ends_with_the_same_predictions(trial, depth):
    cold = trial(freeze_depth=depth)
    warm = trial(freeze_depth=depth)
    assert_same_predictions(cold, trial(freeze_depth=depth, prefix_cache=False))
    for name, values in cold.predictions.items():
        np.testing.assert_array_equal(warm.predictions[name], values)
    for outcome in (cold, warm):
        assert outcome.record.prefix["used"] and outcome.record.prefix["boundaries"] == [depth]
        assert outcome.record.cost["prefix_seconds"] > outcome.record.cost["prefix_train_seconds"] > 0
    assert warm.record.prefix["saved_seconds"] > cold.record.prefix["saved_seconds"]


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_other_poolings_too(trial, pooling):
    outcome = trial(freeze_depth=LAYERS, pooling=pooling)
    assert outcome.record.prefix["used"]
    assert_same_predictions(outcome, trial(freeze_depth=LAYERS, pooling=pooling, prefix_cache=False))


def test_one_pass_fills_every_depth_that_the_sweep_needs(trial, monkeypatch):
    first = trial(freeze_depth=2)
    assert {listing.facts["boundary"] for listing in PrefixStore().listing()} == {2}
    from finetune.trial import resolve_trial

    config = TrialConfig.from_mapping(first.record.config)
    prefix_id = resolve_trial(config).describe()["prefix_id"]
    budget.configure(PrefixHint(None, {prefix_id: {1: 1, 3: 1, LAYERS: 1}}))
    trial(freeze_depth=3)
    found = sorted(listing.facts["boundary"] for listing in PrefixStore().listing())
    assert found == sorted([2, 1, 3, LAYERS] * 3), "train, validation and test of each"
    later = trial(freeze_depth=1)
    assert later.record.prefix["used"] and later.record.prefix["saved_seconds"] > 0
    assert sorted(listing.facts["boundary"] for listing in PrefixStore().listing()) == found


@pytest.mark.parametrize("depth", range(1, LAYERS + 1))
def test_what_a_shallower_trial_filled_is_the_pretrained_model_s(trial, depth):
    """A trial fills deeper depths for its sweep; by the time it is tested, its own upper layers have trained."""
    from finetune.trial import resolve_trial

    config = TrialConfig.from_mapping(trial(freeze_depth=0).record.config)
    prefix_id = resolve_trial(config).describe()["prefix_id"]
    budget.configure(PrefixHint(None, {prefix_id: dict.fromkeys(range(1, LAYERS + 1), 1)}))
    trial(freeze_depth=1, learning_rate=1e-2)
    filled = trial(freeze_depth=depth)
    assert filled.record.prefix["used"]
    assert_same_predictions(filled, trial(freeze_depth=depth, prefix_cache=False))


@pytest.mark.parametrize("changes", [
    {"strategy": "bitfit"}, {"strategy": "norm_only"}, {"strategy": "lora:2"}, {"strategy": "lisa:1/2"},
    {"strategy": "full"}, {"strategy": "suffix:2"}, {"freeze_depth": -1},
    {"freeze_depth": LAYERS, "frozen_dropout": True}, {"freeze_depth": 2, "prefix_cache": False},
    {"freeze_depth": 2, "reinit_layers": LAYERS},
], ids=str)
def test_where_reuse_is_unsound_or_gains_nothing_it_is_not_used(trial, changes):
    record = trial(**changes).record
    assert record.state == "complete" and not record.prefix["used"]
    assert PrefixStore().listing() == []


@pytest.mark.parametrize("strategy, boundaries", [
    ("lp_ft:1", [LAYERS]), ("gradual:1", [LAYERS - 2, LAYERS - 1, LAYERS]), ("train:2-3", [2]), ("head_only", [LAYERS]),
])
def test_phased_strategies_use_it_for_as_long_as_their_boundary_allows(trial, strategy, boundaries):
    outcome = trial(strategy=strategy, num_train_epochs=3)
    assert_same_predictions(outcome, trial(strategy=strategy, num_train_epochs=3, prefix_cache=False))
    used = outcome.record.prefix["boundaries"]
    assert set(used) <= set(boundaries) and used, outcome.record.freeze_plan


def test_a_boundary_is_never_above_a_layer_that_has_trained(trial):
    """AutoFreeze freezes layers after they have trained: their activations are no longer the pretrained ones."""
    outcome = trial(strategy="auto:99", num_train_epochs=3)
    assert not outcome.record.prefix["used"]


def test_reinitialised_layers_are_computed_and_those_below_are_reused(trial):
    outcome = trial(freeze_depth=LAYERS, reinit_layers=1)
    assert outcome.record.prefix["boundaries"] == [LAYERS - 1]
    assert_same_predictions(outcome, trial(freeze_depth=LAYERS, reinit_layers=1, prefix_cache=False))


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign"])
@pytest.mark.parametrize("depth", [2, LAYERS])
def test_a_damaged_entry_is_built_again_and_never_used(trial, depth, damage):
    expected = trial(freeze_depth=depth)
    listings = PrefixStore().listing()
    for listing, other in zip(listings, listings[1:] + listings[:1], strict=True):
        path = listing.folder / DATA
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 64
        elif damage == "truncate":
            content = content[:-8]
        else:
            content = bytearray((other.folder / DATA).read_bytes())
        path.write_bytes(content)
    store_module._verified.clear()
    outcome = trial(freeze_depth=depth)
    assert outcome.record.prefix["used"]
    for name, values in expected.predictions.items():
        np.testing.assert_array_equal(outcome.predictions[name], values)


def test_too_small_a_budget_means_full_passes_and_says_so(trial):
    budget.configure(PrefixHint(0))
    outcome = trial(freeze_depth=2)
    assert not outcome.record.prefix["used"] and "budget" in outcome.record.prefix["reason"]
    assert PrefixStore().listing() == []


def test_where_only_one_depth_fits_others_start_from_it(trial):
    first = trial(freeze_depth=2)
    size = sum(listing.size for listing in PrefixStore().listing())
    PrefixStore().clear()
    from finetune.trial import resolve_trial

    prefix_id = resolve_trial(TrialConfig.from_mapping(first.record.config)).describe()["prefix_id"]
    budget.configure(PrefixHint(size, {prefix_id: {2: 5, 3: 1}}))
    outcome = trial(freeze_depth=3)
    assert outcome.record.prefix["boundaries"] == [2]
    assert_same_predictions(outcome, trial(freeze_depth=3, prefix_cache=False))


def test_a_cache_that_cannot_be_written_costs_speed_only(trial, monkeypatch):
    def refuse(*arguments, **keywords):
        raise EnvironmentProblem("cannot write cached activations: the disk is full")

    monkeypatch.setattr(PrefixStore, "writer", refuse)
    outcome = trial(freeze_depth=2)
    assert outcome.record.state == "complete" and "the disk is full" in outcome.record.prefix["reason"]


@pytest.mark.parametrize("depth", [2, LAYERS])
def test_lower_precision_comes_back_as_it_was_kept(trial, depth):
    """The pretrained pooler gives bfloat16 under autocast, which numpy does not have."""
    # By the loss: a prediction that rounding flips may make another epoch the best by accuracy.
    knobs = {"mixed_precision": "bf16", "pooling": "pooler", "freeze_depth": depth, "metric_for_best_model": "loss"}
    outcome, expected = trial(**knobs), trial(**knobs, prefix_cache=False)
    assert outcome.record.prefix["used"]
    np.testing.assert_allclose(outcome.predictions["test_logits"], expected.predictions["test_logits"], atol=0.05)
