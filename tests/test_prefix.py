"""Reuse of frozen-prefix activations: the same numbers for every family and depth, and entries that can be trusted."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from finetune.config import TrialConfig
from finetune.data.batches import Collator
from finetune.data.encoding import EncodedSplit
from finetune.freezing import FreezePlan
from finetune.freezing.rules import above_depth
from finetune.models import LayerStack
from finetune.models.head import Classifier, Head
from finetune.prefix.fill import fill_batches
from finetune.prefix.reuse import PrefixReuse, PrefixSource
from finetune.prefix.store import PrefixStore
from finetune.trial import run_trial

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 40}
FAMILIES = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SMALL)),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig(**SMALL)),
    "distilbert": (transformers.DistilBertModel, transformers.DistilBertConfig(
        vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=40)),
    "electra": (transformers.ElectraModel, transformers.ElectraConfig(**SMALL, embedding_size=16)),
    "mpnet": (transformers.MPNetModel, transformers.MPNetConfig(**SMALL)),
    "deberta-v2": (transformers.DebertaV2Model, transformers.DebertaV2Config(
        **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], conv_kernel_size=3, share_att_key=True,
        position_buckets=8, norm_rel_ebd="layer_norm", type_vocab_size=0)),
    "xlnet": (transformers.XLNetModel, transformers.XLNetConfig(
        vocab_size=99, d_model=32, n_layer=3, n_head=4, d_inner=48)),
    "modernbert": (transformers.ModernBertModel, transformers.ModernBertConfig(
        **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        global_attn_every_n_layers=2, local_attention=8)),
    "gpt2": (transformers.GPT2Model, transformers.GPT2Config(
        vocab_size=99, n_positions=40, n_embd=32, n_layer=3, n_head=4)),
    "llama": (transformers.LlamaModel, transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "qwen3": (transformers.Qwen3Model, transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)),
}
LAYERS = 3
ROWS = np.arange(10)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


def random_split(rows: int = 10, side: str = "right", seed: int = 0) -> Collator:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 30, rows)
    ids = [rng.integers(5, 99, n).astype(np.int32) for n in lengths]
    encoded = EncodedSplit(ids, None, rng.integers(0, 2, rows), np.arange(rows), lengths, 0.0, f"split {seed} {rows}")
    return Collator(encoded, 0, side)


def build(family: str, pooling: str = "mean", seed: int = 0) -> tuple[Classifier, LayerStack]:
    kind, config = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.config.use_cache = False
    stack = LayerStack.discover(model)
    classifier = Classifier(model, Head(stack.width, 8, 2, 0.0, torch.Generator().manual_seed(0)), pooling)
    return classifier, stack.bind(classifier)


def reuse_of(classifier: Classifier, stack: LayerStack, *splits: Collator, depth: int, model: str = "m") -> PrefixReuse:
    source = PrefixSource(model, None, "no", classifier.pooling, stack.num_layers, "p")
    plan = FreezePlan.build(stack, above_depth(stack, depth))
    reuse = PrefixReuse(classifier, stack, source, splits, contextlib.nullcontext)
    classifier.train()
    plan.apply(classifier)
    reuse.enter([plan])
    return reuse


def loss_and_gradients(classifier, logits):
    classifier.zero_grad(set_to_none=True)
    loss = (logits * torch.arange(1, logits.numel() + 1).view_as(logits)).sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in classifier.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("depth", range(1, LAYERS + 1))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_full_forward(family, depth):
    classifier, stack = build(family)
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
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_batch_shapes_give_equal_bits(family, depth):
    classifier, stack = build(family)
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
