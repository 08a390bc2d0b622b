"""The coordinator: one per output directory. Plans the sweep, runs its phases, says how it ended."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import TrialConfig
from finetune.errors import ConfigError, DataError, EnvironmentProblem, Interrupted
from finetune.files import FileLock, disk_errors
from finetune.prefix.budget import hint_for
from finetune.results import CHECKPOINTS, RecordStore, TrialRecord
from finetune.sweep.adaptive.prepare import prepared
from finetune.sweep.dispatch import Dispatcher
from finetune.sweep.head_shares import head_shares
from finetune.sweep.kept import STATUS_FILE, SWEEP_FILE, StatusFile, records_on_disk, write_sweep_file
from finetune.sweep.plan import Plan, SweepOptions, fixed_knobs, known_points, make_plan, plan_confirmation
from finetune.sweep.search.confirmation import Choice, Tuned, choose, confirmation_values, fresh_seeds
from finetune.sweep.search.search import Search
from finetune.sweep.search.trials import outcome_of
from finetune.sweep.spare_time import SpareTime, spare_time
from finetune.sweep.spec.points import Point
from finetune.sweep.spec.schema import SweepSpec
from finetune.sweep.storages import StudyStorage, open_storage
from finetune.sweep.view.board import Board, label_of
from finetune.sweep.view.live import View
from finetune.sweep.workers.birth import Newborn
from finetune.sweep.workers.cards import weights_at_hand
from finetune.sweep.workers.mps import mps_for
from finetune.sweep.workers.pool import Machine
from finetune.sweep.workers.team import Team

LOCK_FILE = "sweep.lock"
LOGS = "logs"


@dataclass
class Ending:
    """How a sweep ended: one board per phase. `failures` are (label, reason); `adaptive` is that section of sweep.json.
    """

    boards: list[Board]
    failures: list[tuple[str, str]]
    chosen: list[Choice]
    searched: list[str]
    adaptive: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        return 3 if self.failures else 0


def run_sweep(spec: SweepSpec, options: SweepOptions, view: View, born: Newborn | None = None) -> Ending:
    """Everything from the check of the points to the last record. `born`: the first worker's process, if it is there.

    Raises ConfigError for a bad point, DataError, EnvironmentProblem (also: somebody holds the directory), Interrupted.
    """
    existed = options.output_dir.exists()
    spec = prepared(spec, options) if options.adaptive else spec
    with (output_lock(options.output_dir), nothing_half_written(options.output_dir, existed),
          team_for(spec, options, view, options.output_dir / LOGS, born) as team):
        team.grow(team.count)  # all import torch while the study is opened and the first one resolves the points
        storage = open_storage(options.storage, options.output_dir, grace=options.grace)
        try:
            for note in storage.notes:
                view.say(note)
            if storage.checkpoints is not None:
                share_checkpoints(options.output_dir, storage.checkpoints)
            plan = make_plan(spec, options, team)
            for note in plan.notes():
                view.say(note)
            ending = (_adaptive if options.adaptive else _in_phases)(plan, options, team, storage, view)
        finally:
            storage.close()
    return ending


def _in_phases(plan: Plan, options: SweepOptions, team: Team, storage: StudyStorage, view: View) -> Ending:
    return Sweep(plan, options, team, storage, view).run()


def _adaptive(plan: Plan, options: SweepOptions, team: Team, storage: StudyStorage, view: View) -> Ending:
    from finetune.sweep.adaptive.run import AdaptiveSweep  # with scipy, which no other sweep needs

    sweep = AdaptiveSweep(plan, options, team, storage, view)
    board, failures = sweep.run()
    return Ending([board], failures, sweep.choices(), plan.searched, sweep.section)


class Sweep:
    """The phases of one planned sweep."""

    def __init__(self, plan: Plan, options: SweepOptions, team: Team, storage: StudyStorage, view: View):
        self.plan, self.options, self.team, self.storage, self.view = plan, options, team, storage, view
        self.store = RecordStore(options.output_dir)
        self.failures: list[tuple[str, str]] = []

    def run(self) -> Ending:
        trials = {"tune": [candidate.trial_id for candidate in self.plan.candidates]}
        write_sweep_file(self.plan, self.options, trials)
        boards = [self._phase(self.plan, {"phase": "tune"}, last=not self.options.confirm)]
        choices: list[Choice] = []
        if self.options.confirm:
            choices = choose(self._tuned(), maximize=boards[0].maximize)
            plan, protocol = self._confirmation(choices)
            trials["confirm"] = [candidate.trial_id for candidate in plan.candidates]
            write_sweep_file(self.plan, self.options, trials)
            boards.append(self._phase(plan, protocol, last=True))
        return Ending(boards, self.failures, choices, self.plan.searched)

    def _phase(self, plan: Plan, protocol: dict[str, Any], *, last: bool) -> Board:
        search = self._search(plan, protocol["phase"])
        contents = [description.content for description in plan.descriptions.values()]
        self.team.tell("prefix", hint_for(contents, self.options.prefix_budget))
        finished = records_on_disk(self.store, plan)
        board = _board(plan, search, finished, self.team.count, protocol["phase"])
        view = StatusFile(self.view, self.options.output_dir / STATUS_FILE)
        spare = spare_time(plan, self.options, self.team, view) if last else SpareTime()
        shares = head_shares(plan, self.team, finished, alone=not self.storage.shared)
        dispatcher = Dispatcher(plan, search, self.team, self.store, self.options, board, view,
                                finished=finished, protocol=protocol, spare=spare, shares=shares)
        try:
            dispatcher.run()
            spare.end()
            board.elsewhere = search.ended_elsewhere(dispatcher.finished)
        finally:
            board.finished = time.monotonic()
            view.write(board, ended=True)
        self.failures += dispatcher.failures
        return board

    def _search(self, plan: Plan, phase: str) -> Search:
        owner = f"{socket.gethostname()}:{self.options.output_dir.resolve()}"
        return Search(self.storage, plan.spec, plan.study_name, maximize=plan.maximize, phase=phase, owner=owner,
                      search_seed=self.options.search_seed)

    def _tuned(self) -> list[Tuned]:
        """What tuning found. Records on disk speak for themselves; of other machines' trials the study knows."""
        tuned = []
        for trial_id, trial in self._search(self.plan, "tune").outcomes().items():
            record = self.store.load_complete(trial_id)
            facts, value = trial.user_attrs, trial.value
            if record is not None:
                value = outcome_of(record, self.plan.metric).value
            state = record.state if record is not None else trial.state.name.lower()
            if state == "complete" and value is not None and not facts.get("pruned"):
                tuned.append(Tuned(facts["values"], facts["setting_id"], facts["kind"], value))
        return tuned

    def _confirmation(self, choices: list[Choice]) -> tuple[Plan, dict[str, Any]]:
        """The plan of the fresh seeds. Raises EnvironmentProblem when tuning has left nothing to choose from."""
        if not choices:
            raise EnvironmentProblem("--confirm: no tuning trial is complete, so there is nothing to confirm")
        used = {seed for choice in choices for seed in choice.seeds} | self._tuning_seeds()
        seeds = fresh_seeds(used, self.options.confirm)
        self.view.say(f"confirming {len(choices)} chosen settings on {len(seeds)} fresh seeds each")
        plan = plan_confirmation(self.plan, confirmation_values(choices, seeds), self.team)
        return plan, {"phase": "confirm", "seeds": seeds, "tuning_seeds": sorted(used)}

    def _tuning_seeds(self) -> set[int]:
        return {TrialConfig.from_mapping(candidate.values).seed for candidate in self.plan.candidates}


