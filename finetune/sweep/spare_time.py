"""What a worker does that has nothing left to train while others have: the layer probe. It never prolongs a sweep."""

from __future__ import annotations

from pathlib import Path

from finetune.files import atomic_write
from finetune.sweep.plan import Plan, SweepOptions
from finetune.sweep.view.live import View
from finetune.sweep.workers.pool import Worker
from finetune.sweep.workers.team import Event, Team

PROBE_FILE = "probe.json"


class SpareTime:
    """Nothing to do in it."""

    def offer(self, worker: Worker) -> None:
        """`worker` is idle, and all that is left is with others."""

    def hear(self, event: Event) -> None:
        """News of a worker that trains nothing."""

    def end(self) -> None:
        """The last trial is done: what is not finished now never will be."""


class ProbeInSpareTime(SpareTime):
    """Linear probes on every depth's features, once, for a sweep over depths; a picture for the report, no result."""

    def __init__(self, folder: Path, team: Team, view: View):
        self._path, self._team, self._view = folder / PROBE_FILE, team, view
        self._wanted = not self._path.exists()
        self._worker: Worker | None = None

    def offer(self, worker: Worker) -> None:
        if self._wanted:
            self._wanted, self._worker, worker.ready = False, worker, False
            worker.send("probe", self._path.parent)

    def hear(self, event: Event) -> None:
        if event.worker is not self._worker:
            return
        self._worker = None
        if event.kind == "probed":
            event.worker.ready = True
            found, reason = event.content
            if found is None:
                self._view.say(f"no layer probe: {reason}")
            else:
                atomic_write(self._path, found, "the layer probe")

    def end(self) -> None:
        if self._worker in self._team.workers:
            self._team.remove(self._worker)
        self._worker = None


def spare_time(plan: Plan, options: SweepOptions, team: Team, view: View) -> SpareTime:
    """The probe belongs to a sweep over depths whose records are all in one place."""
    probes = "freeze_depth" in plan.searched and options.task == SweepOptions.task and options.storage is None
    return ProbeInSpareTime(options.output_dir, team, view) if probes else SpareTime()
