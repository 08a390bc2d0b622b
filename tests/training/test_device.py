"""What holds on a GPU, as far as a CPU can prove it: buckets of lengths, and that a CPU's trial is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prefix_parts import ROWS, classifier_of, random_split, reuse_of

from finetune.config import TrialConfig
from finetune.data.encoding.batches import Collator, evaluation_batches, padding_share, training_batches
from finetune.training import device as card
from finetune.trial import run_trial


def bucketed(split: Collator, bucket: int, limit: int | None = None) -> Collator:
    return Collator(split.encoded, split.pad_token_id, split.side, bucket, limit)


@pytest.fixture
def settings():
    """As they were, after a test has prepared a GPU that is not there."""
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("bucket", [1, 8, 16])
def test_batches_are_as_long_as_a_multiple_of_the_bucket(side, bucket):
    split = bucketed(random_split(side=side), bucket)
    plain = random_split(side=side)(ROWS)
    for name, tensor in split(ROWS).items():
        width, real = tensor.shape[1], plain[name].shape[1]
        assert width % bucket == 0 and real <= width < real + bucket
        same, extra = (tensor[:, -real:], tensor[:, :-real]) if side == "left" else (tensor[:, :real], tensor[:, real:])
        assert torch.equal(same, plain[name]) and (extra == 0).all()


def test_no_batch_is_longer_than_the_model_takes():
    split = random_split()
    longest = int(split.encoded.lengths.max())
    assert bucketed(split, 64, longest + 1).width(ROWS) == longest + 1
    assert bucketed(split, 64, longest - 1).width(ROWS) == longest, "nor shorter than its rows"


def test_few_shapes_occur_and_the_padding_is_counted():
    lengths = np.clip(np.random.default_rng(0).normal(27, 11, 2000), 6, 60).astype(int)
    split = random_split(rows=4)
    encoded = type(split.encoded)([np.zeros(n, np.int32) for n in lengths], None, np.zeros(2000, np.int64),
                                  np.arange(2000), lengths, 0.0, "many")
    collator = Collator(encoded, 0, bucket=16)
    for batches in (training_batches(lengths, 32, 1, 1), evaluation_batches(lengths, 32)):
        assert {collator.width(rows) for rows in batches} <= {16, 32, 48, 64}
        assert padding_share(lengths, batches) < padding_share(lengths, batches, collator.width) < 0.35


@pytest.mark.parametrize("family, depth", [("BERT", 2), ("RoBERTa", 3), ("ModernBERT", 1), ("DeBERTa-v2", 2),
                                           ("Llama", 2)])
def test_reuse_and_the_full_pass_agree_in_buckets(family, depth, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    classifier, stack = classifier_of(family)
    exact = random_split()
    split = bucketed(exact, 16, 30)
    reuse = reuse_of(classifier, stack, split, depth=depth)
    torch.manual_seed(0)
    found = reuse.logits(classifier.eval(), split, ROWS)
    assert reuse.describe()["used"] and reuse.key(split, depth) != reuse.key(exact, depth)
    torch.testing.assert_close(found, classifier(**split(ROWS)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, classifier(**exact(ROWS)), atol=1e-5, rtol=1e-5)


def test_on_a_gpu_no_attention_that_plans_for_each_shape_and_the_record_says_so(settings):
    gpu = torch.device("cuda")
    card.prepare_device(gpu)
    facts = card.device_facts(gpu)
    assert "cudnn" not in facts["attention"] and "efficient" in facts["attention"]
    assert facts["padded_to"] == card.bucket_tokens("cuda") == 16 and "deterministic" in facts


def test_on_a_cpu_nothing_changes(settings):
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.are_deterministic_algorithms_enabled()
    card.prepare_device(torch.device("cpu"))
    assert (torch.backends.cuda.cudnn_sdp_enabled(), torch.are_deterministic_algorithms_enabled()) == before
    assert card.bucket_tokens("cuda", "left") == 1
    assert card.device_facts(torch.device("cpu")) == {} and card.bucket_tokens("cpu") == 1


def test_a_whole_trial_in_buckets_predicts_the_same(tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    knobs = {"model_name_or_path": str(tiny_bert_dir), "train_size": 40, "evaluation_size": 20, "max_length": 24,
             "num_train_epochs": 1, "freeze_depth": 2, "head_dropout": 0.0}
    monkeypatch.setattr(card, "BUCKET_TOKENS", {})
    plain = run_trial(TrialConfig.from_mapping(knobs))
    monkeypatch.setitem(card.BUCKET_TOKENS, "cuda" if torch.cuda.is_available() else "cpu", 16)
    found = run_trial(TrialConfig.from_mapping(knobs))
    assert found.record.trial_id == plain.record.trial_id and found.record.prefix["used"]
    assert found.record.history[0]["train"]["padding_share"] > plain.record.history[0]["train"]["padding_share"]
    assert np.abs(found.predictions["validation_logits"] - plain.predictions["validation_logits"]).max() < 0.1
