"""Texts -> token ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.task_data import Split
from finetune.errors import DataError


@dataclass(frozen=True)
class EncodedSplit:
    """Token ids per row, without padding.

    input_ids       int32 (tokens,) per row
    token_type_ids  int32 (tokens,) per row, or None where the model has none
    truncated_share rows that were cut to max_length, as a share
    fingerprint     sha256 (hex) over ids and token types
    """

    input_ids: list[np.ndarray]
    token_type_ids: list[np.ndarray] | None
    labels: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    truncated_share: float
    fingerprint: str

    def __len__(self) -> int:
        return len(self.input_ids)


def padding_id(tokenizer: Any) -> int:
    """A token id to pad with; any id will do, since padding is masked. Decoders often have no pad token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def encode_split(split: Split, tokenizer: Any, max_length: int) -> EncodedSplit:
    """Tokenize; rows longer than `max_length` tokens are cut, pairs longest first."""
    input_ids, types, truncated = _tokenize(split.texts, tokenizer, max_length)
    lengths = np.array([len(row) for row in input_ids], dtype=np.int64)
    if (lengths == 0).any():
        raise DataError(f"row {split.ids[int(lengths.argmin())]} has no tokens")
    return EncodedSplit(
        input_ids=input_ids, token_type_ids=types, labels=split.labels, ids=split.ids, lengths=lengths,
        truncated_share=truncated / max(len(split), 1), fingerprint=_fingerprint(input_ids, types),
    )


def _tokenize(texts: list[tuple[str, ...]], tokenizer: Any, max_length: int):
    has_types = "token_type_ids" in tokenizer.model_input_names

    def call(rows: list[tuple[str, ...]], **options: Any) -> dict[str, list[list[int]]]:
        pairs = [row[1] for row in rows] if len(rows[0]) == 2 else None
        return tokenizer([row[0] for row in rows], pairs, padding=False, verbose=False,
                         return_attention_mask=False, return_token_type_ids=has_types, **options)

    if not texts:
        return [], [] if has_types else None, 0
    encoded = call(texts, truncation="longest_first", max_length=max_length)
    full = [row for row, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_length]
    # Not every tokenizer says what it cut, so rows that fill max_length are tokenized once more, uncut.
    uncut = call([texts[row] for row in full], truncation=False)["input_ids"] if full else []
    truncated = sum(len(ids) > max_length for ids in uncut)
    types = [np.array(row, dtype=np.int32) for row in encoded["token_type_ids"]] if has_types else None
    return [np.array(row, dtype=np.int32) for row in encoded["input_ids"]], types, truncated


def _fingerprint(input_ids: list[np.ndarray], types: list[np.ndarray] | None) -> str:
    digest = hashlib.sha256()
    for rows in (input_ids, types or []):
        digest.update(np.array([len(row) for row in rows], dtype=np.int64).tobytes())
        for row in rows:
            digest.update(row.tobytes())
    return digest.hexdigest()
