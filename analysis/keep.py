"""`python -m analysis.keep RUN KEPT`: a sweep's records, small enough for git, from which its report is rebuilt.

Every record stays as it is; predictions stay only where the report needs rows: the test split of the reported trials.
A record whose predictions change is sealed anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from analysis.load import PROBE_FILE, SWEEP_FILE, load_directory
from analysis.report import make_curves
from finetune.results import RecordStore


def keep(run: Path, kept: Path) -> int:
    """Copy RUN's records to KEPT, which must not hold any yet; returns how many. Raises ConfigError without records."""
    loaded = load_directory(run)
    reported = {trial.record.trial_id for curve in make_curves(loaded) for point in curve.points
                for trial in point.trials}
    store = RecordStore(kept)
    for trial in loaded.trials:
        predictions = trial.read() if trial.record.trial_id in reported else {}
        store.publish(trial.record.model_copy(update={"files": {}}),
                      {name: array for name, array in predictions.items() if name.startswith("test_")})
    for name in (SWEEP_FILE, PROBE_FILE):
        if (run / name).exists():
            shutil.copy(run / name, kept / name)
    return len(loaded.trials)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.keep", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="a sweep's output directory, e.g. runs/rotten_tomatoes")
    parser.add_argument("kept", type=Path, metavar="KEPT", help="where it is kept, e.g. docs/results/rotten_tomatoes")
    args = parser.parse_args()
    count = keep(args.run, args.kept)
    size = sum(path.stat().st_size for path in args.kept.rglob("*") if path.is_file())
    print(json.dumps({"records": count, "bytes": size}))


if __name__ == "__main__":
    main()
