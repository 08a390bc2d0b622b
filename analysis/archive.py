"""`python -m analysis.archive RUN KEPT`: a sweep's records, small enough for git, from which its report is rebuilt.

Every record stays as it is; predictions stay only where the report needs rows: the test split of the reported trials,
of tags the counts per sentence, and of many classes, where that is asked for, the class that was predicted. A record
whose predictions change is sealed anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from analysis.load.records import PROBE_FILE, SWEEP_FILE, load_directory
from analysis.report.report import make_curves
from finetune.errors import ConfigError, FinetuneError, Problem, did_you_mean
from finetune.results import RecordStore


def keep(run: Path, kept: Path, leave_out: Sequence[str] = (), *,
         predictions: Literal["logits", "classes", "none"] = "logits") -> int:
    """Copy RUN's records to KEPT, which must not hold any yet; returns how many.

    `leave_out`: figures of cost that were found to be wrong; they are None in what is kept. `predictions`: "classes"
    keeps of a row's logits which is the highest (0, the others -inf), enough for an accuracy, an F1 or Matthews
    and 1% of the bytes with 77 classes, while a loss per row is not to be had; with "none" a report's intervals speak
    about seeds on these test rows only. Raises ConfigError without records, for a figure that no record has, and for
    classes where the task has none.
    """
    loaded = load_directory(run)
    if not loaded.trials:
        raise ConfigError([Problem("RUN", str(run), "it holds no record; allowed: the output directory of a sweep that "
                                   "has finished at least one trial")])
    figures = {name for trial in loaded.trials for name in trial.record.cost}
    if unknown := [name for name in leave_out if name not in figures]:
        raise ConfigError([Problem("--leave_out", name, f"allowed: {', '.join(sorted(figures))}"
                                   + did_you_mean(name, figures)) for name in unknown])
    if predictions == "classes" and (other := {trial.record.task for trial in loaded.trials} - {"classification"}):
        raise ConfigError([Problem("--predicted_classes", ", ".join(sorted(other)), "that task has no single class per "
                                   "row; allowed: records of a classification")])
    reported = {trial.record.trial_id for curve in make_curves(loaded) for point in curve.points
                for trial in point.trials}
    store = RecordStore(kept)
    for trial in loaded.trials:
        found = trial.read() if predictions != "none" and trial.record.trial_id in reported else {}
        if predictions == "classes":
            found = {name: _predicted(array) if name.endswith("_logits") else array for name, array in found.items()}
        cost = {name: None if name in leave_out else value for name, value in trial.record.cost.items()}
        history = [{name: value for name, value in entry.items() if name not in leave_out}
                   for entry in trial.record.history]
        store.publish(trial.record.model_copy(update={"files": {}, "cost": cost, "history": history}),
                      {name: array for name, array in found.items() if _is_needed(name, found)})
    for name in (SWEEP_FILE, PROBE_FILE):
        if (run / name).exists():
            shutil.copy(run / name, kept / name)
    return len(loaded.trials)


def _predicted(logits: np.ndarray) -> np.ndarray:
    """(rows, classes) -> the same with 0 at the first of the highest and -inf elsewhere."""
    chosen = np.full(logits.shape, -np.inf, np.float16)
    chosen[np.arange(len(logits)), logits.argmax(axis=1)] = 0.0
    return chosen


def _is_needed(name: str, predictions: Mapping[str, np.ndarray]) -> bool:
    """By a report: of words with tags it reads no logits where their counts are there."""
    counted = "test_counts" in predictions
    return name in ("test_counts", "test_ids") if counted else name.startswith("test_")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.archive", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="a sweep's output directory, e.g. runs/rotten_tomatoes")
    parser.add_argument("kept", type=Path, metavar="KEPT", help="where it is kept, e.g. docs/results/rotten_tomatoes")
    parser.add_argument("--leave_out", action="append", default=[], metavar="NAME",
                        help="a figure of cost that was found to be wrong, e.g. peak_memory_bytes (repeatable)")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--predicted_classes", dest="predictions", action="store_const", const="classes",
                      default="logits", help="of many classes' logits only which one is the highest: the same report, "
                      "but no loss per row")
    rows.add_argument("--without_predictions", dest="predictions", action="store_const", const="none",
                      help="records alone: intervals cover seeds only")
    args = parser.parse_args()
    try:
        count = keep(args.run, args.kept, args.leave_out, predictions=args.predictions)
    except FinetuneError as error:
        print(f"analysis.archive: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    size = sum(path.stat().st_size for path in args.kept.rglob("*") if path.is_file())
    print(json.dumps({"records": count, "bytes": size}))


if __name__ == "__main__":
    main()
