"""Tiny random models of every family that the conformance matrix covers, built offline in milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as tf
from torch import nn

LAYERS = 3
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 32}
DEBERTA = {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
DECODER = {**SMALL, "num_key_value_heads": 1, "pad_token_id": None}
T5 = {"vocab_size": 60, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": LAYERS, "num_heads": 2}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: tf.BertModel(tf.BertConfig(**SMALL)),
    "RoBERTa": lambda: tf.RobertaModel(tf.RobertaConfig(**SMALL)),
    "XLM-R": lambda: tf.XLMRobertaModel(tf.XLMRobertaConfig(**SMALL)),
    "DistilBERT": lambda: tf.DistilBertModel(tf.DistilBertConfig(
        vocab_size=60, dim=16, n_layers=LAYERS, n_heads=2, hidden_dim=32, max_position_embeddings=32)),
    "ELECTRA": lambda: tf.ElectraModel(tf.ElectraConfig(**SMALL, embedding_size=8)),
    "MPNet": lambda: tf.MPNetModel(tf.MPNetConfig(**SMALL)),
    "DeBERTa": lambda: tf.DebertaModel(tf.DebertaConfig(**DEBERTA)),
    "DeBERTa-v2": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**DEBERTA)),
    "DeBERTa-v2 with convolution": lambda: tf.DebertaV2Model(tf.DebertaV2Config(
        **DEBERTA, conv_kernel_size=3, share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm")),
    "XLNet": lambda: tf.XLNetModel(tf.XLNetConfig(vocab_size=60, d_model=16, n_layer=LAYERS, n_head=2, d_inner=32)),
    "ALBERT, a group per layer": lambda: tf.AlbertModel(tf.AlbertConfig(
        **SMALL, embedding_size=8, num_hidden_groups=LAYERS)),
    "ModernBERT": lambda: tf.ModernBertModel(tf.ModernBertConfig(
        **SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)),
    "T5 encoder": lambda: tf.T5EncoderModel(tf.T5Config(**T5)),
    "GPT-2": lambda: tf.GPT2Model(tf.GPT2Config(
        vocab_size=60, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1)),
    "Llama": lambda: tf.LlamaModel(tf.LlamaConfig(**DECODER)),
    "Qwen2": lambda: tf.Qwen2Model(tf.Qwen2Config(**DECODER)),
    "Qwen3": lambda: tf.Qwen3Model(tf.Qwen3Config(**DECODER, head_dim=8)),
    "CamemBERT": lambda: tf.CamembertModel(tf.CamembertConfig(**SMALL)),
    "RoFormer": lambda: tf.RoFormerModel(tf.RoFormerConfig(**SMALL, embedding_size=16)),
    "OPT": lambda: tf.OPTModel(tf.OPTConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, ffn_dim=32,
        max_position_embeddings=32, word_embed_proj_dim=16)),
    "Mistral": lambda: tf.MistralModel(tf.MistralConfig(**DECODER)),
    "Gemma 2": lambda: tf.Gemma2Model(tf.Gemma2Config(**DECODER, head_dim=8)),
    "GPT-NeoX": lambda: tf.GPTNeoXModel(tf.GPTNeoXConfig(**SMALL)),
    "Phi": lambda: tf.PhiModel(tf.PhiConfig(**SMALL)),
}

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ALBERT, classic": (lambda: tf.AlbertModel(tf.AlbertConfig(**SMALL, embedding_size=8)), "share their weights"),
    "Funnel": (lambda: tf.FunnelModel(tf.FunnelConfig(
        vocab_size=60, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 1, 1])), "in blocks"),
    "XLM": (lambda: tf.XLMModel(tf.XLMConfig(vocab_size=60, emb_dim=16, n_layers=2, n_heads=2)), "more than one list"),
    "SqueezeBERT": (lambda: tf.SqueezeBertModel(tf.SqueezeBertConfig(**SMALL, embedding_size=16)), "none of its lists"),
    "Swin": (lambda: tf.SwinModel(tf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)), "pixel_values"),
    "T5, the whole": (lambda: tf.T5Model(tf.T5Config(**T5, decoder_start_token_id=0)), "encoder-decoder"),
    "BART": (lambda: tf.BartModel(tf.BartConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32)),
        "encoder-decoder"),
    "ViT": (lambda: tf.ViTModel(tf.ViTConfig(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32)), "pixel_values"),
}


def build(name: str) -> nn.Module:
    """The family's model with its own random weights, always the same, in eval mode."""
    make = FAMILIES[name] if name in FAMILIES else REFUSED[name][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()
