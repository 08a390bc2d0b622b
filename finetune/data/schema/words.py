"""A plain text -> its words and where they stand: what a tag can stand on where nobody has split the text."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_IN_WORDS = ("L", "M", "N", "Pc")  # letters, their marks, digits, and "_"
_JOINERS = "\u200c\u200d"  # invisible, inside words of Persian and of Indian scripts
_BY_THEMSELVES = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003ffff"))


@dataclass(frozen=True)
class Sentence:
    """Words, and where each stands in `text`: characters from `start` to before `end`."""

    text: str
    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]


def split_words(text: str) -> Sentence:
    """Runs of letters and digits are words, every other character but white space is one by itself, as is a Chinese or
    Japanese character: the finest split that tokenizers make before their subwords."""
    places: list[tuple[int, int]] = []
    open_word = False
    for at, character in enumerate(text):
        category = unicodedata.category(character)
        if open_word and (character in _JOINERS or category.startswith(_IN_WORDS)) and not _stands_alone(character):
            places[-1] = (places[-1][0], at + 1)
            continue
        open_word = category.startswith(_IN_WORDS) and not _stands_alone(character)
        if category[0] not in "ZC":
            places.append((at, at + 1))
    return Sentence(text, tuple(text[start:end] for start, end in places), tuple(places))


def join_words(words: tuple[str, ...]) -> Sentence:
    """The words with one space between them."""
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return Sentence(" ".join(words), words, tuple(places))


def _stands_alone(character: str) -> bool:
    return any(first <= character <= last for first, last in _BY_THEMSELVES)
