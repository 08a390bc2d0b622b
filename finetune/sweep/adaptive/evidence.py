"""What finished trials say: from the records on this disk, and of other machines' trials from the shared study."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from analysis.statistics import paired, sequential
from analysis.statistics.paired import Answers
from analysis.statistics.sequential import Decision
from finetune.errors import EnvironmentProblem
from finetune.results import CorruptRecord, RecordStore, TrialRecord, predictions_bytes
from finetune.sweep.adaptive.space import Space, Wish
from finetune.sweep.search.search import Search
from finetune.training.evaluation import higher_is_better

SPLIT = "test"


class Finished:
    """The evidence of one coordinator. `records` {trial_id: complete or pruned record} grows while it works."""

    def __init__(self, space: Space, store: RecordStore, search: Search, records: Mapping[str, TrialRecord]):
        self.space, self.store, self.search, self.records = space, store, search, records
        self.ids: dict[Wish, str] = {}  # resolved so far
        self.gone: set[str] = set()  # failed for good in this run
        self._elsewhere: dict[str, FrozenTrial] = {}
        self._answers: dict[str, Answers] = {}
        self._decisions: dict[tuple[str, ...], Decision] = {}

    def look_elsewhere(self) -> None:
        """What other machines have done meanwhile; without a shared study there are none."""
        if self.search.storage.shared:
            self._elsewhere = self.search.outcomes()

    def ended(self, wish: Wish) -> bool:
        trial_id = self.ids.get(wish)
        return trial_id is not None and (trial_id in self.records or trial_id in self.gone
                                         or self._ended_there(trial_id))

    def _ended_there(self, trial_id: str) -> bool:
        trial = self._elsewhere.get(trial_id)
        return trial is not None and (trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
            trial.state == TrialState.FAIL and bool(trial.user_attrs.get("final"))))

    def trained(self) -> set[str]:
        """The trials of this search that have ended, whoever trained them."""
        return {trial_id for trial_id, trial in self.search.outcomes().items()
                if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)}

    def score(self, wish: Wish) -> float:
        trial_id = self.ids[wish]
        record = self.records.get(trial_id)
        if record is not None:
            value = record.metrics.get("validation", {}).get(self.space.tuned_by)
            return float(value) if record.state == "complete" and value is not None else math.nan
        trial = self._elsewhere.get(trial_id)
        return trial.value if trial is not None and trial.state == TrialState.COMPLETE else math.nan

    def decide(self, full: list[Wish], frozen: list[Wish]) -> Decision:
        """Raises EnvironmentProblem where a complete trial has no predictions of the test split."""
        key = tuple(self.ids[wish] + str(self._complete(wish)) for wish in (*full, *frozen))
        if key not in self._decisions:
            self._decisions[key] = self._decide(full, frozen)
        return self._decisions[key]

    def _decide(self, full: list[Wish], frozen: list[Wish]) -> Decision:
        pairs = [pair for pair in zip(full, frozen, strict=True) if all(map(self._complete, pair))]
        seeds, lost, space = len(full), len(full) - len(pairs), self.space
        if not pairs:
            return sequential.without_result(seeds, space.looks.index(seeds) + 1)
        parts = paired.losses([self._read(a) for a, _ in pairs], [self._read(b) for _, b in pairs], metric=space.metric,
                              task=space.task, higher_is_better=higher_is_better(space.metric))
        return sequential.decide(parts, space.margin, space.alpha, space.max_seeds, seeds=seeds, lost=lost)

    def _complete(self, wish: Wish) -> bool:
        record, trial = self.records.get(self.ids[wish]), self._elsewhere.get(self.ids[wish])
        if record is not None:
            return record.state == "complete" and record.metrics.get("validation", {}).get(
                self.space.tuned_by) is not None
        return trial is not None and trial.state == TrialState.COMPLETE

    def _read(self, wish: Wish) -> Answers:
        trial_id = self.ids[wish]
        if trial_id not in self._answers:
            record = self.records.get(trial_id)
            arrays = self._of_record(record) if record is not None else self._of_study(trial_id)
            answers = Answers.of(arrays, SPLIT)
            if answers is None:
                raise EnvironmentProblem(f"trial {trial_id[:12]} (freeze_depth {wish.depth}, seed {wish.seed}) has no "
                                         "predictions of the test rows, by which --adaptive decides; remove its folder "
                                         f"{self.store.folder(trial_id)}, and the same command trains it again")
            self._answers[trial_id] = answers
        return self._answers[trial_id]

    def _of_record(self, record: TrialRecord) -> Mapping[str, np.ndarray]:
        try:
            return self.store.predictions(record) if record.files else {}
        except CorruptRecord:
            return {}

    def share(self, record: TrialRecord) -> None:
        """Let the other machines decide by this confirming trial too: its answers go into the study."""
        answers = Answers.of(self._of_record(record), SPLIT)
        if answers is not None:
            packed = predictions_bytes({f"{SPLIT}_{name}": part for name, part in answers._asdict().items()})
            self.search.keep(_name(record.trial_id), base64.b64encode(packed).decode())

    def _of_study(self, trial_id: str) -> Mapping[str, np.ndarray]:
        packed = self.search.kept(_name(trial_id))
        if packed is None:
            return {}
        with np.load(io.BytesIO(base64.b64decode(packed)), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _name(trial_id: str) -> str:
    return f"answers:{trial_id}"
