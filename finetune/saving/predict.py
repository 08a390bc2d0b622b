"""Labels and probabilities for new texts from a trained model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.saving.read import LoadedModel

THRESHOLD = 0.5  # above it a label of several holds
SAY_EVERY_SECONDS = 5.0
STDIN = "-"
Say = Callable[[str], None]  # a sentence for whoever watches
SIDE_BY_SIDE = "every row must be usable, so that rows and predictions stay side by side: mend the row, or take it out"


def _silent(sentence: str) -> None:
    pass


def read_texts(file: Path, columns: list[str] | None, trained_on: list[str], say: Say = _silent
               ) -> list[tuple[str, ...]]:
    """The texts of every row, (text,) or (text, pair). Raises DataError when a column or a text is missing."""
    read = read_cells(file, columns, trained_on, say)
    return checked_texts(read.rows, read.lines, read.names, read.source, trained_on)


class Cells(NamedTuple):
    """Rows as a file holds them, the line of each, the columns' names, and how messages name the file."""

    rows: Sequence[tuple[Any, ...]]
    lines: Sequence[int]
    names: list[str]
    source: str


def read_cells(file: Path, columns: list[str] | None, trained_on: list[str], say: Say,
               also: Sequence[str] = (), tags: Collection[str] = ()) -> Cells:
    """The cells of the columns with the texts; `also`: names to try where the model's own is not there; `tags`: those
    of a token classifier, by which CoNLL's columns are known in a .txt and on stdin.

    Raises DataError for a missing column and for rows that cannot stand beside their predictions.
    """
    from finetune.data.formats.readers import read_file

    if str(file) == STDIN:
        return _lines(sys.stdin.buffer.read(), "stdin", say, tags)
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    if file.suffix.lower() == ".txt":
        return _lines(file.read_bytes(), file.name, say, tags)
    tables = read_file(file, file.name)
    if len(tables) != 1:
        raise DataError(f"{file.name}: it holds several splits ({', '.join(tables)}); give a file with one table")
    table = next(iter(tables.values()))
    if table.rejected or table.spilled:
        wrong = str(table.rejected[0]) if table.rejected else (
            f"{file.name} line {table.lines[min(table.spilled)]}: it has more values than columns")
        raise DataError(f"{wrong}; {SIDE_BY_SIDE}")
    names = columns or ([table.columns[0]] if len(table.columns) == 1 and len(trained_on) == 1 else trained_on)
    if not columns and names[0] not in table.columns:
        names = next(([name] for name in also if name in table.columns), names)
    for name in names:
        if name not in table.columns:
            raise DataError(f"{file.name}: no column {name!r}; there are {', '.join(table.columns)}: give "
                            "--text_column")
    for note in table.notes:
        say(note)
    rows = list(zip(*(table.column(name) for name in names), strict=True))
    return Cells(rows, table.lines, list(names), file.name)


def _lines(payload: bytes, source: str, say: Say, tags: Collection[str]) -> Cells:
    """A text a line; the words of a sentence where a line is a token with one of `tags` in its last column."""
    from finetune.data.formats.conll import TOKENS, has_tags, read_conll
    from finetune.data.formats.decoding import decode_text, note_on_encoding

    text, encoding = decode_text(payload, source)
    if note := note_on_encoding(encoding, source):
        say(note)
    if tags and has_tags(text, tags):
        table = read_conll(text, source, ".conll")
        return Cells([(words,) for words in table.column(TOKENS)], table.lines, [TOKENS], source)
    rows = [(line.removesuffix("\r"),) for line in text.removesuffix("\n").split("\n")] if text else []
    return Cells(rows, range(1, len(rows) + 1), ["text"], source)


def checked_texts(rows: Sequence[tuple[Any, ...]], lines: Sequence[int], names: list[str], source: str,
                  trained_on: list[str]) -> list[tuple[str, ...]]:
    """The texts as training reads them. `lines`: where each row stands, from 1."""
    from finetune.data.formats.decoding import clean
    from finetune.data.schema.rows import text_problem

    if not rows:
        raise DataError(f"{source}: there are no rows")
    if len(names) != len(trained_on):
        raise DataError(f"{source}: the model reads {len(trained_on)} texts per row "
                        f"({', '.join(trained_on)}), the file gives {len(names)}")
    for line, row in zip(lines, rows, strict=True):
        reason = text_problem(row, range(len(row)), names)
        if reason:
            raise DataError(f"{source} line {line}: {reason}; {SIDE_BY_SIDE}")
    return [tuple(clean(value) for value in row) for row in rows]


def predict(loaded: LoadedModel, texts: list[tuple[str, ...]], batch_size: int, say: Say = _silent) -> np.ndarray:
    """Logits (rows, outputs), in the order of `texts`; progress and the time left through `say`.

    Of a token classifier, whose texts are the words of each row: (words of all rows, outputs), nan for a word that
    max_length cuts.
    """
    import torch

    from finetune.data import encode_split, padding_id
    from finetune.data.encoding.batches import Collator, evaluation_batches, to_device
    from finetune.data.task_data import TAGGED, Split

    tokenizer, tagged = loaded.backbone.tokenizer, loaded.manifest.task == TAGGED
    rows = Split(texts, np.zeros((len(texts), 1) if tagged else len(texts), np.int64),
                 np.array([f"row {i}" for i in range(len(texts))]))
    split = Collator(encode_split(rows, tokenizer, loaded.manifest.max_length), padding_id(tokenizer),
                     loaded.backbone.padding_side)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = loaded.classifier.to(device)
    with torch.inference_mode():
        return split.joined([
            (batch, classifier(**to_device(split(batch), device)).float().cpu().numpy())
            for batch in _with_progress(evaluation_batches(split.encoded.lengths, batch_size), len(texts), say)])


def _with_progress(batches: list[np.ndarray], rows: int, say: Say) -> Iterator[np.ndarray]:
    began = said = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        now = time.monotonic()
        if now - said > SAY_EVERY_SECONDS:
            said = now
            say(f"{done} of {rows} rows, about {(now - began) * (rows - done) / done:.0f} s left")


def described(logits: np.ndarray, loaded: LoadedModel) -> Iterator[dict[str, Any]]:
    """One object per row: what the model says in the data's own words."""
    from scipy.special import softmax

    manifest = loaded.manifest
    names = manifest.label_names or []
    for number, row in enumerate(logits.astype(np.float64)):
        if manifest.task == "regression":
            yield {"row": number, "value": float(row[0])}
        elif manifest.task == "multilabel":
            chances = 1 / (1 + np.exp(-row))
            yield {"row": number, "labels": [n for n, p in zip(names, chances, strict=True) if p > THRESHOLD],
                   "probabilities": {n: round(float(p), 6) for n, p in zip(names, chances, strict=True)}}
        else:
            chances = softmax(row)
            best = int(chances.argmax())
            yield {"row": number, "label": names[best], "probability": round(float(chances[best]), 6),
                   "probabilities": {n: round(float(p), 6) for n, p in zip(names, chances, strict=True)}}
