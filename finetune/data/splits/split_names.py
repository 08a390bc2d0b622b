"""Which of the design's three splits a source means by a name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from finetune.data.task_data import SPLITS

_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "development": "validation", "devel": "validation", "validate": "validation", "eval": "validation",
    "evaluation": "validation",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
_SHARD = re.compile(r"[-_.](\d+)[-_]of[-_](\d+)(-[0-9a-f]{8,})?$")
_SUFFIX = re.compile(r"(?<=.)(set|data|split)$")  # trainset, testdata
EXACT, IN_NAME = 0, 1


def without_shard(stem: str) -> str:
    """train-00000-of-00002 -> train"""
    return _SHARD.sub("", stem)


def missing_parts(stems: Sequence[str]) -> str:
    """What is not there of a split that comes in numbered parts: "1 of 2 parts", or an empty string."""
    parts = [(int(found[1]), int(found[2])) for stem in stems if (found := _SHARD.search(stem))]
    expected = max((total for _, total in parts), default=0)
    missing = expected - len({number for number, _ in parts})
    return f"{missing} of {expected} parts" if missing > 0 else ""


def meaning_of(name: str) -> tuple[str, int] | None:
    """("train" | "validation" | "test", EXACT or IN_NAME), or None for a name that means no split."""
    name = without_shard(name.lower())
    if name in _WORDS:
        return _WORDS[name], EXACT
    for word in re.split(r"[^a-z]+", name):
        word = _SUFFIX.sub("", word)
        if word in _WORDS:
            return _WORDS[word], IN_NAME
    return None


def choose_splits(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({split: name}, notes on names that are not used). The only name there is means train, whatever it says."""
    if len(names) == 1:
        meaning = meaning_of(names[0])
        notes = [] if meaning and meaning[0] == "train" else [f"the only split, {names[0]!r}, is taken as train"]
        return {"train": names[0]}, notes
    chosen: dict[str, str] = {}
    for split in SPLITS:
        fits = [(meaning[1], order, name) for order, name in enumerate(names)
                if (meaning := meaning_of(name)) and meaning[0] == split]
        if fits:
            chosen[split] = min(fits)[2]
    unused = [name for name in names if name not in chosen.values()]
    return chosen, [f"split {name!r} is not used" for name in unused]
