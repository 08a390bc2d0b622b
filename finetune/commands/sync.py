"""`finetune sync DIR`: an offline sweep as a sweep of W&B, which agents continue where it stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune.errors import ConfigError, Problem
from finetune.results import RecordStore


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Bring the trials of a directory to W&B, and make a W&B sweep of them: agents run what is still missing. "
        "Can be repeated; what is there already is not sent again. Needs an API key (`wandb login`)."
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="an output directory, e.g. runs/quickstart")
    parser.add_argument("--project", help="W&B project; default: the sweep's, else W&B's own, else "
                                          "stellar-finetuning")
    parser.add_argument("--entity", help="W&B user or team; default: W&B's own")
    parser.add_argument("--runs_only", action="store_true", help="send the runs, make no sweep")


def main(args: argparse.Namespace) -> int:
    from finetune.tracking.sync import State, check_login, make_sweep, own_project, read_plan, send

    store, plan = RecordStore(args.directory), read_plan(args.directory)
    records = [record for trial_id in store.trial_ids() if (record := store.load_complete(trial_id)) is not None]
    if not records:
        raise ConfigError([Problem("DIR", str(args.directory), "no trial records there; a sweep writes "
                                   "DIR/trials/*/record.json")])
    check_login()
    state = State(args.directory)
    project = args.project or own_project(records)
    for number, record in enumerate(records, 1):
        if record.trial_id not in state.runs:
            state.remember(record, send(record, store, project=project, entity=args.entity))
        print(f"{number} of {len(records)} runs are on W&B", file=sys.stderr, end="\r" if sys.stderr.isatty() else "\n")
    if plan is None or args.runs_only:
        print(f"{len(records)} runs are on W&B in the project {project}")
        return 0
    if state.sweep is None:
        state.remember_sweep(make_sweep(plan, records, state, args.directory, project=project, entity=args.entity))
    print(f"wandb agent {state.sweep}")
    return 0
