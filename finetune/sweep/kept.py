"""What a sweep leaves in its directory besides records: its plan, and its news while it runs."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.files import atomic_write
from finetune.results import RecordStore, TrialRecord
from finetune.sweep.plan import Plan, SweepOptions
from finetune.sweep.view.board import Board
from finetune.sweep.view.live import View

SWEEP_FILE = "sweep.json"
STATUS_FILE = "status.json"
_STATUS_EVERY = 2.0  # seconds


def records_on_disk(store: RecordStore, plan: Plan) -> dict[str, TrialRecord]:
    """Intact results, by trial_id; damaged ones are set aside. A failed trial is no result: it is tried again."""
    wanted = store.trial_ids() if plan.open_ended else [candidate.trial_id for candidate in plan.candidates]
    records = {trial_id: store.load_complete(trial_id) for trial_id in wanted}
    found = {trial_id: record for trial_id, record in records.items() if record and record.state != "failed"}
    for trial_id in found:
        store.forget_checkpoints(trial_id)  # a kill right after the record has left them
    return found


class StatusFile:
    """A view that also keeps status.json fresh, for `finetune status`."""

    def __init__(self, view: View, path: Path):
        self._view, self._path = view, path
        self.say, self.close = view.say, view.close
        self._written, self._stepped = 0.0, False

    def show(self, board: Board) -> None:
        self._view.show(board)
        if time.monotonic() - self._written >= _STATUS_EVERY or (board.first_step is not None and not self._stepped):
            self._stepped = board.first_step is not None
            self.write(board)

    def write(self, board: Board, *, ended: bool = False) -> None:
        """Not fsynced: it is news, not a result."""
        self._written = time.monotonic()
        content = {**board.summary(), "pid": os.getpid(), "host": socket.gethostname(), "updated": time.time(),
                   "ended": ended}
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.write_text(json.dumps(content))
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


def write_sweep_file(plan: Plan, options: SweepOptions, trials: Mapping[str, Sequence[str]], **more: Any) -> None:
    """What was asked for, as it is run: enough to run it again, and to tell its trials from older ones.

    `trials` {phase: trial_ids}; `more` are further sections.
    """
    content = {"schema": 1, "name": plan.spec.name, "spec": plan.spec.as_run, "search_seed": options.search_seed,
               "study": plan.study_name, "searched": plan.searched, "confirm": options.confirm,
               "open_ended": plan.open_ended, "trials": trials, **more}
    atomic_write(options.output_dir / SWEEP_FILE, json.dumps(content, indent=1, default=str) + "\n", "the sweep's plan")
