"""What a record says about the data of its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.encoding.encoding import EncodedSplit
from finetune.data.task_data import TaskData

UNKNOWN_SHARE = 0.03  # of the tokens: above it the tokenizer is not one for these texts
FEW_CHARACTERS = 0.8  # per token; a byte-level tokenizer needs several tokens for a letter that it hardly knows
MOST_REJECTED = 20  # rows listed one by one; `finetune data NAME --json` lists all


def recorded(data: TaskData, encoded: Mapping[str, EncodedSplit], max_length: int) -> dict[str, Any]:
    """A record's `data`. `truncated` is the share of each split's rows that were cut to `max_length` tokens."""
    truncated = {name: split.truncated_share for name, split in encoded.items()}
    return {
        "name": data.name, "fingerprint": data.fingerprint, "label_names": data.label_names,
        "rows": {name: len(split) for name, split in data.splits.items()},
        "rejected": len(data.rejected), "rejected_rows": [str(row) for row in data.rejected[:MOST_REJECTED]],
        "truncated": truncated,
        "unknown_tokens": {name: split.unknown_share for name, split in encoded.items()},
        "unknown_rows": {name: split.unknown_rows for name, split in encoded.items()},
        "notes": [*data.notes, *truncation_note(truncated, max_length), *cut_words(encoded), *unknown_notes(encoded)],
    }


def truncation_note(truncated: Mapping[str, float], max_length: int) -> list[str]:
    """One sentence when rows were cut."""
    cut = [f"{share:.1%} of the {name} rows" for name, share in truncated.items() if share > 0]
    return [f"cut to max_length = {max_length} tokens: {', '.join(cut)}"] if cut else []


def cut_words(encoded: Mapping[str, EncodedSplit]) -> list[str]:
    """One sentence when words with a label lie beyond max_length."""
    cut = {name: int(split.words.counts.sum() - split.words.kept.sum())
           for name, split in encoded.items() if split.words is not None}
    told = [f"{words} of {name}" for name, words in cut.items() if words]
    return [f"words that were cut: {', '.join(told)}; they have no tag and count as wrong"] if told else []


def unknown_notes(encoded: Mapping[str, EncodedSplit]) -> list[str]:
    """Sentences where the tokenizer does not know the texts' language."""
    many = [f"{split.unknown_share:.0%} of the {name} tokens" + (
        f" (and every token of {split.unknown_rows:.0%} of the rows)" if split.unknown_rows >= 0.005 else "")
        for name, split in encoded.items() if split.unknown_share > UNKNOWN_SHARE]
    if many:
        return [f"unknown to the tokenizer: {', '.join(many)}; it is not made for these texts: choose a model of their "
                "language"]
    few = [f"{split.characters_per_token:.2f} in {name}" for name, split in encoded.items()
           if split.characters_per_token < FEW_CHARACTERS]
    if few:
        return [f"the tokenizer needs more than a token a letter (characters per token: {', '.join(few)}): "
                "it hardly knows this language"]
    return []
