"""What can be asked about a text without an annotator: its length, a word, the order of two words; and its label.

Every question is asked so that guessing gives 1 / classes: rows come in groups with one row of each class, and where a
text's length could give the answer away, the rows of a group have the same length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

PROPERTIES = ("length", "word", "order", "label")


class Question(NamedTuple):
    """Examples of one property; classes are 0, 1, …

    texts   indices (n,) into the texts that were asked about
    labels  classes (n,)
    strata  integers (n,): a group takes all its examples from one stratum
    """

    texts: np.ndarray
    labels: np.ndarray
    strata: np.ndarray

    def groups(self, rng: np.random.Generator, most: int | None = None) -> np.ndarray:
        """Examples (groups, classes), one of each class and all of one stratum, in random order; `most` of them.

        No example occurs twice. (0, classes) where no stratum holds every class.
        """
        classes = np.unique(self.labels)
        order = rng.permutation(len(self.labels))
        found = [_one_of_each(order[self.strata[order] == stratum], self.labels, classes)
                 for stratum in np.unique(self.strata)]
        together = np.concatenate([np.empty((0, len(classes)), np.int64), *found])
        return together[rng.permutation(len(together))][:most]


def _one_of_each(examples: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    by_class = [examples[labels[examples] == label] for label in classes]
    return np.stack([rows[:min(map(len, by_class))] for rows in by_class], axis=1)


def words_of(text: Sequence[str]) -> list[str]:
    """The words of a text, or of a pair, in lower case."""
    return re.findall(r"\w+", " ".join(text).lower())


def middle_length(texts: Sequence[Sequence[str]]) -> float:
    """The median of the words per text."""
    return float(np.median([len(words_of(text)) for text in texts]))


def by_length(texts: Sequence[Sequence[str]], middle: float) -> Question:
    """Has the text more than `middle` words?"""
    longer = np.array([len(words_of(text)) > middle for text in texts], dtype=np.int64)
    return Question(np.arange(len(texts)), longer, np.zeros(len(texts), np.int64))


def by_word(texts: Sequence[Sequence[str]], word: str) -> Question:
    """Does the text hold the word? Within a group all texts have the same number of words."""
    found = [words_of(text) for text in texts]
    return Question(np.arange(len(texts)), np.array([word.lower() in words for words in found], dtype=np.int64),
                    np.array([len(words) for words in found], dtype=np.int64))


def by_label(labels: np.ndarray) -> Question:
    """Which class is the text of?"""
    return Question(np.arange(len(labels)), np.asarray(labels, np.int64), np.zeros(len(labels), np.int64))


def by_order(originals: np.ndarray, swapped: np.ndarray) -> Question:
    """Have two neighbours changed places? `originals` and `swapped` (n,) index a text as it was and as it became."""
    pairs = np.arange(len(originals))
    return Question(np.concatenate([originals, swapped]), np.repeat([0, 1], len(pairs)), np.tile(pairs, 2))


def swap_neighbours(texts: Sequence[tuple[str, ...]], rng: np.random.Generator
                    ) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(index, the text with two neighbouring words changed round), for every text that has two that may be.

    Both are lower-case words without a mark or digit, and differ, so that no capital or comma gives the change away.
    In a pair it is the first text that changes.
    """
    for index, text in enumerate(texts):
        words = text[0].split()
        places = [place for place in range(len(words) - 1) if words[place] != words[place + 1]
                  and all(word.isalpha() and word.islower() for word in words[place:place + 2])]
        if places:
            place = int(rng.choice(places))
            words[place:place + 2] = words[place + 1], words[place]
            yield index, (" ".join(words), *text[1:])
