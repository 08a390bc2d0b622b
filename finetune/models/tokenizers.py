"""Whether a tokenizer belongs to its model: checks that need both. A wrong one trains on noise without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.errors import ConfigError, EnvironmentProblem, Problem, shown
from finetune.models.sources import has_tokenizer

UNSTATED_LENGTH = 10**9  # a tokenizer that states no limit says 1e30


def read_tokenizer(folder: Path, name: str, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a model's folder. Raises ConfigError where there is none, EnvironmentProblem for a broken one.

    transformers 5 makes one up for a folder without tokenizer files: every word is then unknown.
    """
    import transformers

    if not has_tokenizer(folder):
        raise ConfigError([Problem("model_name_or_path", name, "it has no tokenizer (tokenizer.json, vocab.txt, a "
                                   "sentencepiece model); save the model's own one there: "
                                   "AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)")])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True,
                                                               trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise EnvironmentProblem(f"{name} has no usable tokenizer in {folder}: {reason}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError([Problem("model_name_or_path", name, "its tokenizer knows nothing but special tokens, so "
                                   "that every word would be unknown; save the model's own tokenizer in its folder")])
    return tokenizer


def require_fit(tokenizer: Any, embeddings: int | None, name: str) -> None:
    """Raises ConfigError when the tokenizer gives ids that the model has no embedding for (None: it needs none).

    Entries that were added to a tokenizer may lie beyond without doing harm, as long as no text holds one:
    `require_known` asks that of the texts.
    """
    if embeddings is None:
        return
    entries = max([tokenizer.vocab_size - 1, *tokenizer.all_special_ids]) + 1
    if entries > embeddings:
        raise ConfigError([Problem("model_name_or_path", name, f"its tokenizer has {entries:,} entries, the model only "
                                   f"{embeddings:,} embeddings; save the model's own tokenizer in its folder")])


def require_known(largest: int, tokenizer: Any, embeddings: int | None, name: str) -> None:
    """Raises ConfigError when `largest`, an id that occurs in the texts, has no embedding."""
    if embeddings is not None and largest >= embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ConfigError([Problem("model_name_or_path", name, f"its tokenizer has an added entry, {shown(token)} (id "
                                   f"{largest:,}), that occurs in the texts and for which the model, with "
                                   f"{embeddings:,} embeddings, has none; resize_token_embeddings and train it, or "
                                   "remove the entry")])


def embedding_count(model: nn.Module) -> int | None:
    """Rows of the input embeddings; None where ids are hashed or made from bytes."""
    return getattr(_input_embeddings(model), "num_embeddings", None)


def _input_embeddings(model: nn.Module) -> Any:
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def max_tokens(tokenizer: Any, model: nn.Module) -> int | None:
    """The longest input that the tokenizer states and that a table of learned positions has rows for.

    RoBERTa's first position is the one after the padding's. Where the padding index is 0 a table may or may not be of
    that kind: a forward pass says.
    """
    stated = [tokenizer.model_max_length] if tokenizer.model_max_length < UNSTATED_LENGTH else []
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    tables = [module for module in model.modules() if 0 < positions <= _embedding_rows(module) <= positions + 2]
    rows = [min(positions, _embedding_rows(table) - (_padding(table) or -1) - 1) for table in tables]
    limit = min(stated + rows, default=None)
    if limit is None or all(_padding(table) != 0 for table in tables):
        return limit
    return next((length for length in (limit, limit - 1, limit - 2) if _reads(model, length)), limit)


def _embedding_rows(module: nn.Module) -> int:
    """Rows of a table of vectors, PyTorch's own or a model's (I-BERT's QuantEmbedding); 0 for any other module."""
    weight = getattr(module, "weight", None)
    table = isinstance(module, nn.Embedding) or type(module).__name__.endswith("Embedding")
    return len(weight) if table and isinstance(weight, torch.Tensor) and weight.ndim == 2 else 0


def _padding(table: nn.Module) -> int | None:
    return getattr(table, "padding_idx", None)


@torch.no_grad()
def _reads(model: nn.Module, length: int) -> bool:
    """Whether a row of so many tokens, none of them padding, goes through."""
    padding = model.config.pad_token_id
    ids = torch.full((1, length), 0 if padding not in (0, None) else 1)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True
