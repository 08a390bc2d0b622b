"""`finetune probe DIR`: what a linear probe on every frozen depth's features reaches, into DIR/probe.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a sweep's output directory")


def main(args: argparse.Namespace) -> int:
    from finetune.sweep.probe import probe_directory

    print(json.dumps(probe_directory(args.folder)))
    return 0
