"""Hands out what the next decision needs, and where a worker would idle, what a later one is likely to need."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from finetune.config import TrialConfig
from finetune.prefix.budget import hint_for
from finetune.results import TrialRecord
from finetune.sweep.adaptive.evidence import Finished
from finetune.sweep.adaptive.path import Path, ahead, walk
from finetune.sweep.adaptive.space import CONFIRM, Space, Wish
from finetune.sweep.dispatch import Assignment, Dispatcher
from finetune.sweep.plan import Plan, resolve_on
from finetune.sweep.search.trials import Candidate, Ticket, outcome_of
from finetune.sweep.spec.points import Point
from finetune.sweep.workers.pool import Worker
from finetune.sweep.workers.team import Event


class AdaptiveDispatcher(Dispatcher):
    """One dispatcher for all phases, so that no worker waits between them. `on_path` hears of every new path."""

    def __init__(self, plan: Plan, *rest: Any, space: Space, on_path: Callable[[Path, Finished], None], **named: Any):
        super().__init__(plan, *rest, **named)
        self.space, self._on_path = space, on_path
        self.evidence = Finished(space, self.store, self.search, self.finished)
        self.path = Path(now=0)
        self._filled: set[Wish] = set()
        self._candidates: dict[str, Candidate] = {}
        for depth, settings in space.tuning.items():
            for name, trials in settings.items():
                for seed, candidate in trials.items():
                    self.evidence.ids[Wish("tune", depth, name, seed)] = candidate.trial_id
                    self._candidates[candidate.trial_id] = candidate

    # -- what is asked for -----------------------------------------------------------------------------------------

    def _fill(self, *, retry_failed: bool) -> None:
        """Queue again what was asked for and is nowhere: not waiting, not running, not done."""
        self._look()
        self._queue(self._filled, retry_failed=retry_failed)

    def _look(self) -> Path:
        self.evidence.look_elsewhere()
        self.path = walk(self.space, self.evidence)
        self._on_path(self.path, self.evidence)
        return self.path

    def _next(self, worker: Worker) -> Assignment | None:
        while True:
            found = None if self._over() else super()._next(worker)
            if found is not None or not self._ask_for_more():
                return found

    def _ask_for_more(self) -> bool:
        """Queue what is needed, else one trial that may be. False where there is nothing to ask for."""
        path = self._look()
        if path.done:
            return False
        wishes = [wish for wish in path.needed if wish not in self._filled] or self._one_ahead()
        if not wishes or not self._resolve(wishes):
            return False
        self._filled.update(wishes)
        self._queue(wishes, retry_failed=True)
        return True

    def _one_ahead(self) -> list[Wish]:
        likely = (wish for wish in ahead(self.space, self.evidence, self.path)
                  if wish not in self._filled and not self.evidence.ended(wish))
        return list(itertools.islice(likely, 1))

    def _queue(self, wishes: Iterable[Wish], *, retry_failed: bool) -> None:
        candidates = [self._candidates[self.evidence.ids[wish]] for wish in wishes]
        outcomes = {trial_id: outcome_of(record, self.plan.metric) for trial_id, record in self.finished.items()}
        self.search.fill(candidates, on_disk={trial_id: outcome for trial_id, outcome in outcomes.items()
                                              if outcome.value is not None}, retry_failed=retry_failed)

    def _resolve(self, wishes: list[Wish]) -> bool:
        """Learn the trial_ids of fresh seeds, on a worker that is idle. False where none is."""
        unknown = [wish for wish in wishes if wish not in self.evidence.ids]
        worker = next((worker for worker in self.team.workers if worker not in self._busy), None)
        if not unknown or worker is None:
            return not unknown
        values = [self.space.values(wish) for wish in unknown]
        points = [Point(knobs, TrialConfig.from_mapping({**knobs, **self.plan.fixed})) for knobs in values]
        for wish, point, found in zip(unknown, points, resolve_on(worker, points, self.team), strict=True):
            self.evidence.ids[wish] = found.trial_id
            self._candidates[found.trial_id] = Candidate(found.trial_id, point.values, None, found.setting_id,
                                                         found.kind)
            self.plan.descriptions[found.trial_id] = found
            self._recall(found.trial_id)
        contents = [description.content for description in self.plan.descriptions.values()]
        self.team.tell("prefix", hint_for(contents, self.options.prefix_budget))
        return True

    def _recall(self, trial_id: str) -> None:
        """A fresh seed's result that an earlier run has left; one that failed is tried again."""
        record = None if trial_id in self.finished else self.store.load_complete(trial_id)
        if record is not None and record.state != "failed":
            self.finished[trial_id] = record
            self.board.already += 1
            if self.search.storage.shared:
                self.evidence.share(record)

    # -- how it goes -----------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        return self.path.done

    def _knows_what_follows(self) -> bool:
        return False

    def _wanted(self) -> int:
        return self.team.count  # a worker that is not needed trains ahead

    def _nothing_left(self) -> bool:
        if self.search.storage.shared and not self.search.waiting() and not self.search.running():
            self._fill(retry_failed=False)  # a machine died while it took a trial over
        return self.path.done

    def _done(self) -> bool:
        if not self.path.done:
            return super()._done()
        for worker, assignment in list(self._busy.items()):  # trained ahead for nothing
            self._free(worker)
            self.team.remove(worker)
            self.search.drop(assignment.ticket)
        return True

    def _protocol(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        phase = self.space.phase_of(int(knobs["seed"]))
        known = {"seeds": list(self.space.fresh), "tuning_seeds": list(self.space.tuning_seeds)}
        return {"phase": phase, **(known if phase == CONFIRM else {})}

    def _handle(self, event: Event) -> None:
        super()._handle(event)
        if event.kind in ("finished", "failed", "died"):
            self._look()

    def _tell(self, ticket: Ticket, record: TrialRecord) -> None:
        if record.state == "failed":
            self.evidence.gone.add(record.trial_id)
        elif self.search.storage.shared and self._protocol(record.config)["phase"] == CONFIRM:
            self.evidence.share(record)
        super()._tell(ticket, record)

    def _give_up(self, ticket: Ticket, label: str, reason: str) -> None:
        super()._give_up(ticket, label, reason)
        if ticket.trial_id is not None:
            self.evidence.gone.add(ticket.trial_id)


def with_own_descriptions(plan: Plan) -> Plan:
    """A plan that may learn of further trials without changing the one that it was made from."""
    return replace(plan, descriptions=dict(plan.descriptions))
