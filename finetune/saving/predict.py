"""Labels and probabilities for new texts from a trained model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.saving.read import LoadedModel

THRESHOLD = 0.5  # above it a label of several holds
SAY_EVERY_SECONDS = 5.0
STDIN = "-"
Say = Callable[[str], None]  # a sentence for whoever watches
_SIDE_BY_SIDE = "every row must be usable, so that rows and predictions stay side by side: mend the row, or take it out"


def _silent(sentence: str) -> None:
    pass


def read_texts(file: Path, columns: list[str] | None, trained_on: list[str], say: Say = _silent
               ) -> list[tuple[str, ...]]:
    """The texts of every row, (text,) or (text, pair). Raises DataError when a column or a text is missing."""
    from finetune.data.formats.readers import read_file

    if str(file) == STDIN:
        return _lines(sys.stdin.buffer.read(), "stdin", trained_on, say)
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    if file.suffix.lower() == ".txt":
        return _lines(file.read_bytes(), file.name, trained_on, say)
    tables = read_file(file, file.name)
    if len(tables) != 1:
        raise DataError(f"{file.name}: it holds several splits ({', '.join(tables)}); give a file with one table")
    table = next(iter(tables.values()))
    if table.rejected or table.spilled:
        wrong = str(table.rejected[0]) if table.rejected else (
            f"{file.name} line {table.lines[min(table.spilled)]}: it has more values than columns")
        raise DataError(f"{wrong}; {_SIDE_BY_SIDE}")
    names = columns or ([table.columns[0]] if len(table.columns) == 1 and len(trained_on) == 1 else trained_on)
    for name in names:
        if name not in table.columns:
            raise DataError(f"{file.name}: no column {name!r}; there are {', '.join(table.columns)}: give "
                            "--text_column")
    for note in table.notes:
        say(note)
    rows = list(zip(*(table.column(name) for name in names), strict=True))
    return checked_texts(rows, table.lines, list(names), file.name, trained_on)


def _lines(payload: bytes, source: str, trained_on: list[str], say: Say = _silent) -> list[tuple[str, ...]]:
    """A text a line."""
    from finetune.data.formats.decoding import decode_text, note_on_encoding

    text, encoding = decode_text(payload, source)
    if note := note_on_encoding(encoding, source):
        say(note)
    rows = [(line.removesuffix("\r"),) for line in text.removesuffix("\n").split("\n")] if text else []
    return checked_texts(rows, range(1, len(rows) + 1), ["text"], source, trained_on)


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
            raise DataError(f"{source} line {line}: {reason}; {_SIDE_BY_SIDE}")
    return [tuple(clean(value) for value in row) for row in rows]


def predict(loaded: LoadedModel, texts: list[tuple[str, ...]], batch_size: int, say: Say = _silent) -> np.ndarray:
    """Logits (rows, outputs), in the order of `texts`; progress and the time left through `say`."""
    import torch

    from finetune.data import encode_split, padding_id
    from finetune.data.encoding.batches import Collator, evaluation_batches, to_device
    from finetune.data.task_data import Split

    tokenizer = loaded.backbone.tokenizer
    rows = Split(texts, np.zeros(len(texts), np.int64), np.array([f"row {i}" for i in range(len(texts))]))
    split = Collator(encode_split(rows, tokenizer, loaded.manifest.max_length), padding_id(tokenizer),
                     loaded.backbone.padding_side)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = loaded.classifier.to(device)
    out = np.empty((len(texts), loaded.manifest.head.outputs), np.float32)
    with torch.inference_mode():
        for batch in _with_progress(evaluation_batches(split.encoded.lengths, batch_size), len(texts), say):
            out[batch] = classifier(**to_device(split(batch), device)).float().cpu().numpy()
    return out


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
            chances = np.exp(row - row.max())
            chances /= chances.sum()
            best = int(chances.argmax())
            yield {"row": number, "label": names[best], "probability": round(float(chances[best]), 6),
                   "probabilities": {n: round(float(p), 6) for n, p in zip(names, chances, strict=True)}}
