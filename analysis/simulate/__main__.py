"""`python -m analysis.simulate`: the tables of docs/statistics.md, line by line as they are computed."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from analysis.simulate import adaptive, coverage, metrics, narrowest, tuning, verdicts

TABLES = {"difference": coverage.difference_table, "level": coverage.level_table, "verdict": verdicts.verdict_table,
          "bisection": verdicts.bisection_table, "adaptive": adaptive.adaptive_table,
          "halving": tuning.halving_table, "metrics": metrics.metrics_table,
          "narrowest": narrowest.narrowest_table}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.simulate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=2000, help="experiments per line of the tables (default: 2000)")
    parser.add_argument("--table", choices=list(TABLES), action="append", help="only this table (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    for name in args.table or TABLES:
        for line in TABLES[name](args.repeats, np.random.default_rng(args.seed)):
            print(line, flush=True)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
