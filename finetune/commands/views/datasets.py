"""Data sets on the terminal. Names, labels and texts are somebody else's: they are shown, never interpreted."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.display import plain

MOST_LABELS = 12  # rows in the table of labels
MOST_REJECTED = 10
TEXT_WIDTH = 300  # characters of an example


def listing(entries: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """The data sets that are on this machine."""
    if as_json:
        print(json.dumps(entries, ensure_ascii=False, indent=1))
        return
    table("data sets on this machine", ("name", "where", "configurations"),
           [(entry["name"], entry["where"], ", ".join(entry["configurations"]) or "-") for entry in entries])


def found(names: Sequence[str], text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(names, ensure_ascii=False, indent=1))
        return
    table(f"hub data sets that match {plain(text, 60)}", ("name",), [(name,) for name in names])


def configurations(name: str, available: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "configurations": available}, ensure_ascii=False, indent=1))
        return
    table(f"configurations of {plain(name)}; show one with `finetune data {plain(name)} CONFIG`", ("name",),
           [(config,) for config in available])


def profile(described: Mapping[str, Any]) -> None:
    """Splits, columns, labels, defects and examples of one data set."""
    name = " ".join(part for part in (described["name"], described["config"]) if part)
    outputs = f", {len(described['label_names'])} labels" if described["label_names"] else ""
    _line(f"{name}: {described['task']}{outputs}; metric {described['metric']}, {described['baseline']['kind']} "
          f"baseline {described['baseline']['test']:.4f} on test")
    _splits(described)
    table("columns", ("column", "used as", "why"), _column_rows(described["columns"]))
    _labels(described)
    _entities(described["splits"])
    table("defects", ("what", "rows"), _defect_rows(described))
    table("examples from train", ("label", *described["columns"]["text"]),
           [(example["label"], *(plain(text, TEXT_WIDTH) for text in example["texts"]))
            for example in described["examples"]])
    for note in described["notes"]:
        _line(f"note: {note}")
    for row in described["rejected"][:MOST_REJECTED]:
        _line(f"rejected: {row['source']} line {row['line']}: {row['reason']}")
    if len(described["rejected"]) > MOST_REJECTED:
        _line(f"rejected: {len(described['rejected']) - MOST_REJECTED} more; --json lists all")


def _line(text: str) -> None:
    """One line, wrapped between words on a terminal."""
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(Text(plain(text)))


def _splits(described: Mapping[str, Any]) -> None:
    unit = described["splits"]["train"]["lengths"]["unit"]
    shares = described.get("unknown_tokens")
    table("splits", ("split", "rows", f"{unit}: median", "95%", "99%", "longest", "duplicates",
                     *(["unknown tokens"] if shares else [])), [
        (name, split["rows"], *(f"{split['lengths'][key]:.0f}" for key in ("median", "p95", "p99", "max")),
         split["duplicates"], *([f"{shares[name]:.1%}"] if shares else []))
        for name, split in described["splits"].items()])


def _column_rows(columns: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    used = dict.fromkeys(columns["label"], "label") | dict(zip(columns["text"], ("text", "pair"), strict=False))
    return [(name, used.get(name, "-"), columns["reasons"].get(name, "")) for name in columns["all"]]


def _labels(described: Mapping[str, Any]) -> None:
    splits = described["splits"]
    if described["label_names"] is None:
        keys = list(splits["train"]["labels"])
        table("targets", ("split", *keys), [(name, *(f"{split['labels'][key]:.4g}" for key in keys))
                                             for name, split in splits.items()])
        return
    names = sorted(described["label_names"], key=lambda name: -splits["train"]["labels"][name])
    rows = [(name, *(split["labels"][name] for split in splits.values())) for name in names]
    title = "labels"
    if len(rows) > MOST_LABELS:
        title = f"labels: the {MOST_LABELS // 2} most and {MOST_LABELS // 2} least frequent of {len(rows)}"
        rows = [*rows[: MOST_LABELS // 2], *rows[-(MOST_LABELS // 2):]]
    table(title, ("label", *splits), rows)


def _entities(splits: Mapping[str, Any]) -> None:
    """Where tags stand for entities: how many of each type, the most frequent first."""
    if "entities" in splits["train"]:
        kinds = sorted(splits["train"]["entities"], key=lambda kind: -splits["train"]["entities"][kind])
        table("entities", ("type", *splits), [(kind, *(split["entities"][kind] for split in splits.values()))
                                              for kind in kinds])


def _defect_rows(described: Mapping[str, Any]) -> list[tuple[str, Any]]:
    overlap = [(f"rows of {pair.split('/')[1]} whose text is also in {pair.split('/')[0]}", count)
               for pair, count in described["overlap"].items()]
    unseen = [(f"words beyond max_length = {length} or without a token", count)
              for length, count in described.get("unseen_words", {}).items()]
    duplicates = sum(split["duplicates"] for split in described["splits"].values())
    return [("rows that repeat a text of their split", duplicates), *overlap,
            ("texts that stand with different labels", described["conflicting_labels"]),
            ("rows with an empty text", described["empty_rows"]), *unseen,
            ("rows that cannot be used", len(described["rejected"]))]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    console = Console(highlight=False)
    if not console.is_terminal:
        print(f"# {plain(title)}")
        for row in (header, *rows):
            print("\t".join(plain(cell) for cell in row))
        print()
        return
    table = Table(title=Text(plain(title)), title_justify="left", title_style="bold")
    for number, name in enumerate(header):
        numbers = bool(rows) and all(_is_number(row[number]) for row in rows)
        table.add_column(Text(plain(name)), overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) or str(cell).replace(".", "", 1).isdecimal()
