"""Decoders classify from their last real token, whatever side is padded and with no pad token at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import bundled_texts

from finetune.config import TrialConfig
from finetune.data.encoding.batches import Collator
from finetune.data.encoding.encoding import encode_split, padding_id
from finetune.data.task_data import Split
from finetune.errors import ConfigError
from finetune.models import load_backbone
from finetune.trial import build_classifier, encode_splits, resolve_trial, run_trial


@pytest.fixture(scope="module", params=["GPT-2", "Llama"])
def decoder_dir(request, tmp_path_factory):
    """A random decoder with a byte-level BPE tokenizer that has no pad token and adds no special tokens."""
    import transformers as tf
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("decoder")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(bundled_texts(), vocab_size=300, special_tokens=["<eos>"], show_progress=False)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>", model_max_length=64)
    vocabulary = len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "GPT-2":
            model = tf.GPT2Model(tf.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=3, n_head=2, n_positions=64,
                                               bos_token_id=0, eos_token_id=0, initializer_range=0.2))
        else:
            model = tf.LlamaModel(tf.LlamaConfig(
                vocab_size=vocabulary, hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
                num_key_value_heads=1, intermediate_size=64, max_position_embeddings=64, bos_token_id=0,
                eos_token_id=0, pad_token_id=None, initializer_range=0.2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def knobs(decoder_dir):
    return {"model_name_or_path": str(decoder_dir), "train_size": 32, "evaluation_size": 16, "num_train_epochs": 2,
            "per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_length": 48}


def test_a_decoder_pools_its_last_token_unless_asked_otherwise(knobs):
    resolved = resolve_trial(TrialConfig.from_mapping(knobs))
    assert resolved.backbone.stack.causal and resolved.effective["pooling"] == "last"
    assert build_classifier(resolved)[0].pooling == "last"
    asked = resolve_trial(TrialConfig.from_mapping({**knobs, "pooling": "last"}))
    assert asked.trial_id == resolved.trial_id
    assert resolve_trial(TrialConfig.from_mapping({**knobs, "pooling": "mean"})).trial_id != resolved.trial_id


def test_the_first_token_of_a_decoder_is_refused(knobs):
    with pytest.raises(ConfigError, match="pooling = 'cls'.*does not see the text after it; use last or mean"):
        resolve_trial(TrialConfig.from_mapping({**knobs, "pooling": "cls"}))


def test_a_decoder_is_padded_on_the_right_whatever_its_tokenizer_says(knobs, monkeypatch):
    """GPT-2 counts positions from the padding when that is on the left."""
    resolved = resolve_trial(TrialConfig.from_mapping(knobs))
    monkeypatch.setattr(resolved.backbone.tokenizer, "padding_side", "left")
    assert encode_splits(resolved)["train"].side == "right"


def test_a_row_s_logits_do_not_depend_on_the_padding_beside_it(knobs):
    resolved = resolve_trial(TrialConfig.from_mapping(knobs))
    tokenizer = resolved.backbone.tokenizer
    assert tokenizer.pad_token_id is None and padding_id(tokenizer) == tokenizer.eos_token_id
    texts = ["good", "a warm and funny film that never lets you go .", "dull , dull <eos> , dull ."]
    split = Split([(text,) for text in texts], np.zeros(3, np.int64), np.array(["a", "b", "c"]))
    collator = Collator(encode_split(split, tokenizer, 48), padding_id(tokenizer), resolved.backbone.padding_side)
    classifier, _ = build_classifier(resolved)
    classifier.eval()
    with torch.no_grad():
        together = classifier(**collator(np.arange(3)))
        alone = torch.cat([classifier(**collator(np.array([row]))) for row in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_the_last_token_is_the_text_s_and_sees_all_of_it(knobs):
    resolved = resolve_trial(TrialConfig.from_mapping(knobs))
    classifier, _ = build_classifier(resolved)
    classifier.eval()
    ids = torch.tensor([[5, 6, 7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        pooled = classifier.pool(input_ids=ids, attention_mask=mask)
        hidden = classifier.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        earlier = classifier.pool(input_ids=torch.tensor([[9, 6, 7, 8, 0, 0]]), attention_mask=mask)
    torch.testing.assert_close(pooled, hidden[:, 3], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pooled, earlier)


@pytest.mark.parametrize("strategy", ["prefix:2", "lora:2"])
def test_a_trial_on_a_model_without_a_pad_token(knobs, strategy):
    record = run_trial(TrialConfig.from_mapping({**knobs, "strategy": strategy})).record
    assert record.state == "complete" and record.effective["pooling"] == "last"
    assert load_backbone(TrialConfig.from_mapping(knobs)).tokenizer.pad_token_id is None
