"""The search: an Optuna study that says which trial is next, hands each out once, and remembers how it ended.

Only the coordinator talks to it, one call at a time. Known points (a grid, the draws of a random search) are queued
beforehand, complete and without duplicates; bayes and an endless random search draw further points one by one.
A study is a queue and a memory for the search. Results are read from the records on disk, never from here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from finetune.files import digest_of
from finetune.sweep.search.hyperband import should_stop
from finetune.sweep.search.space import distributions_of, plain
from finetune.sweep.search.trials import Candidate, Outcome, TakenOver, Ticket
from finetune.sweep.spec.points import draw, values_at
from finetune.sweep.spec.schema import SweepSpec
from finetune.sweep.storages.base import StudyStorage

STARTUP_POINTS = 10  # bayes: random draws before the Gaussian process has something to learn from
QUEUED_AT_ONCE = 4  # of many candidates, before the first one is handed out
_LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
_ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)

Preference = Callable[[str], Collection[str]]


class Search:
    """One study. Raises EnvironmentProblem when its storage is gone."""

    def __init__(self, storage: StudyStorage, spec: SweepSpec, name: str, *, maximize: bool = True,
                 search_seed: int = 0, phase: str = "tune", owner: str = ""):
        self.storage, self.spec, self.search_seed, self.phase = storage, spec, search_seed, phase
        self.name, self.maximize = name, maximize
        self._owner = owner  # machine and output directory: whose records are on this disk
        self._lock_key = int(digest_of(name)[:7], 16)
        # Confirming trials have seeds that are in no list of the YAML, and nothing is searched for any more.
        self._distributions = distributions_of(spec) if phase == "tune" else {}
        self.study = storage.patiently(self._open)
        self._study_key = storage.patiently(lambda: storage.optuna.get_study_id_from_name(name))
        self._known: dict[str, Candidate] = {}
        self._filled = False  # once: what runs from then on is run here
        self._later: deque[Candidate] = deque()  # alone: to be queued, while nobody else could take them
        # Alone: (key, trial_id) of the waiting trials, read once, since nobody else takes them.
        self._queue: deque[tuple[int, str]] | None = None

    def _open(self) -> optuna.Study:
        return optuna.create_study(
            storage=self.storage.optuna, study_name=self.name, load_if_exists=True,
            direction="maximize" if self.maximize else "minimize",
            sampler=optuna.samplers.RandomSampler(seed=self.search_seed),
        )

    # -- filling ---------------------------------------------------------------------------------------------------

    def fill(self, candidates: Sequence[Candidate], *, on_disk: Mapping[str, Outcome], retry_failed: bool) -> None:
        """Queue every candidate that is neither waiting, running nor done. Idempotent, whoever else fills or dies.

        `on_disk`: what the records here say. A candidate with a record is added as done; what the study calls done
        by us without a record is queued again. `retry_failed`: also queue what failed for good in an earlier run.

        A trial takes Optuna milliseconds: alone, the first ones are queued now and the others by `fill_on`, while those
        train. A coordinator that dies in between leaves the rest to the next one's `fill`.
        """
        self._known.update({candidate.trial_id: candidate for candidate in candidates})
        self.storage.patiently(lambda: self._fill(candidates, on_disk, retry_failed))

    def _fill(self, candidates: Sequence[Candidate], on_disk: Mapping[str, Outcome], retry_failed: bool) -> None:
        with self.storage.alone(self._lock_key):
            if not self.storage.shared and not self._filled:
                self._return_orphans()
            self._filled = True
            trials = [trial for trial in self._trials() if "trial_id" in trial.user_attrs]
            lost = [trial for trial in trials if self._is_lost(trial, on_disk)]
            present = {trial.user_attrs["trial_id"] for trial in trials
                       if trial not in lost and self._counts(trial, retry_failed)}
            recovered = [_candidate(trial) for trial in lost]  # a drawn point is in no list of candidates
            missing = [candidate for candidate in {c.trial_id: c for c in [*recovered, *candidates]}.values()
                       if candidate.trial_id not in present and candidate not in self._later]
            for candidate in missing:
                if candidate.trial_id in on_disk:  # hyperband compares with all that is done
                    self._enqueue(candidate, on_disk[candidate.trial_id])
            self._later.extend(candidate for candidate in missing if candidate.trial_id not in on_disk)
            while self._later and (self.storage.shared or len(self._queued()) < QUEUED_AT_ONCE):
                self._enqueue(self._later.popleft(), None)

    def fill_on(self) -> bool:
        """Queue one more of the candidates that `fill` has left for later; False when none is left."""
        if self._later:
            self.storage.patiently(lambda: self._enqueue(self._later[0], None))
            self._later.popleft()
        return bool(self._later)

    def _return_orphans(self) -> None:
        """Alone, whoever ran a trial is dead: this coordinator holds the lock."""
        for trial in self._trials(TrialState.RUNNING):
            self._requeue(trial)
            self._set_failed(trial._trial_id)

    def _is_lost(self, trial: FrozenTrial, on_disk: Mapping[str, Outcome]) -> bool:
        ours = not self.storage.shared or trial.user_attrs.get("owner") == self._owner
        return trial.state in _ENDED_WELL and ours and trial.user_attrs["trial_id"] not in on_disk

    def _counts(self, trial: FrozenTrial, retry_failed: bool) -> bool:
        return trial.state in _LIVE or (bool(trial.user_attrs.get("final")) and not retry_failed)

    def _enqueue(self, candidate: Candidate, outcome: Outcome | None) -> None:
        attributes = candidate.attributes()
        known: dict[str, Any] = {"state": TrialState.WAITING}
        if outcome is not None:
            attributes["owner"] = self._owner
            known = {"state": TrialState.COMPLETE if outcome.state == "complete" else TrialState.PRUNED,
                     "value": outcome.value, "intermediate_values": dict(outcome.curve)}
        self._add(create_trial(**known, user_attrs=attributes, params=self._shown(candidate),
                               distributions=self._distributions))

    def _requeue(self, trial: FrozenTrial) -> None:
        """A waiting copy of a trial, its curve included: it may go on from a checkpoint."""
        if trial.user_attrs.get("trial_id") is None:  # drawn, but never resolved: nobody waits for it
            return
        self._add(create_trial(state=TrialState.WAITING, user_attrs=trial.user_attrs, params=trial.params,
                               distributions=trial.distributions, intermediate_values=trial.intermediate_values))

    def _add(self, trial: FrozenTrial) -> None:
        key = self.storage.optuna.create_new_trial(self._study_key, template_trial=trial)
        if trial.state == TrialState.WAITING:
            self.storage.queued(key)
            if self._queue is not None:
                self._queue.append((key, trial.user_attrs["trial_id"]))

    def _shown(self, candidate: Candidate) -> dict[str, Any]:
        """What a dashboard shows as the trial's parameters: values of a grid, u of a search."""
        if candidate.u is not None:
            return dict(candidate.u)
        return {name: plain(candidate.values[name], choices.choices)
                for name, choices in self._distributions.items() if isinstance(choices, CategoricalDistribution)}

    # -- handing out -----------------------------------------------------------------------------------------------

    def take(self, preferred: Preference | None = None) -> Ticket | None:
        """The next waiting trial, now running here; None when none waits. `preferred`: of the first one's trial_id,
        which are to be taken before it; heeded where nobody else takes any."""
        return self.storage.patiently(lambda: self._take(preferred))

    def _take(self, preferred: Preference | None) -> Ticket | None:
        while self._waiting():
            with self.storage.together(self._lock_key):
                trial = self._ask(preferred)
                attributes = trial.user_attrs
                if "trial_id" not in attributes:  # another coordinator was faster: this one was made up on the spot
                    self._set_failed(trial._trial_id)
                    continue
                self.storage.heartbeat(trial._trial_id)
            if self._done_elsewhere(trial):
                self._set_failed(trial._trial_id)
                continue
            return self._ticket(trial, attributes)
        return None

    def _ask(self, preferred: Preference | None) -> optuna.Trial:
        """The next waiting trial. `study.ask` reads every unfinished trial for it: a second each of a thousand."""
        if self.storage.shared:
            return self.study.ask()
        chosen = self._chosen(preferred)
        self.storage.optuna.set_trial_state_values(chosen[0], TrialState.RUNNING)
        self._queue.remove(chosen)
        return optuna.Trial(self.study, chosen[0])

    def _chosen(self, preferred: Preference | None) -> tuple[int, str]:
        queue = self._queued()
        wanted = preferred(queue[0][1]) if preferred else ()
        for entry in queue if wanted else ():
            if entry[1] in wanted:
                return entry
        for candidate in self._later if wanted else ():
            if candidate.trial_id in wanted:
                self._enqueue(candidate, None)
                self._later.remove(candidate)
                return queue[-1]
        return queue[0]

    def _waiting(self) -> int:
        if self.storage.shared:
            return len(self._trials(TrialState.WAITING))
        if self._later and not self._queued():
            self._enqueue(self._later.popleft(), None)
        return len(self._queued()) + len(self._later)

    def _queued(self) -> deque[tuple[int, str]]:
        if self._queue is None:
            self._queue = deque((trial._trial_id, trial.user_attrs.get("trial_id", ""))
                                for trial in self._trials(TrialState.WAITING))
        return self._queue

    def _ticket(self, trial: optuna.Trial, attributes: Mapping[str, Any]) -> Ticket:
        known = self._known.get(attributes["trial_id"])
        values = known.values if known else attributes["values"]
        return Ticket(trial, dict(values), attributes.get("u"), attributes["trial_id"])

    def _done_elsewhere(self, trial: optuna.Trial) -> bool:
        """Two machines may have queued a copy of the same lost trial; one of them has finished it."""
        if not self.storage.shared:
            return False
        trial_id = trial.user_attrs["trial_id"]
        return any(other.user_attrs.get("trial_id") == trial_id and other.number != trial.number
                   for other in self._trials(TrialState.RUNNING, *_ENDED_WELL))

    def draw(self) -> Ticket:
        """A new point of a bayes or endless random search, running here. It still has to be resolved."""
        return self.storage.patiently(self._draw)

    def _draw(self) -> Ticket:
        seen = len(self._trials())
        self._queue = None  # what is asked for here may be a waiting one
        if self.spec.method == "bayes":
            # Seeded anew from what has been asked: after a restart the same point is not suggested again.
            self.study.sampler = _gaussian_process(self.search_seed + seen)
        with self.storage.together(self._lock_key):
            trial = self.study.ask(fixed_distributions=dict(self._distributions) if self.spec.method == "bayes" else {})
            self.storage.heartbeat(trial._trial_id)
        if "trial_id" in trial.user_attrs:  # a waiting trial came first
            return self._ticket(trial, trial.user_attrs)
        u = dict(trial.params) if self.spec.method == "bayes" else draw(self.spec, self.search_seed, trial.number)
        inside = {name: min(max(position, 1e-12), 1 - 1e-12) for name, position in u.items()}  # some quantiles end at 0
        return Ticket(trial, values_at(self.spec, inside), u)

    def resolved(self, ticket: Ticket, trial_id: str, setting_id: str, kind: str) -> None:
        """Remember what a drawn point turned out to be, so that it can be taken over."""
        ticket.trial_id = trial_id
        candidate = Candidate(trial_id, ticket.values, ticket.u, setting_id, kind)
        for name, value in candidate.attributes().items():
            self.storage.patiently(lambda name=name, value=value: ticket.trial.set_user_attr(name, value))

    # -- while it runs ---------------------------------------------------------------------------------------------

    def report(self, ticket: Ticket, epoch: int, value: float) -> bool:
        """Note the metric after an epoch (from 1). True: hyperband ends the trial here.

        Raises TakenOver when another machine has given this one up.
        """
        try:
            return self.storage.patiently(lambda: self._report(ticket, epoch, value))
        except optuna.exceptions.UpdateFinishedTrialError as error:
            raise TakenOver(ticket.trial_id) from error

    def _report(self, ticket: Ticket, epoch: int, value: float) -> bool:
        self.storage.optuna.set_trial_intermediate_value(ticket.key, epoch, value)
        rule = self.spec.early_terminate
        if rule is None or self.phase != "tune":
            return False
        histories = {trial._trial_id: _history(trial) for trial in self._trials(TrialState.RUNNING, *_ENDED_WELL)}
        return should_stop(rule, histories[ticket.key], list(histories.values()), maximize=self.maximize)

    def heartbeat(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self.storage.patiently(lambda key=ticket.key: self.storage.heartbeat(key))

    def take_over_stale(self) -> None:
        """Queue again what silent machines were running. Skipped while somebody publishes; the next round does it."""
        if self.storage.shared:
            self.storage.patiently(self._take_over_stale)

    def _take_over_stale(self) -> None:
        with self.storage.alone_if_free(self._lock_key) as mine:
            if mine:
                fail_stale_trials(self.study)
                for trial in self._trials(TrialState.WAITING):
                    self.storage.queued(trial._trial_id)

    @contextmanager
    def publishing(self, ticket: Ticket) -> Iterator[bool]:
        """Whether the trial is still ours; while inside, no other machine can take it over."""
        with self.storage.together(self._lock_key):
            state = self.storage.optuna.get_trial(ticket.key).state
            yield state == TrialState.RUNNING

    # -- how it ended ----------------------------------------------------------------------------------------------

    def complete(self, ticket: Ticket, value: float) -> None:
        self._tell(ticket, TrialState.COMPLETE, value)

    def pruned(self, ticket: Ticket, value: float | None) -> None:
        """W&B's search learns from stopped runs too; Optuna's Gaussian process only from complete ones."""
        if self.spec.method == "bayes" and value is not None:
            self._tell(ticket, TrialState.COMPLETE, value, pruned=True)
        else:
            self._tell(ticket, TrialState.PRUNED, None)

    def failed(self, ticket: Ticket, reason: str) -> None:
        """Given up for good (until the sweep is started again)."""
        self._tell(ticket, TrialState.FAIL, None, final=True, reason=reason[:2000])

    def release(self, ticket: Ticket) -> None:
        """Back into the queue, for the next coordinator."""
        def operation() -> None:
            with self.storage.alone(self._lock_key):
                frozen = self.storage.optuna.get_trial(ticket.key)
                if frozen.state == TrialState.RUNNING:
                    self._requeue(frozen)
                    self._set_failed(ticket.key)

        self.storage.patiently(operation)

    def drop(self, ticket: Ticket) -> None:
        """A drawn point that repeats a trial which is already running or done."""
        self._tell(ticket, TrialState.FAIL, None)

    def _tell(self, ticket: Ticket, state: TrialState, value: float | None, **attributes: Any) -> None:
        def operation() -> None:
            try:
                # An attribute takes 3 ms; whose records these are is asked where a study is shared.
                owner = {"owner": self._owner} if self.storage.shared else {}
                for name, content in {**owner, **attributes}.items():
                    self.storage.optuna.set_trial_user_attr(ticket.key, name, content)
                self.storage.optuna.set_trial_state_values(ticket.key, state, None if value is None else [value])
            except optuna.exceptions.UpdateFinishedTrialError:
                logging.getLogger(__name__).debug("trial %d was told already", ticket.number)

        self.storage.patiently(operation)

    def _set_failed(self, key: int) -> None:
        self.storage.optuna.set_trial_state_values(key, TrialState.FAIL)

    # -- looking ---------------------------------------------------------------------------------------------------

    def running(self) -> int:
        """Trials that some coordinator runs."""
        return self.storage.patiently(lambda: len(self._trials(TrialState.RUNNING)))

    def waiting(self) -> int:
        return self.storage.patiently(self._waiting)

    def knows(self, ticket: Ticket, trial_id: str) -> bool:
        """Whether another trial of the study is the same one, and not failed."""
        return any(trial.user_attrs.get("trial_id") == trial_id and trial.number != ticket.number
                   for trial in self.storage.patiently(lambda: self._trials(*_LIVE)))

    def asked_for(self) -> int:
        """How many different trials the search has asked for, refused ones too; what run_cap counts."""
        trials = self.storage.patiently(self._trials)
        refused = sum("trial_id" not in trial.user_attrs and "final" in trial.user_attrs for trial in trials)
        return refused + len({trial.user_attrs["trial_id"] for trial in trials if "trial_id" in trial.user_attrs})

    def outcomes(self) -> dict[str, FrozenTrial]:
        """By trial_id: the trial that speaks for it (done before running before waiting before failed)."""
        rank = [*_ENDED_WELL, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL]
        best: dict[str, FrozenTrial] = {}
        for trial in self.storage.patiently(self._trials):
            trial_id = trial.user_attrs.get("trial_id")
            if trial_id and (trial_id not in best or rank.index(trial.state) <= rank.index(best[trial_id].state)):
                best[trial_id] = trial
        return best

    def ended_elsewhere(self, here: Collection[str]) -> int:
        """How many trials of a shared study have ended well on other machines."""
        outcomes = self.outcomes() if self.storage.shared else {}
        return sum(trial.state in _ENDED_WELL and trial_id not in here for trial_id, trial in outcomes.items())

    def keep(self, name: str, content: str) -> None:
        """Text for every coordinator of the study."""
        self.storage.patiently(lambda: self.storage.optuna.set_study_user_attr(self._study_key, name, content))

    def kept(self, name: str) -> str | None:
        return self.storage.patiently(lambda: self.storage.optuna.get_study_user_attrs(self._study_key)).get(name)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)


def _candidate(trial: FrozenTrial) -> Candidate:
    attributes = trial.user_attrs
    return Candidate(attributes["trial_id"], attributes["values"], attributes.get("u"), attributes["setting_id"],
                     attributes["kind"])


def _history(trial: FrozenTrial) -> list[float]:
    return [value for _, value in sorted(trial.intermediate_values.items()) if value is not None]


def _gaussian_process(seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's GP search; needs torch, which a coordinator loads for `method: bayes` only."""
    return optuna.samplers.GPSampler(seed=seed % 2**32, n_startup_trials=1, warn_independent_sampling=False)
