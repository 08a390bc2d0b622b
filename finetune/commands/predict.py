"""`finetune predict FOLDER FILE`: labels and probabilities for new texts, one JSON line per row."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from finetune.display import plain
from finetune.errors import ConfigError, too_small


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predicts on new texts with a trained model. stdout gets one JSON object per row, in the file's order: row "
        "(from 0) and label with its probability and those of all labels, labels (several), or value (a number). Every "
        "row must have a text, so that rows and predictions stay side by side."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path,
                        help="a trial's folder (OUTPUT_DIR/trials/<trial_id>), or one that `finetune export` wrote")
    parser.add_argument("file", metavar="FILE", type=Path,
                        help="csv, tsv, jsonl, json, parquet, or txt: a text a line; - reads such lines from stdin")
    parser.add_argument("--text_column", action="append", metavar="NAME",
                        help="the column with the text, twice for a pair; default: named as in the training data")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of stdout")
    parser.add_argument("--per_device_eval_batch_size", type=int, default=64, metavar="N", help="rows at a time")


def main(args: argparse.Namespace) -> int:
    if wrong := too_small({"per_device_eval_batch_size": 1}, vars(args)):
        raise ConfigError(wrong)
    from finetune.saving.manifest import find_kept
    from finetune.saving.predict import described, predict, read_texts

    _, manifest = find_kept(args.folder)
    texts = read_texts(args.file, args.text_column, manifest.text_columns, say)
    from finetune.saving.read import load_kept

    loaded = load_kept(args.folder)
    logits = predict(loaded, texts, args.per_device_eval_batch_size, say)
    lines = (json.dumps(row, ensure_ascii=False) for row in described(logits, loaded))
    if args.output is None:
        for line in lines:
            print(line)
    else:
        from finetune.files import atomic_write

        atomic_write(args.output, "".join(f"{line}\n" for line in lines), "predictions")
    return 0


def say(sentence: str) -> None:
    print(plain(sentence), file=sys.stderr)
