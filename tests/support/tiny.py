"""Small models that tests build offline in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch

DATA = Path(__file__).parents[2] / "finetune" / "data" / "rotten_tomatoes_mini"


def bundled_texts(rows: int = 500) -> list[str]:
    """The first training texts of the bundled set."""
    with open(DATA / "train.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(rows), strict=False)]


def wordpiece_tokenizer(vocabulary: int = 400):
    """A BERT tokenizer whose WordPiece vocabulary is trained on the bundled text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        bundled_texts(), trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


def save_tiny_bert(folder: Path, *, layers: int = 4, width: int = 32, pooler: bool = True, seed: int = 0) -> Path:
    """A folder as save_pretrained writes it: a random BERT and its tokenizer."""
    from transformers import BertConfig, BertModel

    tokenizer = wordpiece_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=64, initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=pooler)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_tiny_roberta(folder: Path) -> Path:
    """A random RoBERTa of two layers. Its tokenizer reads bytes, a word's first with the space before it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    folder.mkdir()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(bundled_texts(), vocab_size=500, show_progress=False,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(folder, model_max_length=64)
    RobertaModel(RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=70, initializer_range=0.1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