def _board(plan: Plan, search: Search, finished: dict[str, TrialRecord], workers: int, phase: str) -> Board:
    already = [candidate for candidate in plan.candidates if candidate.trial_id in finished]
    board = Board(plan.spec.name, plan.metric, maximize=search.maximize, phase=phase, total=plan.total,
                  already=len(already), workers=workers)
    for candidate in already:
        outcome = outcome_of(finished[candidate.trial_id], plan.metric)
        if outcome.state == "complete" and outcome.value is not None:
            board.offer_best(outcome.value, label_of(candidate.values, plan.searched))
    board.pending = Counter(plan.descriptions[candidate.trial_id].kind for candidate in plan.candidates
                            if candidate.trial_id not in finished)
    return board


def share_checkpoints(output_dir: Path, folder: Path) -> None:
    """OUTPUT_DIR/checkpoints leads to the `folder` of all machines, unless one of its own is there already."""
    link = output_dir / CHECKPOINTS
    with disk_errors("a link to the shared checkpoints", link):
        folder.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.resolve() != folder.resolve():  # of another study
            link.unlink()
        if not link.exists():
            link.symlink_to(folder.resolve(), target_is_directory=True)


@contextmanager
def nothing_half_written(output_dir: Path, existed: bool) -> Iterator[None]:
    """A sweep that is refused or stopped before it begins leaves no directory behind where there was none."""
    try:
        yield
    except (ConfigError, DataError, Interrupted):
        if not existed and not (output_dir / SWEEP_FILE).exists():
            shutil.rmtree(output_dir, ignore_errors=True)
        raise


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
def team_for(spec: SweepSpec, options: SweepOptions, view: View, logs: Path,
             born: Newborn | None = None) -> Iterator[Team]:
    """Workers that end with this block: at once after an error, with time for a checkpoint after a signal."""
    machine = Machine.here()
    count = worker_count(machine, spec, options)
    with mps_for(len(machine.gpus), count, view.say, wanted=options.mps) as mps:
        team = Team(machine, count, task=options.task, logs=logs, ask_verdicts=spec.early_terminate is not None,
                    born=born, mps=mps)
        team.on_second_signal(view.close, exits=not options.from_python)
        with _ended(team, options, view):
            yield team


@contextmanager
def _ended(team: Team, options: SweepOptions, view: View) -> Iterator[None]:
    try:
        yield
    except Interrupted as interruption:
        begun = (options.output_dir / SWEEP_FILE).exists()
        if not begun:
            view.say("stopping: no trial has begun")
        team.close(interrupt=True, grace=options.stop_grace)
        same = "the same call" if options.from_python else "the same command"
        raise Interrupted(interruption.signum, f"{same} goes on where this one stopped" if begun else
                          f"nothing had begun; {same} starts it") from None
    except BaseException:
        team.close(interrupt=True)
        raise
    else:
        team.close(interrupt=False)


def planned_trials(spec: SweepSpec, options: SweepOptions) -> int:
    """An upper bound, known before anything is resolved."""
    return _points_and_trials(spec, options)[1]


def _points_and_trials(spec: SweepSpec, options: SweepOptions) -> tuple[list[Point], int]:
    points, _, open_ended = known_points(spec, options.search_seed, fixed_knobs(spec, options.output_dir))
    return points, (spec.run_cap or sys.maxsize) if open_ended else min(len(points), spec.run_cap or len(points))


def worker_count(machine: Machine, spec: SweepSpec, options: SweepOptions) -> int:
    """As asked for, or as many as fit; never more than there are trials, as far as that is known."""
    points, trials = _points_and_trials(spec, options)
    choose = machine.gpus and options.workers is None
    return machine.workers(options.workers, trials, weights_at_hand(p.config for p in points) if choose else None)
