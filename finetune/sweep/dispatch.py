"""Hands the trials of one search to the workers, listens to them, and publishes what they found.

Order of publication: predictions, record, study. Whatever is killed in between, the record decides on the next start.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from finetune.config import TrialConfig
from finetune.errors import ConfigError, EnvironmentProblem, Interrupted
from finetune.results import RecordStore, TrialRecord
from finetune.sweep.assignment import Assignment
from finetune.sweep.head_shares import HeadShares, NoShares
from finetune.sweep.plan import Description, Plan, SweepOptions
from finetune.sweep.search.search import Search
from finetune.sweep.search.trials import TakenOver, Ticket, outcome_of
from finetune.sweep.spare_time import SpareTime
from finetune.sweep.view.board import Board, Running, label_of, shown_value
from finetune.sweep.view.live import View
from finetune.sweep.workers.pool import Worker
from finetune.sweep.workers.team import Event, Team

TICK = 0.5  # seconds between looks at clocks and at the queue when nothing happens
# What may go better the next time; anything else (a non-finite loss, a bug) would only repeat itself.
WORTH_RETRYING = ("crash", "timeout", "out-of-memory", "RuntimeError", "AcceleratorError", "OSError", "MemoryError")
# After these the process can use its GPU no more, whosever kernel it was (with MPS also another worker's).
CONTEXT_IS_LOST = ("CUDA error", "cuDNN error")
MAX_REPEATS = 200  # draws in a row that repeat known trials: the space is exhausted


class Dispatcher:
    """Runs one search to its end. `finished` holds what is on disk, by trial_id, and grows."""

    def __init__(self, plan: Plan, search: Search, team: Team, store: RecordStore, options: SweepOptions,
                 board: Board, view: View, *, finished: dict[str, TrialRecord], protocol: Mapping[str, Any],
                 spare: SpareTime | None = None, shares: HeadShares | None = None):
        self.plan, self.search, self.team, self.store = plan, search, team, store
        self.options, self.board, self.view = options, board, view
        self.finished, self.protocol, self.spare = finished, protocol, spare or SpareTime()
        self.shares = shares or NoShares()
        self.failures: list[tuple[str, str]] = []  # label, reason
        self._busy: dict[Worker, Assignment] = {}
        self._again: deque[Assignment] = deque()
        self._noted: set[str] = set()
        self._target_reached = False
        self._repeats = 0
        self._next_heartbeat = 0.0

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until nothing waits and nothing runs, here or (with a shared study) elsewhere."""
        self._fill(retry_failed=True)
        try:
            while True:
                self._assign()
                if self._done():
                    return
                # The rest of the queue is written while the first trials train.
                for event in self.team.events(0.0 if self.search.fill_on() else TICK):
                    self._handle(event)
                self._look_at_clocks()
                self.view.show(self.board)
        except Interrupted:
            # Their checkpoints come first: who takes one of these trials over may go on from there.
            self.view.say("stopping: running trials write their checkpoints (Ctrl-C again: at once)")
            self.team.stop(self.options.stop_grace)
            raise
        finally:
            self._hand_back()

    def _fill(self, *, retry_failed: bool) -> None:
        outcomes = {trial_id: outcome_of(record, self.plan.metric) for trial_id, record in self.finished.items()}
        self.search.fill(self.plan.candidates, on_disk={trial_id: outcome for trial_id, outcome in outcomes.items()
                                                        if outcome.value is not None}, retry_failed=retry_failed)

    def _done(self) -> bool:
        return not self._in_hand() and self._nothing_left()

    def _nothing_left(self) -> bool:
        """Nobody here works. With a shared study others may, and may die doing it."""
        if self._over():
            return True
        if self.search.waiting() or self._may_draw() or self.search.running():
            return False
        if self.search.storage.shared:
            # A machine that died while it took a trial over has left that trial neither waiting nor running.
            self._fill(retry_failed=False)
        return not self.search.waiting()

    def _hand_back(self) -> None:
        """Interrupted or out of disk: what was running is queued again for the next coordinator."""
        with contextlib.suppress(EnvironmentProblem):  # the next coordinator finds out by itself
            for assignment in self._in_hand():
                self.search.release(assignment.ticket)
        self._busy.clear()
        self._again.clear()
        self.board.running.clear()

    def _in_hand(self) -> list[Assignment]:
        return [*self._busy.values(), *self._again]

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        limit = self.options.trial_timeout
        for worker, assignment in list(self._busy.items()):
            if limit is not None and now - assignment.since > limit:
                self._lost(worker, "timeout", f"ran longer than --trial_timeout {limit:g} s")
                self.team.remove(worker)
        if now >= self._next_heartbeat:
            self.search.heartbeat([assignment.ticket for assignment in self._in_hand()])
            self.search.take_over_stale()
            self._next_heartbeat = now + self.search.storage.heartbeat_seconds

    # -- handing out -----------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """A trial for every idle worker, and a worker for every trial while there is room."""
        while True:
            idle = [worker for worker in self.team.workers if worker.ready and worker not in self._busy]
            if not idle:
                if len(self.team.workers) == self.team.count:
                    return
                self.team.grow(len(self._busy) + len(self._again) + (0 if self._over() else self._wanted()))
                return
            assignment = self._next(idle[0])
            if assignment is None:
                if self._busy and self.finished:
                    self.spare.offer(idle[0])
                return
            self._start(idle[0], assignment)

    def _next(self, worker: Worker) -> Assignment | None:
        if self._again:
            return self._again.popleft()
        while not self._over():
            ticket = self.search.take(partial(self.shares.preferred, worker))
            if ticket is None and self._may_draw():
                ticket = self.search.draw()
            if ticket is None:
                return None
            assignment = self._assignment(ticket)
            if assignment is not None and not self._settled_by_disk(ticket):
                return assignment
        return None

    def _over(self) -> bool:
        return self._target_reached or self._repeats >= MAX_REPEATS

    def _may_draw(self) -> bool:
        return self._drawable() > 0

    def _wanted(self) -> int:
        """How many trials further workers could take."""
        return self.search.waiting() + self._drawable()

    def _drawable(self) -> int:
        """How many further points the search may ask for (a large number where there is no cap)."""
        if not self.plan.open_ended:
            return 0
        cap = self.search.spec.run_cap
        unresolved = sum(assignment.ticket.trial_id is None for assignment in self._in_hand())
        return self.team.count if cap is None else max(0, cap - self.search.asked_for() - unresolved)

    def _knows_what_follows(self) -> bool:
        """Whether the result at hand decides nothing about the next trial."""
        metric = self.search.spec.metric
        return not self.plan.open_ended and (metric is None or metric.target is None)

    def _assignment(self, ticket: Ticket) -> Assignment | None:
        """None (and a failed trial) for a drawn point that is no valid configuration."""
        label = label_of(ticket.values, self.plan.searched)
        try:
            config = TrialConfig.from_mapping({**ticket.values, **self.plan.fixed})
        except ConfigError as error:
            self._give_up(ticket, label, str(error))
            return None
        description = self.plan.descriptions.get(ticket.trial_id or "")
        return Assignment(ticket, config.model_dump(), label, description)

    def _settled_by_disk(self, ticket: Ticket) -> bool:
        record = self.finished.get(ticket.trial_id or "")
        if record is None:
            return False
        with contextlib.suppress(TakenOver):
            for epoch, value in outcome_of(record, self.plan.metric).curve.items():
                self.search.report(ticket, epoch, value)
        self._tell(ticket, record)
        return True

    def _start(self, worker: Worker, assignment: Assignment) -> None:
        self._busy[worker] = assignment
        self.shares.taken(assignment.ticket.trial_id)
        assignment.since = time.monotonic()
        kind = assignment.description.kind if assignment.description else ""
        self.board.running[worker.index] = Running(assignment.label, kind, assignment.since)
        if assignment.ticket.trial_id is None:
            worker.send("resolve", [(assignment.ticket.number, assignment.knobs)])
        else:
            self._run(worker, assignment)

    def _run(self, worker: Worker, assignment: Assignment) -> None:
        assignment.tries += 1
        self.board.pending[self.board.running[worker.index].kind] -= assignment.tries == 1
        worker.send("run", (assignment.knobs, {"sweep": self.search.spec.name,
                                         "protocol": self._protocol(assignment.knobs)}))

    def _protocol(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """What the sweep means a trial for, as its record says."""
        return dict(self.protocol)

    # -- listening -------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if event.kind == "noted":  # every worker notices that W&B is off, say: the user needs to know it once
            if event.content not in self._noted:
                self._noted.add(event.content)
                self.view.say(event.content)
            return
        assignment = self._busy.get(event.worker)
        if assignment is None:
            self.spare.hear(event)
            return
        running = self.board.running[event.worker.index]
        if event.kind == "stepped":
            running.step, running.steps, running.loss = event.content
            self.board.first_step = self.board.first_step or time.time()
        elif event.kind == "started":
            running.epochs, running.steps = event.content.get("total_epochs"), event.content.get("total_steps")
            assignment.description = Description(event.content)
        elif event.kind == "said":
            self.view.say(f"{assignment.label}: {event.content}")
        elif event.kind == "epoch":
            self._epoch(event.worker, assignment, running, event.content)
        elif event.kind in ("resolved", "refused"):
            self._resolved(event, assignment)
        elif event.kind == "finished":
            self._finished(event.worker, assignment, *event.content)
        elif event.kind == "failed":
            self._failed(event.worker, assignment, event.content)
        elif event.kind == "died":
            self._lost(event.worker, "crash", event.content, counts=not event.guiltless)

    def _epoch(self, worker: Worker, assignment: Assignment, running: Running, entry: Mapping[str, Any]) -> None:
        value = entry.get("validation", {}).get(self.plan.metric)
        running.epoch, running.value = entry["epoch"], value
        try:
            prune = value is not None and self.search.report(assignment.ticket, entry["epoch"], value)
        except TakenOver:
            self._drop(worker, assignment)
            return
        if self.plan.ask_verdicts:
            worker.send("verdict", "prune" if prune else "continue")

    def _drop(self, worker: Worker, assignment: Assignment) -> None:
        """Another machine runs this trial: what is done here is for nothing."""
        self._free(worker)
        self.team.remove(worker)
        self.view.say(f"{assignment.label}: another machine has taken this trial over; it is dropped here")

    def _resolved(self, event: Event, assignment: Assignment) -> None:
        """A drawn point turned out to be a trial, one that is known already, or none at all."""
        key, content = event.content
        ticket = assignment.ticket
        if event.kind == "refused":
            self._free(event.worker)
            self._give_up(ticket, assignment.label, "\n".join(content["problems"]))
            return
        assignment.description = Description(content)
        trial_id = assignment.description.trial_id
        repeats = trial_id in self.finished or self.search.knows(ticket, trial_id)
        self._repeats = self._repeats + 1 if repeats else 0
        if not repeats:
            self.search.resolved(ticket, trial_id, assignment.description.setting_id, assignment.description.kind)
            self._run(event.worker, assignment)
            return
        self._free(event.worker)
        ticket.trial_id = trial_id
        if not self._settled_by_disk(ticket):
            self.search.drop(ticket)

    # -- endings ---------------------------------------------------------------------------------------------------

    def _free(self, worker: Worker) -> Assignment:
        self.board.running.pop(worker.index, None)
        return self._busy.pop(worker)

    def _finished(self, worker: Worker, assignment: Assignment, content: dict[str, Any],
                  predictions: Mapping[str, np.ndarray]) -> None:
        record = TrialRecord.from_json(content)
        if record.trial_id != assignment.ticket.trial_id:
            self._free(worker)
            self._give_up(assignment.ticket, assignment.label, "data, model or study changed while the sweep ran; "
                          "start it again")
        elif record.state == "failed":
            error = record.error or {}
            self._free(worker)
            self._try_again_or_publish(assignment, record, error.get("kind", "error"), error.get("message", ""))
        else:
            self._free(worker)
            seconds = time.monotonic() - assignment.since
            if self._knows_what_follows():
                self._assign()  # the worker trains on while this result is written
            if self._publish(assignment, record, predictions):
                self._count(assignment, record, seconds)

    def _failed(self, worker: Worker, assignment: Assignment, error: Mapping[str, Any]) -> None:
        """run_trial raised instead of returning a record."""
        message = "\n".join(error["problems"])
        if error["type"] == "EnvironmentProblem":
            raise EnvironmentProblem(message)
        self._free(worker)
        if any(sign in message for sign in CONTEXT_IS_LOST):
            self.team.remove(worker)
        self._try_again_or_publish(assignment, None, error["type"], message)

    def _lost(self, worker: Worker, kind: str, message: str, *, counts: bool = True) -> None:
        """The worker died or was too slow. Its trial is taken over at once. `counts`: as one of its tries."""
        assignment = self._free(worker)
        assignment.tries -= not counts
        if assignment.ticket.trial_id is None:
            self._again.append(assignment)
        else:
            self._try_again_or_publish(assignment, None, kind, message)

    def _try_again_or_publish(self, assignment: Assignment, record: TrialRecord | None,
                              kind: str, message: str) -> None:
        left = self.options.retries + 1 - assignment.tries
        if kind in WORTH_RETRYING and left > 0:
            self.view.say(f"{assignment.label}: {kind}: {message}; trying again ({left} left)")
            self._again.append(assignment)
            return
        assert assignment.description is not None, "only a resolved trial runs"
        record = record or assignment.description.failed_record(assignment.knobs, kind, message)
        if self._publish(assignment, record, {}):
            self.board.failed += 1
            self.failures.append((assignment.label, f"{kind}: {message}"))
            self.view.say(f"{assignment.label}: failed: {kind}: {message}")

    def _publish(self, assignment: Assignment, record: TrialRecord, predictions: Mapping[str, np.ndarray]) -> bool:
        """Record first, then study. False when another machine took the trial over meanwhile."""
        record = record.model_copy(update={"sweep": self.search.spec.name,
                                           "protocol": self._protocol(assignment.knobs)})

        def operation() -> bool:
            with self.search.publishing(assignment.ticket) as ours:
                if ours:
                    sealed = self.store.publish(record, predictions)
                    if sealed.state != "failed":
                        self.finished[sealed.trial_id] = sealed
                    self._tell(assignment.ticket, sealed)
                return ours

        published = self.search.storage.patiently(operation)
        if not published:
            self.view.say(f"{assignment.label}: another machine has taken this trial over; it is dropped here")
        return published

    def _tell(self, ticket: Ticket, record: TrialRecord) -> None:
        value = outcome_of(record, self.plan.metric).value
        if record.state == "failed":
            self.search.failed(ticket, str(record.error))
        elif record.state == "pruned":
            self.search.pruned(ticket, value)
        elif value is None:
            self.search.failed(ticket, f"its record has no validation/{self.plan.metric}")
        else:
            self.search.complete(ticket, value)
            metric = self.search.spec.metric
            self._target_reached |= metric is not None and self.search.phase == "tune" and metric.reached(value)

    def _count(self, assignment: Assignment, record: TrialRecord, seconds: float) -> None:
        kind = assignment.description.kind if assignment.description else ""
        value = outcome_of(record, self.plan.metric).value
        if record.state == "pruned":
            self.board.pruned += 1
            self.view.say(f"{assignment.label}: pruned after epoch {len(record.history)}")
            return
        self.board.complete += 1
        self.board.durations[kind].append(seconds)
        if value is not None:
            self.board.offer_best(value, assignment.label)
        shown = "" if value is None else f" {self.board.metric} {shown_value(value)}"
        self.view.say(f"{assignment.label}:{shown} in {seconds:.0f} s")

    def _give_up(self, ticket: Ticket, label: str, reason: str) -> None:
        """A trial that cannot even have a record."""
        self.search.failed(ticket, reason)
        self.board.failed += 1
        self.failures.append((label, reason))
        self.view.say(f"{label}: failed: {reason}")
