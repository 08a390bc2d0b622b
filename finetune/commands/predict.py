"""`finetune predict FOLDER FILE`: labels and probabilities for new texts, one JSON line per row."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.display import plain
from finetune.errors import ConfigError, too_small

if TYPE_CHECKING:
    from finetune.saving.manifest import KeptModel


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predicts on new texts with a trained model. stdout gets one JSON object per row, in the file's order: row "
        "(from 0) and label with its probability and those of all labels, labels (several), value (a number), or of a "
        "token classifier its text, entities (text, type, start, end, score), words, tags and scores. Every row must "
        "have a text, so that rows and predictions stay side by side."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path,
                        help="a trial's folder (OUTPUT_DIR/trials/<trial_id>), or one that `finetune export` wrote")
    parser.add_argument("file", metavar="FILE", type=Path,
                        help="csv, tsv, jsonl, json, parquet, or txt: a text a line; - reads such lines from stdin. "
                        "Of a token classifier also conll (in a txt too, where each line ends in a tag); texts are "
                        "split into words where they are no lists of words")
    parser.add_argument("--text_column", action="append", metavar="NAME",
                        help="the column with the text, twice for a pair; default: named as in the training data")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of stdout")
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, metavar="N", help="rows at a time")


def main(args: argparse.Namespace) -> int:
    if wrong := too_small({"per_device_eval_batch_size": 1}, vars(args)):
        raise ConfigError(wrong)
    from finetune.data.task_data import TAGGED
    from finetune.saving.manifest import find_kept

    manifest = find_kept(args.folder)[1]
    answers = (_tags if manifest.task == TAGGED else _labels)(args, manifest)
    lines = (json.dumps(row, ensure_ascii=False) for row in answers)
    if args.output is None:
        for line in lines:
            print(line)
    else:
        from finetune.files import atomic_write

        atomic_write(args.output, "".join(f"{line}\n" for line in lines), "predictions")
    return 0


def _labels(args: argparse.Namespace, manifest: KeptModel) -> Iterator[dict[str, Any]]:
    from finetune.saving.predict import described, predict, read_texts

    texts = read_texts(args.file, args.text_column, manifest.text_columns, say)
    from finetune.saving.read import load_kept  # torch, after a bad file has been refused

    loaded = load_kept(args.folder)
    return described(predict(loaded, texts, args.per_device_eval_batch_size, say), loaded)


def _tags(args: argparse.Namespace, manifest: KeptModel) -> Iterator[dict[str, Any]]:
    from finetune.saving.predict import predict
    from finetune.saving.tags import described_tags, note_on_cut, read_sentences

    sentences = read_sentences(args.file, args.text_column, manifest, say)
    from finetune.saving.read import load_kept

    logits = predict(load_kept(args.folder), [sentence.words for sentence in sentences],
                     args.per_device_eval_batch_size, say)
    if note := note_on_cut(logits, manifest.max_length):
        say(note)
    return described_tags(logits, sentences, manifest)


def say(sentence: str) -> None:
    print(plain(sentence), file=sys.stderr)
