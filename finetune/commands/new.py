"""`finetune new`: asks for data set, columns, model, depths and seeds, and writes a sweep file that is ready to run."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError

LISTS = {"freeze_depth": "depths", "seed": "seeds", "learning_rate": "backbone learning rates",
         "head_learning_rate": "head learning rates"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = ("Write sweeps/NAME.yaml for your data set. On a terminal it asks for what is not given; "
                          "elsewhere what is not given takes its default.")
    parser.add_argument("--dataset_name", help="bundled name, path of a file or folder, or hub id")
    parser.add_argument("--dataset_config_name", help="configuration of the data set")
    parser.add_argument("--text_column", help="a column, or two as ['a', 'b']; default: found")
    parser.add_argument("--label_column", help="a column, or several 0/1 columns; default: found")
    parser.add_argument("--model_name_or_path", help="hub id or path of a folder")
    for name, words in LISTS.items():
        parser.add_argument(f"--{name}", metavar="LIST", help=f"{words}, e.g. [0, 2, 4]" if name == "freeze_depth"
                            else words)
    parser.add_argument("--name", help="of the sweep; default: from data set and model")
    parser.add_argument("--output", metavar="FILE", help="default: sweeps/NAME.yaml")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def main(args: argparse.Namespace) -> int:
    from finetune.commands.views.questions import ask
    from finetune.files import atomic_write
    from finetune.sweep.spec.draft import draft_sweep, render

    answers = {name: value for name, value in vars(args).items()
               if value is not None and name not in ("force", "output")}
    if sys.stdin.isatty() and sys.stderr.isatty():
        answers |= ask(answers)
    sweep = draft_sweep(answers)
    path = Path(args.output or f"sweeps/{sweep['name']}.yaml")
    if path.exists() and not args.force:
        raise ConfigError(f"{path} is there already; give another --name or --output, or --force to replace it")
    atomic_write(path, render(sweep, path), "the sweep")
    print(path)
    for note in _data_notes(sweep):
        print(f"note: {note}", file=sys.stderr)
    print(f"next: finetune sweep {shlex.quote(str(path))} --dry_run", file=sys.stderr)
    return 0


def _data_notes(sweep: Mapping[str, Any]) -> list[str]:
    """What was noticed in the data, guesses among it."""
    from finetune.config import TrialConfig
    from finetune.data.load import DATA_KNOBS, load_task_data
    from finetune.display import plain

    knobs = {name: body["value"] for name, body in sweep["parameters"].items() if name in DATA_KNOBS}
    return [plain(note) for note in load_task_data(TrialConfig.from_mapping(knobs)).notes]
