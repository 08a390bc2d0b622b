"""Families that nothing here was written for: each works like those of the matrix, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from conformance import _train_at

from finetune.models import UnsupportedBackbone
from finetune.models.discovery import discover_stack

pytestmark = pytest.mark.slow

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 64}
SMALL_GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 2}
UNSEEN = {  # name of the classes, as transformers has it -> configuration
    ("LongformerModel", "LongformerConfig"): {**SMALL, "attention_window": 4},
    ("BigBirdModel", "BigBirdConfig"): {**SMALL, "attention_type": "original_full"},
    ("BloomModel", "BloomConfig"): {"vocab_size": 60, "hidden_size": 16, "n_layer": 3, "n_head": 2},
    ("FalconModel", "FalconConfig"): {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    ("MambaModel", "MambaConfig"): {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 4},
    ("SqueezeBertModel", "SqueezeBertConfig"): {
        **SMALL, "embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1,
        "intermediate_groups": 1, "output_groups": 1},
    ("FNetModel", "FNetConfig"): {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32,
        "max_position_embeddings": 64},
    ("ConvBertModel", "ConvBertConfig"): {**SMALL, "embedding_size": 16},
    ("RemBertModel", "RemBertConfig"): {**SMALL, "input_embedding_size": 16},
    ("GPTJModel", "GPTJConfig"): {**SMALL_GPT, "rotary_dim": 4},
    ("GPTNeoModel", "GPTNeoConfig"): {
        "vocab_size": 60, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]]},
    ("MixtralModel", "MixtralConfig"): {**SMALL, "num_key_value_heads": 1, "num_local_experts": 2},
    ("Qwen3MoeModel", "Qwen3MoeConfig"): {
        **SMALL, "num_key_value_heads": 1, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
        "head_dim": 8},
    ("Gemma3TextModel", "Gemma3TextConfig"): {**SMALL, "num_key_value_heads": 1, "head_dim": 8},
    ("Olmo2Model", "Olmo2Config"): {**SMALL},
    ("ErnieModel", "ErnieConfig"): {**SMALL},
    ("IBertModel", "IBertConfig"): {**SMALL},
    ("MobileBertModel", "MobileBertConfig"): {
        **SMALL, "embedding_size": 16, "intra_bottleneck_size": 8, "true_hidden_size": 8},
    ("CanineModel", "CanineConfig"): {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
        "num_hash_buckets": 32},
    ("LayoutLMModel", "LayoutLMConfig"): {**SMALL},
    ("EsmModel", "EsmConfig"): {**SMALL, "pad_token_id": 1},
    ("CLIPTextModel", "CLIPTextConfig"): {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size":
        32},
    ("UMT5EncoderModel", "UMT5Config"): {
        "vocab_size": 60, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 3, "num_heads": 2},
    ("JambaModel", "JambaConfig"): {
        **SMALL, "num_key_value_heads": 1, "num_experts": 2, "use_mamba_kernels": False},
    ("ReformerModel", "ReformerConfig"): {"vocab_size": 60},
    ("XLMModel", "XLMConfig"): {"vocab_size": 60, "emb_dim": 16, "n_layers": 3, "n_heads": 2},
    ("FlaubertModel", "FlaubertConfig"): {"vocab_size": 60, "emb_dim": 16, "n_layers": 3, "n_heads": 2},
    ("CTRLModel", "CTRLConfig"): {**SMALL_GPT, "dff": 32},
}


@pytest.mark.parametrize("names", UNSEEN, ids=lambda names: names[0])
def test_it_works_or_is_refused_with_a_reason(names):
    model_class, config_class = (getattr(tf, name) for name in names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config_class(**UNSEEN[names])).eval()
    try:
        stack = discover_stack(model)
    except UnsupportedBackbone as error:
        assert error.reason and str(error).count("\n") == 0 and "; choose " in str(error)
        return
    assert sorted(name for part in stack.parts.values() for name in part) == sorted(
        name for name, _ in model.named_parameters())
    for depth in (-1, 0, 2, stack.num_layers):
        leaks, _, deeper = _train_at(stack, depth)
        assert not leaks and not deeper
