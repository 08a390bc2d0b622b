"""Reuse in mixed precision: every family, two bytes per value, the same predictions within bfloat16's own rounding."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from families import FAMILIES, LAYERS
from prefix_parts import ROWS, bf16, classifier_of, loss_and_gradients, mixed_reuse_of, random_split, reuse_of

from finetune.config import TrialConfig
from finetune.prefix import budget, check
from finetune.prefix.budget import PrefixHint
from finetune.prefix.precision import array_dtype, as_array, as_tensor, kept_dtype, rounded
from finetune.prefix.served import as_float32
from finetune.prefix.store import PrefixStore
from finetune.trial import run_trial

NOT_IN_BF16 = "DeBERTa"  # transformers 5 masks bfloat16 scores with float32's lowest number
REUSING = [name for name in FAMILIES if name not in ("T5 encoder", NOT_IN_BF16)]
BF16_STEP = torch.finfo(torch.bfloat16).eps


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(budget, "_hint", PrefixHint())
    monkeypatch.setattr(check, "_sound", set())


@pytest.mark.parametrize("family, depth", [*itertools.product(REUSING, range(1, LAYERS + 1)), ("T5 encoder", LAYERS)])
def test_every_family_reuses_in_bf16(family, depth):
    classifier, stack = classifier_of(family)
    split = random_split()
    reuse = mixed_reuse_of(classifier, stack, split, depth)
    torch.manual_seed(0)
    exact = classifier(**split(ROWS)).float()
    torch.manual_seed(0)
    with bf16():
        expected = classifier(**split(ROWS)).float()
    torch.manual_seed(0)
    with bf16():
        found = reuse.logits(classifier, split, ROWS).float()
    assert reuse.describe()["used"], reuse.describe()
    own = max(float((expected - exact).detach().abs().max()), BF16_STEP * float(exact.detach().abs().max()))
    assert float((found - expected).detach().abs().max()) <= 4 * own
    assert all(torch.isfinite(gradient).all() for gradient in loss_and_gradients(classifier, found).values())


def test_the_family_that_is_left_out_cannot_compute_in_bf16_at_all():
    classifier, stack = classifier_of(NOT_IN_BF16)
    with bf16(), pytest.raises(RuntimeError, match="overflow"):
        classifier(**random_split()(ROWS))


@pytest.mark.parametrize("family", ["BERT", "Llama", "XLNet"])
def test_two_bytes_are_kept_and_the_dtype_of_the_full_pass_is_handed_on(family):
    classifier, stack = classifier_of(family)
    split = random_split()
    reuse = mixed_reuse_of(classifier, stack, split, depth=2)
    reuse.fill(split)
    (served,) = reuse._open.values()
    assert served.entry.array.dtype == np.int16 and served.entry.array.nbytes == 2 * served.entry.array.size
    assert served.entry.facts["kept"] == "torch.bfloat16" and served.dtype == torch.float32
    row = int(split.encoded.lengths.argmax())
    hidden = served.padded(np.array([row]), int(split.encoded.lengths[row]))
    assert hidden.dtype == torch.float32 and torch.equal(hidden, rounded(hidden, "bf16"))
    start = served.offsets[row]
    np.testing.assert_array_equal(as_float32(served.entry)[start:start + hidden.shape[1]], hidden[0].numpy())


def test_a_pooled_vector_gives_the_head_the_same_bits():
    """The head's first product casts its input to bfloat16 anyway."""
    classifier, stack = classifier_of("BERT")
    split = random_split()
    reuse = mixed_reuse_of(classifier, stack, split, depth=LAYERS)
    reuse.fill(split)
    (served,) = reuse._open.values()
    with bf16(), torch.no_grad():
        classifier.eval()
        pooled = reuse.logits(classifier, split, ROWS)
        kept = torch.from_numpy(as_float32(served.entry)[ROWS])
        assert torch.equal(pooled, classifier.head(kept))


def test_where_padding_shifts_positions_bf16_is_refused_for_that_reason():
    classifier, stack = classifier_of("GPT-2", "last")
    split = random_split(side="left")
    reuse = mixed_reuse_of(classifier, stack, split, depth=2)
    with bf16():
        reuse.logits(classifier, split, ROWS)
    assert not reuse.describe()["used"] and "depends on the padding" in reuse.describe()["reason"]


