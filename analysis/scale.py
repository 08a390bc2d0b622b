"""`python -m analysis.scale`: how long a report of many trials takes, and how much memory.

Synthetic records, written to a temporary folder and reported in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from finetune.config import TrialConfig
from finetune.results import RecordStore, TrialRecord

LAYERS, RATES = 9, (1e-5, 3e-5, 1e-4, 3e-4)


def write_trials(folder: Path, trials: int, rows: int) -> None:
    """Ten depths, four learning rates, and as many seeds as make `trials`."""
    rng = np.random.default_rng(0)
    labels, ease = rng.integers(2, size=rows), rng.normal(size=rows)
    ids = {split: np.array([f"{split}:{row}" for row in range(rows)]) for split in ("validation", "test")}
    store = RecordStore(folder)
    with patch("os.fsync"):  # a synthetic record need not survive a power cut
        for number in range(trials):
            depth, rate, seed = number % (LAYERS + 1), RATES[number // (LAYERS + 1) % len(RATES)], number // 40 + 1
            right = 1.2 - 0.05 * depth + ease + rng.normal(size=rows)
            margin = np.where(labels == 1, right, -right)
            logits = np.stack([-margin, margin], axis=1).astype(np.float32)
            score = {"accuracy": float((logits.argmax(1) == labels).mean()), "loss": 0.5}
            predictions = {f"{split}_{name}": array for split in ids for name, array in
                           (("logits", logits), ("labels", labels), ("ids", ids[split]))}
            store.publish(_record(depth, rate, seed, rows, score), predictions)


def _record(depth: int, rate: float, seed: int, rows: int, score: dict[str, float]) -> TrialRecord:
    config = TrialConfig.from_mapping({"freeze_depth": depth, "learning_rate": rate, "seed": seed})
    strategy = "full" if depth == 0 else f"prefix:{depth}"
    effective = {**config.model_dump(exclude={"output_dir", "margin"}), "strategy": strategy}
    setting = hashlib.sha256(f"{depth} {rate}".encode()).hexdigest()
    return TrialRecord(
        trial_id=hashlib.sha256(f"{setting} {seed}".encode()).hexdigest(), setting_id=setting, sweep="scale",
        protocol={"phase": "tune"}, state="complete", config=config.model_dump(), effective=effective,
        num_layers=LAYERS, parameters={"total": 100, "trainable": 100 - 9 * depth},
        baseline={"kind": "majority", "test": {"accuracy": 0.5}}, metrics={"validation": score, "test": score},
        best_epoch=2, history=[{"epoch": epoch, "train": {"loss": 0.6}, "validation": score} for epoch in (1, 2, 3)],
        cost={"train_seconds": 60.0 - 4 * depth, "prefix_seconds": 1.0, "peak_memory_bytes": 10**9},
        data={"fingerprint": "scale", "label_names": ["negative", "positive"],
              "rows": {"train": 1000, "validation": rows, "test": rows}}, environment={"device": "none"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.scale", description=__doc__, allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-scale-") as folder:
        write_trials(Path(folder), args.trials, args.rows)
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "finetune", "report", folder], check=True, stdout=sys.stderr)
        seconds = time.monotonic() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"trials": args.trials, "rows": args.rows, "seconds": round(seconds, 1),
                      "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                      "peak_memory_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}))


if __name__ == "__main__":
    main()
