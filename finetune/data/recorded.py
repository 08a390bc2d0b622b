"""What a record says about the data of its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.encoding.encoding import EncodedSplit
from finetune.data.task_data import TaskData

MOST_REJECTED = 20  # rows listed one by one; `finetune data NAME --json` lists all


def recorded(data: TaskData, encoded: Mapping[str, EncodedSplit], max_length: int) -> dict[str, Any]:
    """A record's `data`. `truncated` is the share of each split's rows that were cut to `max_length` tokens."""
    truncated = {name: split.truncated_share for name, split in encoded.items()}
    return {
        "name": data.name, "fingerprint": data.fingerprint, "label_names": data.label_names,
        "rows": {name: len(split) for name, split in data.splits.items()},
        "rejected": len(data.rejected), "rejected_rows": [str(row) for row in data.rejected[:MOST_REJECTED]],
        "truncated": truncated, "notes": [*data.notes, *truncation_note(truncated, max_length)],
    }


def truncation_note(truncated: Mapping[str, float], max_length: int) -> list[str]:
    """One sentence when rows were cut."""
    cut = [f"{share:.1%} of the {name} rows" for name, share in truncated.items() if share > 0]
    return [f"cut to max_length = {max_length} tokens: {', '.join(cut)}"] if cut else []