def test_structure_is_asked_once_per_model_and_rounding_every_time(monkeypatch):
    asked = []
    original = check._in_full_precision
    monkeypatch.setattr(check, "_in_full_precision", lambda prefix, split, boundaries, outputs: (
        asked.append(set(boundaries)), original(prefix, split, boundaries, outputs))[1])
    for seed in (0, 1):
        classifier, stack = classifier_of("BERT")
        split = random_split(seed=seed)
        mixed_reuse_of(classifier, stack, split, depth=2).fill(split)
    assert asked == [{2}, set()]


def test_rows_of_one_length_prove_nothing_about_padding():
    classifier, stack = classifier_of("BERT")
    split = random_split()
    rows = np.full(10, 5)
    same = dataclasses.replace(split.encoded, input_ids=[np.arange(5, 10, dtype=np.int32)] * 10, lengths=rows)
    split = dataclasses.replace(split, encoded=same)
    mixed_reuse_of(classifier, stack, split, depth=2).fill(split)
    assert not check._sound


def test_too_coarse_a_replay_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(check, "ROUNDINGS", 0)
    classifier, stack = classifier_of("BERT")
    split = random_split()
    reuse = mixed_reuse_of(classifier, stack, split, depth=1)
    reuse.fill(split)
    assert "itself rounds by" in reuse.reason


def test_what_float16_has_no_room_for_is_not_kept():
    classifier, stack = classifier_of("BERT")
    with torch.no_grad():
        stack.layers[0].output.LayerNorm.weight.fill_(1e6)
    split = random_split()
    reuse = reuse_of(classifier, stack, split, depth=1)
    reuse.source = dataclasses.replace(reuse.source, mixed_precision="fp16")
    reuse.fill(split)
    assert reuse.reason and PrefixStore().listing() == []


@pytest.mark.parametrize("precision, kept", [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_arrays_are_the_inverse_of_tensors(precision, kept):
    value = torch.randn(7, 3)
    assert kept_dtype(value.dtype, precision) == kept
    array = as_array(value, kept)
    assert array.dtype == array_dtype(kept) and array.itemsize == kept.itemsize
    assert torch.equal(as_tensor(array, kept).float(), rounded(value, precision))


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_whole_trial_in_bf16_ends_with_the_same_predictions(tiny_bert_dir, depth):
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 40, "evaluation_size": 40, "max_length": 24,
             "num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-4,
             "head_learning_rate": 1e-3, "mixed_precision": "bf16", "freeze_depth": depth, "head_dropout": 0.0}
    cold, warm = (run_trial(TrialConfig.from_mapping(knobs)) for _ in range(2))
    without = run_trial(TrialConfig.from_mapping({**knobs, "prefix_cache": False}))
    for name, values in cold.predictions.items():
        np.testing.assert_array_equal(warm.predictions[name], values)
    assert cold.record.prefix["used"] and warm.record.prefix["used"] and not without.record.prefix["used"]
    assert cold.record.trial_id == without.record.trial_id
    for split in ("validation", "test"):
        ours, theirs = cold.predictions[f"{split}_logits"], without.predictions[f"{split}_logits"]
        np.testing.assert_allclose(ours, theirs, atol=4 * BF16_STEP * np.abs(theirs).max())
        sure = np.abs(theirs[:, 0] - theirs[:, 1]) > 8 * BF16_STEP * np.abs(theirs).max()
        np.testing.assert_array_equal(ours.argmax(1)[sure], theirs.argmax(1)[sure])


def test_entries_in_two_precisions_do_not_meet(tiny_bert_dir):
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 16, "evaluation_size": 16, "num_train_epochs": 1,
             "freeze_depth": 2}
    for precision in ("no", "bf16"):
        assert run_trial(TrialConfig.from_mapping({**knobs, "mixed_precision": precision})).record.prefix["used"]
    sizes = {}
    for listing in PrefixStore().listing():
        sizes.setdefault(listing.facts["split"], []).append((listing.facts["kept"], listing.size))
    assert sizes
    for found in sizes.values():
        (_, small), (_, large) = sorted(found)
        assert {kept for kept, _ in found} == {"torch.bfloat16", "torch.float32"} and small < 0.6 * large
