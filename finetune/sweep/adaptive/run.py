"""An adaptive sweep from its plan to its verdict."""

from __future__ import annotations

import socket
import time
from statistics import fmean
from typing import Any

from finetune.errors import EnvironmentProblem
from finetune.files import digest_of
from finetune.prefix.budget import hint_for
from finetune.results import RecordStore
from finetune.sweep.adaptive.dispatch import AdaptiveDispatcher, with_own_descriptions
from finetune.sweep.adaptive.evidence import Finished
from finetune.sweep.adaptive.path import Path
from finetune.sweep.adaptive.space import CONFIRM, TUNE, space_of
from finetune.sweep.adaptive.words import deciding, ending, look_text, section
from finetune.sweep.kept import STATUS_FILE, StatusFile, records_on_disk, write_sweep_file
from finetune.sweep.plan import Plan, SweepOptions
from finetune.sweep.search.confirmation import Choice
from finetune.sweep.search.search import Search
from finetune.sweep.storages import StudyStorage
from finetune.sweep.view.board import Board
from finetune.sweep.view.live import View
from finetune.sweep.workers.team import Team


class AdaptiveSweep:
    """One search, one board: tuning and confirming trials of the depths on the way."""

    def __init__(self, plan: Plan, options: SweepOptions, team: Team, storage: StudyStorage, view: View):
        self.plan, self.options, self.team, self.storage = with_own_descriptions(plan), options, team, storage
        self.space = space_of(plan, options.max_seeds)
        self.store = RecordStore(options.output_dir)
        self.view = StatusFile(view, options.output_dir / STATUS_FILE)
        self.board = Board(plan.spec.name, plan.metric, maximize=plan.maximize, phase="adaptive", total=None,
                           workers=team.count)
        self.section: dict[str, Any] = {}
        self._trials: dict[str, list[str]] = {}
        self._said: list[str] = []
        self._known: tuple[Path, Finished] | None = None

    def run(self) -> tuple[Board, list[tuple[str, str]]]:
        """(board, failures). Raises EnvironmentProblem where full fine-tuning has no result."""
        contents = [description.content for description in self.plan.descriptions.values()]
        self.team.tell("prefix", hint_for(contents, self.options.prefix_budget))
        if self.team.machine.gpus:
            self.team.tell("heads", self.plan.heads())
        finished = records_on_disk(self.store, self.plan)
        self.board.already = len(finished)
        dispatcher = AdaptiveDispatcher(self.plan, self._search(), self.team, self.store, self.options, self.board,
                                        self.view, finished=finished, protocol={}, space=self.space,
                                        on_path=self._note)
        try:
            dispatcher.run()
        finally:
            self.board.finished = time.monotonic()
            self.view.write(self.board, ended=True)
        self.section["trained_ahead_unused"] = self._ahead_for_nothing(dispatcher.evidence)
        if dispatcher.path.hopeless:
            reasons = "; ".join(dict.fromkeys(reason for _, reason in dispatcher.failures))
            raise EnvironmentProblem(f"{ending(self.space, dispatcher.path)} ({reasons or 'no trial has ended well'})")
        return self.board, dispatcher.failures

    def _search(self) -> Search:
        """Its own study: another margin or another number of seeds asks for other trials."""
        kind = digest_of([self.space.margin, self.space.max_seeds])
        owner = f"{socket.gethostname()}:{self.options.output_dir.resolve()}"
        return Search(self.storage, self.plan.spec, f"{self.plan.study_name}-adaptive-{kind[:12]}",
                      maximize=self.plan.maximize, phase="adaptive", owner=owner)

    def _note(self, path: Path, evidence: Finished) -> None:
        """Say what is new, and keep sweep.json as it stands."""
        self._known = (path, evidence)
        self.board.deciding = deciding(self.space, path)
        lines = [f"adaptive: {look_text(depth, decision, self.space.num_layers, self.space.metric)}"
                 for depth, decision in path.decisions]
        for line in lines[len(self._said):]:
            self.view.say(line)
        self._said = lines
        trials = {phase: [evidence.ids[wish] for wish in path.asked if wish.phase == phase and wish in evidence.ids]
                  for phase in (TUNE, CONFIRM)}
        content = section(self.space, path)
        if (content, trials) != (self.section, self._trials):
            self.section, self._trials = content, trials
            self._write(evidence)

    def _ahead_for_nothing(self, evidence: Finished) -> int:
        return len(evidence.trained() - {trial_id for ids in self._trials.values() for trial_id in ids})

    def _write(self, evidence: Finished) -> None:
        content = {**self.section, "trained_ahead_unused": self._ahead_for_nothing(evidence)}
        write_sweep_file(self.plan, self.options, self._trials, adaptive=content)

    def choices(self) -> list[Choice]:
        """The setting that tuning chose for each depth on the way."""
        assert self._known is not None
        path, evidence = self._known
        return [self._choice(depth, setting_id, path, evidence) for depth, setting_id in path.chosen.items()]

    def _choice(self, depth: int, setting_id: str, path: Path, evidence: Finished) -> Choice:
        asked = [wish for wish in path.asked if wish.phase == TUNE and wish.depth == depth]
        mine = [wish for wish in asked if wish.setting_id == setting_id]
        values = {name: value for name, value in self.space.values(mine[0]).items() if name != "seed"}
        kind = self.space.tuning[depth][setting_id][mine[0].seed].kind
        return Choice(values, kind, fmean(evidence.score(wish) for wish in mine), tuple(wish.seed for wish in mine),
                      len({wish.setting_id for wish in asked}))
