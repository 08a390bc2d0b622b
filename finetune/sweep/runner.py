"""The coordinator: one per output directory. Plans the sweep, runs its phases, says how it ended."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import EnvironmentProblem, Interrupted
from finetune.files import FileLock, atomic_write
from finetune.results import RecordStore, TrialRecord
from finetune.sweep.board import Board
from finetune.sweep.dispatch import Dispatcher
from finetune.sweep.live import View
from finetune.sweep.plan import Plan, SweepOptions, known_points, fixed_knobs, make_plan
from finetune.sweep.pool import Machine
from finetune.sweep.search import Search
from finetune.sweep.spec import SweepSpec
from finetune.sweep.storage import StudyStorage
from finetune.sweep.team import Team

LOCK_FILE = "sweep.lock"
SWEEP_FILE = "sweep.json"
STATUS_FILE = "status.json"
LOGS = "logs"
_STATUS_EVERY = 2.0  # seconds


@dataclass
class Ending:
    """How a sweep ended. `failures` are (label, reason)."""

    board: Board
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 3 if self.failures or self.board.failed else 0


def run_sweep(spec: SweepSpec, options: SweepOptions, view: View) -> Ending:
    """Everything from the check of the points to the last record.

    Raises ConfigError (a bad point, somebody else holds the directory), DataError, EnvironmentProblem, Interrupted.
    """
    with output_lock(options.output_dir), team_for(spec, options, view) as team:
        plan = make_plan(spec, options, team)
        for note in plan.notes():
            view.say(note)
        storage = StudyStorage(options.storage, options.output_dir, grace=options.grace)
        try:
            for note in storage.notes:
                view.say(note)
            return _run_phases(plan, options, team, storage, view)
        finally:
            storage.close()


def _run_phases(plan: Plan, options: SweepOptions, team: Team, storage: StudyStorage, view: View) -> Ending:
    store = RecordStore(options.output_dir)
    write_sweep_file(plan, options)
    return _run_phase(plan, options, team, storage, store, view, plan.study_name, {"phase": "tune"})


def _run_phase(plan: Plan, options: SweepOptions, team: Team, storage: StudyStorage, store: RecordStore, view: View,
               study_name: str, protocol: dict[str, Any]) -> Ending:
    owner = f"{socket.gethostname()}:{options.output_dir.resolve()}"
    search = Search(storage, plan.spec, study_name, search_seed=options.search_seed, phase=protocol["phase"], owner=owner)
    finished = records_on_disk(store, plan)
    board = _board(plan, search, finished, team.count, protocol["phase"])
    watched = StatusFile(view, options.output_dir / STATUS_FILE)
    dispatcher = Dispatcher(plan, search, team, store, options, board, watched, finished=finished, protocol=protocol)
    try:
        dispatcher.run()
    finally:
        watched.write(board)
    return Ending(board, dispatcher.failures)


def records_on_disk(store: RecordStore, plan: Plan) -> dict[str, TrialRecord]:
    """Intact results, by trial_id; damaged ones are set aside. A failed trial is no result: it is tried again."""
    wanted = store.trial_ids() if plan.open_ended else [candidate.trial_id for candidate in plan.candidates]
    records = {trial_id: store.load_complete(trial_id) for trial_id in wanted}
    return {trial_id: record for trial_id, record in records.items() if record and record.state != "failed"}


def _board(plan: Plan, search: Search, finished: dict[str, TrialRecord], workers: int, phase: str) -> Board:
    metric = plan.spec.metric.key if plan.spec.metric else plan.default_metric
    already = [candidate for candidate in plan.candidates if candidate.trial_id in finished]
    board = Board(plan.spec.name, metric, maximize=search.maximize, phase=phase, total=plan.total,
                  already=len(already), workers=workers)
    board.pending = Counter(plan.descriptions[candidate.trial_id].kind for candidate in plan.candidates
                            if candidate.trial_id not in finished)
    return board


class StatusFile:
    """A view that also keeps status.json fresh, for `finetune status`."""

    def __init__(self, view: View, path: Path):
        self._view, self._path = view, path
        self.say, self.close = view.say, view.close
        self._written = 0.0

    def show(self, board: Board) -> None:
        self._view.show(board)
        if time.monotonic() - self._written >= _STATUS_EVERY:
            self.write(board)

    def write(self, board: Board) -> None:
        """Not fsynced: it is news, not a result."""
        self._written = time.monotonic()
        content = {**board.summary(), "pid": os.getpid(), "host": socket.gethostname(), "updated": time.time()}
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.write_text(json.dumps(content))
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


@contextmanager
def output_lock(output_dir: Path) -> Iterator[None]:
    """Nobody else sweeps into this directory. The lock dies with its holder."""
    lock = FileLock(output_dir / LOCK_FILE)
    note = f"on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    if not lock.acquire(wait=False, note=note):
        raise EnvironmentProblem(f"another `finetune sweep` holds {output_dir}: {lock.holder()}; wait for it, stop it, "
                                 "or choose another --output_dir")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def team_for(spec: SweepSpec, options: SweepOptions, view: View) -> Iterator[Team]:
    """Workers that end with this block: at once after an error, with time for a checkpoint after a signal."""
    machine = Machine.here()
    points, probes, open_ended = known_points(spec, options.search_seed, fixed_knobs(spec, options.output_dir))
    trials = (spec.run_cap or sys.maxsize) if open_ended else len(points)
    count = machine.workers(options.workers, min(trials, spec.run_cap or trials))
    team = Team(machine, count, task=options.task, logs=options.output_dir / LOGS,
                ask_verdicts=spec.early_terminate is not None)
    team.on_second_signal(view.close)
    grace = 5.0
    try:
        yield team
    except Interrupted:
        view.say("stopping: running trials write their checkpoints (Ctrl-C again: at once)")
        grace = options.stop_grace
        raise
    finally:
        team.close(grace=grace)


def write_sweep_file(plan: Plan, options: SweepOptions) -> None:
    """What was asked for, as it is run: enough to run it again, and to tell its trials from older ones."""
    content = {
        "schema": 1, "name": plan.spec.name, "spec": plan.spec.as_run, "search_seed": options.search_seed,
        "study": plan.study_name, "command": shlex.join(sys.argv), "confirm": options.confirm,
        "trials": {"tune": [candidate.trial_id for candidate in plan.candidates]},
    }
    atomic_write(options.output_dir / SWEEP_FILE, json.dumps(content, indent=1, default=str) + "\n", "the sweep's plan")


def searched_labels(plan: Plan) -> Sequence[str]:
    return plan.searched
