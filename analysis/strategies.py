"""Strategies side by side, at equal epochs and at equal compute: `python -m analysis.strategies DIR` prints Markdown.

Per strategy the setting (learning rate) with the best mean validation metric over its seeds, as the report chooses.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetune.results import RecordStore, TrialRecord
from finetune.training.evaluation import higher_is_better

FRACTIONS = ("accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted")


class StrategyRow(NamedTuple):
    """One strategy's chosen setting. Values of `metric` are fractions (or in its own unit), in the order of `seeds`."""

    strategy: str
    metric: str
    learning_rate: float | None  # None where it moves no weight
    seeds: tuple[int, ...]
    test: tuple[float, ...]  # the best epoch of all, chosen on validation: equal epochs
    equal_compute: float | None  # mean validation metric of the best epoch that ended within the budget
    trainable_share: float  # the most that trained in any epoch
    deepest: int  # what backpropagation reached: -1 embeddings, L head only
    num_layers: int
    train_seconds: float
    peak_memory_bytes: float


def strategy_rows(records: Iterable[TrialRecord]) -> tuple[list[StrategyRow], float]:
    """The rows, those that train most first, and the budget of equal compute in training seconds.

    The budget is half of what the dearest strategy's training took on average: each one is judged by the epochs that
    it had finished by then. Raises ValueError when there is no complete trial.
    """
    settings: dict[str, dict[str, list[TrialRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.state == "complete":
            settings[record.effective["strategy"]][record.setting_id].append(record)
    if not settings:
        raise ValueError("no complete trial")
    chosen = {name: _best_setting(list(found.values())) for name, found in settings.items()}
    budget = max(float(np.mean([r.cost["train_seconds"] for r in trials])) for trials in chosen.values()) / 2
    rows = [_row(name, trials, budget) for name, trials in chosen.items()]
    return sorted(rows, key=lambda row: (-row.trainable_share, row.deepest, row.strategy != "full")), budget


def _better(metric: str, new: float, old: float) -> bool:
    return new > old if higher_is_better(metric) else new < old


def _best_setting(settings: list[list[TrialRecord]]) -> list[TrialRecord]:
    """Among those with the most seeds the one with the best mean on validation, the first on ties."""
    most = max(len(trials) for trials in settings)
    best: tuple[float, list[TrialRecord]] | None = None
    for trials in settings:
        metric = trials[0].metric
        score = float(np.mean([r.metrics["validation"][metric] for r in trials]))
        if len(trials) == most and (best is None or _better(metric, score, best[0])):
            best = score, trials
    assert best is not None
    return sorted(best[1], key=lambda r: r.config["seed"])


def _row(name: str, trials: Sequence[TrialRecord], budget: float) -> StrategyRow:
    first, metric = trials[0], trials[0].metric
    within = [_best_within(record, budget) for record in trials]
    return StrategyRow(
        strategy=name, metric=metric, learning_rate=first.effective["learning_rate"],
        seeds=tuple(r.config["seed"] for r in trials), test=tuple(r.metrics["test"][metric] for r in trials),
        equal_compute=None if None in within else float(np.mean(within)),
        trainable_share=first.parameters["trainable"] / first.parameters["total"],
        deepest=min(r.deepest_trainable_layer for r in trials), num_layers=first.num_layers,
        train_seconds=float(np.mean([r.cost["train_seconds"] for r in trials])),
        peak_memory_bytes=float(np.mean([max(e["peak_memory_bytes"] for e in r.history) for r in trials])),
    )


def _best_within(record: TrialRecord, budget: float) -> float | None:
    """The best validation metric of the epochs that ended within `budget` training seconds; None before the first."""
    ends = np.cumsum([entry["train_seconds"] for entry in record.history])
    values = [entry["validation"][record.metric] for entry, end in zip(record.history, ends, strict=True)
              if end <= budget * (1 + 1e-9)]
    if not values:
        return None
    return max(values) if higher_is_better(record.metric) else min(values)


def markdown(rows: Sequence[StrategyRow]) -> str:
    """A table; percent for fractions, as drawings have it."""
    lines = ["| strategy | learning rate | test, equal epochs | validation, equal compute | trains | reaches down to | "
             "training time | peak memory |", "|---|---|---|---|---|---|---|---|"]
    full = next((row.train_seconds for row in rows if row.strategy == "full"), None)
    for row in rows:
        shown = _percent if row.metric in FRACTIONS else "{:.4f}".format
        spread = f"{shown(min(row.test))} to {shown(max(row.test))}" if len(row.test) > 1 else "one seed"
        time = f"{row.train_seconds:.1f} s" + (f" ({row.train_seconds / full:.0%})" if full else "")
        lines.append("| " + " | ".join([
            f"`{row.strategy}`", "-" if row.learning_rate is None else f"{row.learning_rate:g}",
            f"{shown(float(np.mean(row.test)))} ({spread})",
            "no epoch done" if row.equal_compute is None else shown(row.equal_compute),
            _percent(row.trainable_share), _depth(row), time, f"{row.peak_memory_bytes / 2**20:.0f} MiB"]) + " |")
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{value:.1%}" if value == 0 or value >= 0.01 else f"{value:.2%}"


def _depth(row: StrategyRow) -> str:
    return {-1: "embeddings", row.num_layers: "head"}.get(row.deepest, f"layer {row.deepest}")


def main(folder: str) -> int:
    try:
        rows, budget = strategy_rows(RecordStore(Path(folder)))
    except ValueError as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 2
    print(markdown(rows))
    print(f"Equal compute: {budget:.1f} s of training, half of what the dearest strategy took.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]) if len(sys.argv) == 2 else "usage: python -m analysis.strategies DIR")
