"""Texts -> token ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.encoding.encoded_cache import cache_key, cached
from finetune.data.encoding.words import Words, encode_words, words_of
from finetune.data.task_data import Split
from finetune.errors import DataError
from finetune.files import digest_of

WORTH_KEEPING = 500  # rows; fewer are tokenized in less time than a look at the disk takes


@dataclass(frozen=True)
class EncodedSplit:
    """Token ids per row, without padding.

    input_ids       int32 (tokens,) per row
    token_type_ids  int32 (tokens,) per row, or None where the model has none
    truncated_share rows that were cut to max_length, as a share
    fingerprint     sha256 (hex) over ids and token types
    unknown_share   tokens that the tokenizer does not know, as a share of those that are not special
    unknown_rows    rows that hold no token it knows, as a share
    characters_per_token of the texts, cut rows left out; nan where all are cut
    largest_id      of all input_ids; -1 without rows
    """

    input_ids: list[np.ndarray]
    token_type_ids: list[np.ndarray] | None
    labels: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    truncated_share: float
    fingerprint: str
    unknown_share: float = 0.0
    unknown_rows: float = 0.0
    characters_per_token: float = float("nan")
    largest_id: int = -1
    words: Words | None = None  # where each word has a label

    def __len__(self) -> int:
        return len(self.input_ids)


def padding_id(tokenizer: Any) -> int:
    """A token id to pad with; any id will do, since padding is masked. Decoders often have no pad token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def encode_split(split: Split, tokenizer: Any, max_length: int) -> EncodedSplit:
    """Tokenize; rows longer than `max_length` tokens are cut, pairs longest first. Kept on disk for the next trial.

    Raises DataError for a row that has no tokens.
    """
    key = cache_key(split.texts, tokenizer, max_length) if len(split) >= WORTH_KEEPING else None
    tokenize = encode_words if split.tagged else _tokenize
    key = digest_of([key, "words"]) if key and split.tagged else key
    arrays = (cached(key, lambda: tokenize(split.texts, tokenizer, max_length)) if key
              else tokenize(split.texts, tokenizer, max_length))
    lengths = arrays["lengths"]
    if (lengths == 0).any():
        raise DataError(f"row {split.ids[int(lengths.argmin())]} has no tokens")
    input_ids = _rows(arrays["input_ids"], lengths)
    types = _rows(arrays["token_type_ids"], lengths) if "token_type_ids" in arrays else None
    return EncodedSplit(
        input_ids=input_ids, token_type_ids=types, labels=split.labels, ids=split.ids, lengths=lengths,
        truncated_share=float(arrays["truncated"].mean()) if len(split) else 0.0,
        fingerprint=_fingerprint(arrays), largest_id=int(arrays["input_ids"].max(initial=-1)),
        words=words_of(arrays) if split.tagged else None, **_known(split, arrays, tokenizer),
    )


def _known(split: Split, arrays: dict[str, np.ndarray], tokenizer: Any) -> dict[str, float]:
    """How much of the texts the tokenizer knows."""
    ids, lengths, unknown = arrays["input_ids"], arrays["lengths"], tokenizer.unk_token_id
    special = np.isin(ids, [i for i in tokenizer.all_special_ids if i != unknown])
    row = np.repeat(np.arange(len(lengths)), lengths)
    real = np.bincount(row[~special], minlength=len(lengths))
    missed = np.bincount(row[~special & (ids == unknown)], minlength=len(lengths)) if unknown is not None else 0 * real
    whole = ~arrays["truncated"].astype(bool)
    characters = np.array([sum(map(len, texts)) for texts in split.texts])
    return {"unknown_share": float(missed.sum() / max(real.sum(), 1)),
            "unknown_rows": float(((missed == real) & (real > 0)).mean()) if len(lengths) else 0.0,
            "characters_per_token": float(characters[whole].sum() / max(real[whole].sum(), 1)) if whole.any()
            else float("nan")}


def _rows(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []


def token_lengths(texts: list[tuple[str, ...]], tokenizer: Any) -> np.ndarray:
    """(n,) tokens per row, uncut, with the special tokens."""
    return np.array([len(ids) for ids in _call(tokenizer, texts, truncation=False)["input_ids"]], dtype=np.int64)


def _call(tokenizer: Any, texts: list[tuple[str, ...]], **options: Any) -> dict[str, list[list[int]]]:
    if not texts:
        return {"input_ids": [], "token_type_ids": []}
    pairs = [row[1] for row in texts] if len(texts[0]) == 2 else None
    return tokenizer([row[0] for row in texts], pairs, padding=False, verbose=False, return_attention_mask=False,
                     return_token_type_ids=_has_types(tokenizer), **options)


def _has_types(tokenizer: Any) -> bool:
    return "token_type_ids" in tokenizer.model_input_names


def _tokenize(texts: list[tuple[str, ...]], tokenizer: Any, max_length: int) -> dict[str, np.ndarray]:
    """lengths (rows,), truncated (rows,), and int32 input_ids and token_type_ids (if any) of all rows end to end."""
    encoded = _call(tokenizer, texts, truncation="longest_first", max_length=max_length)
    lengths = np.array([len(row) for row in encoded["input_ids"]], dtype=np.int64)
    # Not every tokenizer says what it cut, so rows that fill max_length are tokenized once more, uncut.
    full = np.flatnonzero(lengths >= max_length)
    truncated = np.zeros(len(texts), dtype=bool)
    truncated[full] = token_lengths([texts[row] for row in full], tokenizer) > max_length
    names = ["input_ids", "token_type_ids"] if _has_types(tokenizer) else ["input_ids"]
    flat = {name: np.array([i for row in encoded[name] for i in row], dtype=np.int32) for name in names}
    return {"lengths": lengths, "truncated": truncated, **flat}


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("lengths", "input_ids", "token_type_ids", "word_position", "word_index", "word_counts"):
        if name in arrays:
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
