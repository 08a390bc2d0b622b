"""Tokenizers that do not belong to their model, or not to the language of the texts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny import save_tiny_bert

from finetune.config import TrialConfig
from finetune.errors import ConfigError
from finetune.models import load_backbone
from finetune.trial import run_trial


def folder_of(tmp_path, *, tokens=("good", "bad", "film"), config=None, tokenizer=True, padding=0):
    """A random model with a word-level tokenizer that states no limit."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    kind = {"model_type": "bert", "vocab_size": 40, **(config or {})}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**kind, **small)).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tokens]
    words.insert(padding, words.pop(0))
    if tokenizer:
        made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                sep_token="[SEP]").save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return load_backbone(TrialConfig(model_name_or_path=str(folder)))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="it has no tokenizer"):
        load(folder_of(tmp_path, tokenizer=False))


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path):
    folder = folder_of(tmp_path, tokenizer=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(ConfigError, match="nothing but special tokens"):
        load(folder)


def test_a_tokenizer_with_more_entries_than_embeddings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="207 entries, the model only 40 embeddings"):
        load(folder_of(tmp_path, tokens=[f"word{i}" for i in range(203)]))


def test_one_with_fewer_is_not(tmp_path):
    assert load(folder_of(tmp_path)).num_layers == 2


@pytest.mark.parametrize(("kind", "padding", "usable"), [
    ("roberta", 0, 33), ("roberta", 1, 32), ("roberta", 2, 31), ("bert", 0, 34)])
def test_the_longest_input_is_what_the_model_reads_for_every_padding_index(tmp_path, kind, padding, usable):
    folder = folder_of(tmp_path, padding=padding, config={"model_type": kind, "max_position_embeddings": 34,
                                                          "pad_token_id": padding})
    backbone = load(folder)
    assert backbone.max_tokens == usable
    ids = torch.full((1, usable), 5)
    backbone.pristine(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_rows_beyond_it_are_cut_with_a_note(tmp_path):
    folder = folder_of(tmp_path / "m", config={"model_type": "roberta", "max_position_embeddings": 34,
                                               "pad_token_id": 0})
    rows = [{"text": "good film " * (40 + i), "label": i % 2} for i in range(40)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = run_trial(TrialConfig.from_mapping({
        "model_name_or_path": str(folder), "dataset_name": str(tmp_path / "long.jsonl"), "max_length": 64,
        "num_train_epochs": 1, "head_size": 0})).record
    assert record.state == "complete" and any("cut to max_length = 33" in note for note in record.data["notes"])


def test_unknown_tokens_are_counted_and_warned_of(tmp_path, tiny_bert_dir):
    chinese = [{"text": f"{text}{chr(0x4E00 + i)}", "label": i % 2}
               for i, text in enumerate(["这部电影很好看", "非常无聊的电影"] * 20)]
    (tmp_path / "zh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chinese))
    knobs = {"model_name_or_path": str(tiny_bert_dir), "num_train_epochs": 1, "max_length": 32}
    data = run_trial(TrialConfig.from_mapping({**knobs, "dataset_name": str(tmp_path / "zh.jsonl")})).record.data
    assert data["unknown_tokens"]["train"] == 1.0 and data["unknown_rows"]["test"] == 1.0
    assert any("unknown to the tokenizer: 100% of the train tokens" in note for note in data["notes"])
    english = run_trial(TrialConfig.from_mapping({**knobs, "train_size": 16, "evaluation_size": 8})).record.data
    assert english["unknown_tokens"]["train"] < 0.03
    assert not any("unknown" in note for note in english["notes"])


def test_an_adapter_and_a_sentence_transformers_folder_say_what_to_give_instead(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "bert-base-uncased"}))
    with pytest.raises(ConfigError, match="a PEFT adapter.*give its base model, 'bert-base-uncased'"):
        load(adapter)
    for damaged in ("[1, 2]", "no json", "3"):
        (adapter / "adapter_config.json").write_text(damaged)
        with pytest.raises(ConfigError, match="a PEFT adapter, not a whole model"):
            load(adapter)
    whole = tmp_path / "sentence model"
    save_tiny_bert(whole / "0_Transformer", layers=2)
    with pytest.raises(ConfigError, match="give '.*sentence model/0_Transformer'"):
        load(whole)
    shutil.copytree(whole / "0_Transformer", tmp_path / "right")
    assert load(tmp_path / "right").num_layers == 2


def test_an_added_entry_without_an_embedding_is_refused_where_a_text_holds_it(tmp_path):
    from transformers import AutoTokenizer

    folder = folder_of(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(60)])
    tokenizer.save_pretrained(folder)
    assert load(folder).num_layers == 2  # as long as no text holds one
    rows = [{"text": f"a {'good <extra50>' if i % 2 else 'bad'} film {i}", "label": i % 2} for i in range(40)]
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="<extra50>.*occurs in the texts"):
        run_trial(TrialConfig(model_name_or_path=str(folder), dataset_name=str(tmp_path / "films.jsonl")))


def test_the_trainers_output_folder_names_its_newest_checkpoint(tmp_path):
    for step in (9, 10):
        folder_of(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ConfigError, match="give the newest, .*checkpoint-10"):
        load(tmp_path)


def test_positions_of_a_models_own_embedding_class_are_counted(tmp_path):
    """I-BERT keeps its positions in a QuantEmbedding, padding index 1: 34 rows, 32 usable."""
    folder = folder_of(tmp_path, padding=1, config={"model_type": "ibert", "max_position_embeddings": 34,
                                                    "pad_token_id": 1})
    assert load(folder).max_tokens == 32
