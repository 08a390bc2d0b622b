"""Words -> subwords: the label stands on the first subword of each word (Devlin et al. 2019, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.errors import ConfigError, Problem

IGNORED = -100  # cross_entropy's ignore_index


@dataclass(frozen=True)
class Words:
    """The words of every row that the model sees.

    position  (kept,) per row: the token, counted from the row's first, that is each word's first subword
    index     (kept,) per row: which word of the sentence that is
    counts    (rows,) words of the sentence, those among them that truncation cut
    """

    position: list[np.ndarray]
    index: list[np.ndarray]
    counts: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(rows,) words that the model sees."""
        return np.array([len(row) for row in self.index], dtype=np.int64)

    @property
    def offsets(self) -> np.ndarray:
        """Where each sentence begins in an array of all words; one more at the end."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def flat(self, rows: np.ndarray, logits: np.ndarray, out: np.ndarray) -> None:
        """Put logits (rows, words, outputs) of a batch where they belong in `out` (all words, outputs)."""
        offsets = self.offsets
        for place, row in enumerate(rows):
            out[offsets[row] + self.index[row]] = logits[place, :len(self.index[row])]

    def labels(self, rows: np.ndarray, labels: np.ndarray, width: int) -> np.ndarray:
        """(rows, width) labels of the words that are seen, IGNORED beyond."""
        out = np.full((len(rows), width), IGNORED, np.int64)
        for place, row in enumerate(rows):
            out[place, :len(self.index[row])] = labels[row, self.index[row]]
        return out


def encode_words(texts: list[tuple[str, ...]], tokenizer: Any, max_length: int) -> dict[str, np.ndarray]:
    """Flat arrays as `encode_split` keeps them, with word_position, word_index and word_counts.

    Raises ConfigError for a tokenizer that cannot say which word a token is of.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError([Problem("model_name_or_path", type(tokenizer).__name__, "token classification needs a fast "
                                   "tokenizer, since only that says of which word a token is (word_ids)")])
    types = "token_type_ids" in tokenizer.model_input_names
    tokenizer = with_prefix_space(tokenizer)
    encoded = tokenizer([list(words) for words in texts], is_split_into_words=True, truncation=True, padding=False,
                        max_length=max_length, return_attention_mask=False, return_token_type_ids=types, verbose=False)
    positions, indices = [], []
    for row in range(len(texts)):
        of_word: dict[int, int] = {}
        for place, word in enumerate(encoded.word_ids(row)):
            if word is not None:
                of_word.setdefault(word, place)
        indices.append(np.array(list(of_word), np.int32))
        positions.append(np.array(list(of_word.values()), np.int32))
    names = ["input_ids", *(["token_type_ids"] if types else [])]
    flat = {name: np.array([i for row in encoded[name] for i in row], np.int32) for name in names}
    counts = np.array([len(words) for words in texts], np.int64)
    kept = np.array([len(row) for row in indices], np.int64)
    return {"lengths": np.array([len(row) for row in encoded["input_ids"]], np.int64), "truncated": kept < counts,
            "word_position": np.concatenate(positions), "word_index": np.concatenate(indices), "word_kept": kept,
            "word_counts": counts, **flat}


def words_unseen(words: Words, tokenizer: Any, max_length: int) -> int:
    """How many words the model would not see at `max_length` tokens: cut off, or without a token of their own. `words`
    of an encoding that cut none."""
    of_word = with_prefix_space(tokenizer)(["a"], is_split_into_words=True).word_ids()
    last = max(place for place, word in enumerate(of_word) if word is not None)
    room = max_length - (len(of_word) - 1 - last)  # what is added behind the text stays
    return int(words.counts.sum() - sum((position < room).sum() for position in words.position))


def with_prefix_space(tokenizer: Any) -> Any:
    """The tokenizer as it reads single words: RoBERTa's kin put a space before every one.

    Without it the first word of a sentence would be another token than the same word later on.
    """
    import copy

    from tokenizers import pre_tokenizers

    if not hasattr(tokenizer, "add_prefix_space") or tokenizer.add_prefix_space:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    pre = tokenizer.backend_tokenizer.pre_tokenizer
    if isinstance(pre, pre_tokenizers.ByteLevel):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_prefix_space = True
    tokenizer.init_kwargs["add_prefix_space"] = True  # what save_pretrained writes
    return tokenizer


def words_of(arrays: dict[str, np.ndarray]) -> Words:
    ends = np.cumsum(arrays["word_kept"])[:-1]
    return Words(np.split(arrays["word_position"], ends), np.split(arrays["word_index"], ends), arrays["word_counts"])
