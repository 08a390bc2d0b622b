"""Which of a sweep's heads each worker trains: a worker trains many together, and others need not train them again.

Without it every worker trains every head: trials are handed out one by one in turns, and each finds the next sixty
untrained. A share is a run of trials in the sweep's order; a trial is still handed out when its turn comes, recorded by
itself, and taken over by anybody when its worker is gone.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from finetune.sweep.plan import Plan
from finetune.sweep.workers.pool import Worker
from finetune.sweep.workers.team import Team

TOGETHER = 64  # heads that train at once where memory allows (trial/head_stacks.py)


class HeadShares:
    """`done`: trials that need no worker any more."""

    def __init__(self, plan: Plan, team: Team, done: Collection[str]):
        self._shared, own = plan.heads()
        self._own = {head.trial_id: knobs for head, knobs in zip(plan.head_candidates(), own, strict=True)}
        self._left = [trial_id for trial_id in self._own if trial_id not in done]
        self._team = team
        self._mine: dict[Worker, list[str]] = {}

    def preferred(self, worker: Worker, waiting: str) -> Collection[str]:
        """Where the first trial that waits is a head: those that `worker` takes first, of which it is told. Nothing
        where none are left to be shared out: it helps the others."""
        if waiting not in self._own:
            return ()
        for gone in [other for other in self._mine if other not in self._team.workers]:
            self._left = self._mine.pop(gone) + self._left
        if not self._mine.get(worker):
            # Smaller towards the end, so that all workers come to it together.
            count = min(TOGETHER, math.ceil(len(self._left) / self._team.count))
            self._mine[worker], self._left = self._left[:count], self._left[count:]
            if self._mine[worker]:
                worker.send("heads", (self._shared, [self._own[trial_id] for trial_id in self._mine[worker]]))
        return self._mine[worker]

    def taken(self, trial_id: str | None) -> None:
        """It is on its way, by whatever worker."""
        for share in (self._left, *self._mine.values()):
            if trial_id in share:
                share.remove(trial_id)


class NoShares(HeadShares):
    """Every worker takes the next trial that waits."""

    def __init__(self) -> None:
        self._own, self._left, self._mine = {}, [], {}


def head_shares(plan: Plan, team: Team, done: Collection[str], *, alone: bool) -> HeadShares:
    """`alone`: no other machine takes trials of this sweep. Heads train together on GPUs; where they are not shared
    out, every worker is told of all."""
    if alone and team.machine.gpus and team.count > 1:
        return HeadShares(plan, team, done)
    if team.machine.gpus:
        team.tell("heads", plan.heads())
    return NoShares()
