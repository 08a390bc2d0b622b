"""`finetune status DIR`: how far a sweep is, from its records and from what its coordinator last wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from finetune.sweep.view.status import state_of, text_of


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show the state of a sweep: what is done, what runs, what failed."
    parser.add_argument("dir", type=Path, metavar="DIR", help="a sweep's output directory")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def main(args: argparse.Namespace) -> int:
    state = state_of(args.dir)
    print(json.dumps(state) if args.json else text_of(state))
    return 0
