"""Tags and entities for new texts from a trained token classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.data.schema.tags import OUTSIDE, strict_entities
from finetune.data.schema.words import Sentence, join_words, split_words
from finetune.errors import DataError
from finetune.saving.predict import SIDE_BY_SIDE, Cells, Say, read_cells

if TYPE_CHECKING:
    from finetune.saving.manifest import KeptModel

_TEXTS = ("tokens", "words", "text", "sentence")  # columns to read where the one of the training data is not there


def read_sentences(file: Path, columns: list[str] | None, manifest: KeptModel, say: Say) -> list[Sentence]:
    """The words of every row: a list of words (or CoNLL's lines) as it is, a text split by `split_words`.

    Raises DataError.
    """
    return sentences_of(read_cells(file, columns, manifest.text_columns, say, also=_TEXTS, tags=manifest.label_names))


def sentences_of(cells: Cells) -> list[Sentence]:
    """Raises DataError, naming the line, for a row that has no words."""
    from finetune.data.formats.decoding import clean
    from finetune.data.schema.labels import as_list

    if not cells.rows:
        raise DataError(f"{cells.source}: there are no rows")
    if len(cells.names) != 1:
        raise DataError(f"{cells.source}: a token classifier reads one text per row; "
                        f"{len(cells.names)} columns are given")
    found = []
    for line, (cell,) in zip(cells.lines, cells.rows, strict=True):
        words = as_list(cell)
        if words is None:
            sentence = split_words(clean(str(cell))) if cell is not None else None
        else:
            whole = all(isinstance(word, str) and word.strip() for word in words)
            sentence = join_words(tuple(clean(word) for word in words)) if whole else None
        if not sentence or not sentence.words:
            raise DataError(f"{cells.source} line {line}: there are no words, or one of them is empty; {SIDE_BY_SIDE}")
        found.append(sentence)
    return found


def described_tags(logits: np.ndarray, sentences: Sequence[Sentence], manifest: KeptModel) -> Iterator[dict[str, Any]]:
    """One object per row: the text, its entities where tags stand for some, its words with their tags and scores.

    logits (words of all rows, tags), nan for a word that max_length cut: it has no tag. A word's score is its tag's
    probability, an entity's the mean of its words'. Entities are those that seqeval's strict mode counts.
    """
    from scipy.special import softmax

    ends = np.cumsum([len(sentence.words) for sentence in sentences])
    for row, (sentence, of_words) in enumerate(zip(sentences, np.split(logits, ends[:-1]), strict=True)):
        cut = np.isnan(of_words).all(axis=1)
        best = np.where(cut[:, None], 0, of_words).argmax(axis=1)
        tags = [None if lost else manifest.label_names[tag] for tag, lost in zip(best, cut, strict=True)]
        scores = softmax(of_words.astype(np.float64), axis=1)[np.arange(len(best)), best]
        answer = {"row": row, "text": sentence.text}
        if manifest.scheme:
            answer["entities"] = _entities(sentence, tags, scores, manifest.scheme)
        yield answer | {"words": list(sentence.words), "tags": tags,
                        "scores": [None if lost else _rounded(s) for s, lost in zip(scores, cut, strict=True)]}


def note_on_cut(logits: np.ndarray, max_length: int) -> str | None:
    """A sentence on words that have no tag."""
    cut = int(np.isnan(logits).all(axis=1).sum())
    return f"{cut} of {len(logits)} words lie beyond the model's {max_length} tokens and have no tag (null); split " \
           "such rows" if cut else None


def _entities(sentence: Sentence, tags: list[str | None], scores: np.ndarray, scheme: str) -> list[dict[str, Any]]:
    found = strict_entities([tag or OUTSIDE for tag in tags], scheme)
    out = []
    for kind, first, after in sorted(found, key=lambda entity: entity[1]):
        start, end = sentence.places[first][0], sentence.places[after - 1][1]
        out.append({"text": sentence.text[start:end], "type": kind, "start": start, "end": end,
                    "score": _rounded(scores[first:after].mean())})
    return out


def _rounded(value: float) -> float:
    return round(float(value), 6)
