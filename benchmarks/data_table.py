"""docs/data.md's table: every data set of a folder, and the same rows as other people would have written them down.

    python benchmarks/data_table.py ../shared/data > table.md

Each row is loaded and checked whole; the result is that of one epoch on at most 400 rows, tested on at most 300.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.errors import FinetuneError
from finetune.trial import run_trial

TRIAL = {"train_size": 400, "evaluation_size": 300, "num_train_epochs": 1, "freeze_depth": 3, "learning_rate": 1e-4,
         "max_length": 64}
HEADER = ("set", "task", "train / validation / test", "rejected", "metric", "baseline", "one epoch", "noted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with one data set per subfolder")
    parser.add_argument("--only", help="sets whose name holds this text")
    args = parser.parse_args()
    _row(HEADER)
    _row(["---"] * len(HEADER))
    with tempfile.TemporaryDirectory() as place:
        for name, path, knobs in [*_sets(args.folder), *_variants(args.folder, Path(place))]:
            if not args.only or args.only in name:
                _row(_measured(name, path, knobs))


def _sets(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The folders, and delimited files in them that stand beside a cleaned version of themselves."""
    for path in sorted(folder.iterdir()):
        yield path.name, path, {}
        for file in sorted(path.glob("*.csv")):
            yield f"{path.name}/{file.name} as it is", file, {}


def _variants(folder: Path, place: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The same rows in other files."""
    spam, mrpc, stsb, banking = (folder / name for name in ("sms_spam", "mrpc", "stsb", "banking77"))
    if spam.is_dir():
        rows = _rows(spam / "train.jsonl")
        lines = "".join(f"{['ham', 'spam'][row['label']]}\t{row['text']}\n" for row in rows)
        yield "sms_spam: UTF-16, no header, raw quotes (.tsv)", _write(place / "spam.tsv", lines, "utf-16"), {}
        nested = {"meta": {"n": len(rows)}, "data": [{"sms": {"body": r["text"]}, "kind": r["label"]} for r in rows]}
        yield "sms_spam: nested JSON", _write(place / "spam.json", json.dumps(nested)), {}
    if mrpc.is_dir():
        for split, name in {"train": "training", "validation": "dev", "test": "test"}.items():
            rows = _rows(mrpc / f"{split}.jsonl")
            labels = [-1 if split == "test" else row["label"] for row in rows]
            table = [["Quality", "#1 String", "#2 String", "note"]]
            table += [[label, row["sentence1"], row["sentence2"], "x"] for label, row in zip(labels, rows, strict=True)]
            _write_csv(place / "mrpc" / f"{name}.csv", table, "cp1252", ";")
        yield "mrpc: cp1252, `;`, training/dev/test, test labels -1", place / "mrpc", {}
    if stsb.is_dir():
        import pandas

        (place / "stsb" / "data").mkdir(parents=True)
        rows = _rows(stsb / "train.jsonl")
        for part in range(2):
            cents = [{"a": row["sentence1"], "b": row["sentence2"], "cents": 100 * row["label"]}
                     for row in rows[part::2]]
            pandas.DataFrame(cents).to_parquet(place / "stsb" / "data" / f"train-0000{part}-of-00002.parquet")
        yield ("stsb: two parquet parts, other names, targets ×100", place / "stsb",
               {"text_column": ["a", "b"], "label_column": "cents"})
    if banking.is_dir():
        pairs = {split: [[row["text"], row["label"]] for row in _rows(banking / f"{split}.jsonl")]
                 for split in ("train", "test")}
        yield "banking77: one JSON of pairs by split", _write(place / "banking.json", json.dumps(pairs)), {}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding, "replace"))
    return path


def _write_csv(path: Path, table: list[list[Any]], encoding: str, delimiter: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, errors="replace", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(table)


def _measured(name: str, path: Path, knobs: dict[str, Any]) -> list[str]:
    try:
        config = TrialConfig.from_mapping({"dataset_name": str(path), **knobs})
        data = load_task_data(config)
        size = min(TRIAL["train_size"], len(data.splits["train"]))
        record = run_trial(config.replace(**{**TRIAL, "train_size": size})).record
    except FinetuneError as error:
        return [name, f"exit {error.exit_code}: {error}"]
    metric, rows = record.metric, (str(len(data.splits[split])) for split in ("train", "validation", "test"))
    figures = [f"{values['test'][metric]:.3f}" for values in (record.baseline, record.metrics)]
    outputs = f", {data.num_outputs}" if data.label_names else ""
    return [name, f"{data.task}{outputs}", " / ".join(rows), str(len(data.rejected)), metric, *figures,
            "; ".join(map(_short, data.notes))]


def _short(note: str) -> str:
    """A note without what is the same in all of them."""
    carved = re.match(r"(test|validation) split carved from train, since (the source's .* rows\)|)", note)
    return f"{carved[1]} made{', ' + carved[2] if carved[2] else ''}" if carved else note.split(", which its bytes")[0]


def _row(cells: Any) -> None:
    print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |", flush=True)
    print(f"done: {cells[0]}", file=sys.stderr)


if __name__ == "__main__":
    main()
