"""Batches: length-grouped for training, length-sorted for evaluation; padded to their own longest row, or a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.data.encoding.encoding import EncodedSplit
from finetune.randomness import stream_seed

POOL_BATCHES = 50  # rows are grouped by length within pools of so many batches: a shuffle that stays a shuffle


def training_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of each batch of one epoch: shuffled, grouped by length inside large pools, batches shuffled.

    Depends on (lengths, batch_size, seed, epoch) alone, so that it is the same at every freeze depth. The one
    short batch, where there is one, comes last: every accumulation window before it is full.
    """
    rng = np.random.default_rng(stream_seed(seed, "order", epoch))
    rows = rng.permutation(len(lengths))
    pool = batch_size * POOL_BATCHES
    grouped = np.concatenate([_by_length(rows[start:start + pool], lengths) for start in range(0, len(rows), pool)])
    full = len(grouped) // batch_size * batch_size
    batches = [grouped[start:start + batch_size] for start in range(0, full, batch_size)]
    order = rng.permutation(len(batches))
    tail = [grouped[full:]] if full < len(grouped) else []
    return [batches[index] for index in order] + tail


def _by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-lengths[rows], kind="stable")]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows sorted by length, longest first (what does not fit into memory fails at once)."""
    rows = np.argsort(-lengths, kind="stable")
    return [rows[start:start + batch_size] for start in range(0, len(rows), batch_size)]


def padding_share(lengths: np.ndarray, batches: list[np.ndarray],
                  width: Callable[[np.ndarray], int] | None = None) -> float:
    """Share of the tokens in the batches that are padding; `width` of a batch, by default its longest row's."""
    padded = sum(len(rows) * (width(rows) if width else int(lengths[rows].max())) for rows in batches)
    return 1 - float(lengths.sum()) / padded if padded else 0.0


@dataclass(frozen=True)
class Collator:
    """Rows of an encoded split -> the tensors of one batch. `side` is where the tokenizer pads.

    Batches are as long as the next multiple of `bucket` tokens, but not longer than `limit`, the model's own.
    """

    encoded: EncodedSplit
    pad_token_id: int
    side: str = "right"
    bucket: int = 1
    limit: int | None = None

    def width(self, rows: np.ndarray) -> int:
        """How many tokens a batch of these rows has."""
        longest = int(self.encoded.lengths[rows].max())
        padded = -(-longest // self.bucket) * self.bucket
        return padded if self.limit is None else max(longest, min(padded, self.limit))

    def __call__(self, rows: np.ndarray) -> dict[str, Tensor]:
        """input_ids, attention_mask (and token_type_ids) (batch, tokens) int64; labels (batch, …)."""
        width = self.width(rows)
        batch = {
            "input_ids": self._padded(self.encoded.input_ids, rows, width, self.pad_token_id),
            "attention_mask": self._padded([np.ones(n, np.int64) for n in self.encoded.lengths[rows]],
                                           np.arange(len(rows)), width, 0),
        }
        if self.encoded.token_type_ids is not None:
            batch["token_type_ids"] = self._padded(self.encoded.token_type_ids, rows, width, 0)
        if self.encoded.words is not None:
            batch["words"] = self._places(rows, width)
        return batch

    def word_width(self, rows: np.ndarray) -> int:
        """How many words a batch of these rows has; on a GPU as many as tokens, of which few counts occur."""
        return self.width(rows) if self.bucket > 1 else max(1, *(len(self.encoded.words.index[row]) for row in rows))

    def _places(self, rows: np.ndarray, width: int) -> Tensor:
        """(rows, words) where each word's first subword stands in the padded batch; -1 beyond the last."""
        out = np.full((len(rows), self.word_width(rows)), -1, np.int64)
        for place, row in enumerate(rows):
            position = self.encoded.words.position[row]
            out[place, :len(position)] = position + (
                width - int(self.encoded.lengths[row]) if self.side == "left" else 0)
        return torch.from_numpy(out)

    def count(self, rows: np.ndarray) -> int:
        """What the loss is a mean over: rows, or the words that the model sees of them."""
        return len(rows) if self.encoded.words is None else int(self.encoded.words.kept[rows].sum())

    def labels(self, rows: np.ndarray) -> Tensor:
        """(batch, …); (batch, words) with cross-entropy's ignore_index beyond a sentence's last word."""
        if self.encoded.words is not None:
            return torch.from_numpy(self.encoded.words.labels(rows, self.encoded.labels, self.word_width(rows)))
        return torch.from_numpy(np.ascontiguousarray(self.encoded.labels[rows]))

    def joined(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Logits of batches of rows -> (rows, outputs); (words of all rows, tags), nan where truncation cut a word."""
        words, outputs = self.encoded.words, parts[0][1].shape[-1]
        out = np.full((len(self.encoded) if words is None else int(words.counts.sum()), outputs), np.nan, np.float32)
        for rows, logits in parts:
            if words is None:
                out[rows] = logits
            else:
                words.flat(rows, logits, out)
        return out

    def _padded(self, arrays: list[np.ndarray], rows: np.ndarray, width: int, fill: int) -> Tensor:
        out = np.full((len(rows), width), fill, np.int64)
        for position, row in enumerate(rows):
            values = arrays[row]
            if self.side == "left":
                out[position, width - len(values):] = values
            else:
                out[position, :len(values)] = values
        return torch.from_numpy(out)


def shares(rows: np.ndarray, parts: int) -> Iterator[np.ndarray]:
    """Split the rows of one global batch among `parts` processes, the first ones taking the odd rows."""
    yield from np.array_split(rows, parts)


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
