"""What a sweep is going to do: every known point resolved and checked before the first one trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.config import TrialConfig
from finetune.display import plain
from finetune.errors import ConfigError, DataError, EnvironmentProblem, Problem, did_you_mean
from finetune.files import digest_of
from finetune.results import TrialRecord
from finetune.sweep.search.search import STARTUP_POINTS
from finetune.sweep.search.trials import Candidate
from finetune.sweep.spec.points import Point, first_of_each, grid_points, probe_points, random_points
from finetune.sweep.spec.schema import SweepSpec
from finetune.sweep.workers.pool import Worker
from finetune.sweep.workers.team import Event, Team

TICK = 0.5


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run; none of it changes a result. `task` offers resolve_trial and run_trial."""

    output_dir: Path
    workers: int | None = None  # None: as many as fit this machine
    storage: str | None = None
    search_seed: int = 0
    retries: int = 2
    trial_timeout: float | None = None  # seconds
    confirm: int = 0  # fresh seeds per chosen setting
    adaptive: bool = False  # the deepest safe depth instead of every depth
    max_seeds: int = 20  # adaptive: fresh seeds of a depth at most
    margin: float | None = None  # adaptive: the loss that is tolerated, as a fraction; None: the sweep's own
    grace: float = 60.0  # seconds of silence until another machine's trials are taken over
    stop_grace: float = 30.0  # seconds that a trial has for its checkpoint after Ctrl-C
    from_python: bool = False  # a call, not a command: a second Ctrl-C ends the workers, not the caller's process
    mps: bool = True  # kernels of workers that share a GPU run at the same time, where NVIDIA's tool is there
    task: str = "finetune.trial"
    prefix_budget: int | None = None  # bytes of disk and memory for frozen-prefix activations; None: a share of both


class Description:
    """ResolvedTrial.describe() as it came from a worker."""

    def __init__(self, content: Mapping[str, Any]):
        self.content = dict(content)
        self.trial_id: str = content["trial_id"]
        self.setting_id: str = content["setting_id"]
        self.kind: str = str(content.get("strategy"))

    def failed_record(self, knobs: Mapping[str, Any], kind: str, message: str) -> TrialRecord:
        """The record of a trial whose worker could not write one."""
        names = ("effective", "task", "metric", "num_layers", "parameters", "freeze_plan")
        known = {name: self.content[name] for name in names if self.content.get(name) is not None}
        known["data"] = {"rows": self.content.get("rows", {})}
        return TrialRecord(trial_id=self.trial_id, setting_id=self.setting_id, state="failed", config=dict(knobs),
                           error={"kind": kind, "message": message}, **known)


@dataclass(frozen=True)
class Plan:
    """`candidates` are the known trials in the order in which they are run."""

    spec: SweepSpec
    study_name: str
    candidates: tuple[Candidate, ...]
    descriptions: dict[str, Description]
    fixed: dict[str, Any]  # knobs that the sweep itself sets
    points: int  # before those that are one trial were merged
    merged_knobs: tuple[str, ...]  # in which merged points differ, although nothing comes of it
    open_ended: bool  # further points are drawn one by one
    searched: list[str]  # the knobs in which its trials differ

    @property
    def ask_verdicts(self) -> bool:
        return self.spec.early_terminate is not None

    @property
    def metric(self) -> str:
        """The name in a record's metrics.validation: the YAML's, else the task's own."""
        if self.spec.metric is not None:
            return self.spec.metric.key
        return next(iter(self.descriptions.values())).content.get("metric", "accuracy")

    @property
    def maximize(self) -> bool:
        if self.spec.metric is not None:
            return self.spec.metric.goal == "maximize"
        from finetune.training.evaluation import higher_is_better

        return higher_is_better(self.metric)

    @property
    def total(self) -> int | None:
        """How many trials; None for a search without an end."""
        return self.spec.run_cap if self.open_ended else len(self.candidates)

    def heads(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(knobs that they share, each one's own) of the trials that train a head alone, in order: on a GPU a worker
        trains many of them together. Hundreds go through its pipe before anybody reads, so nothing is said twice."""
        heads = [candidate.values for candidate in self.head_candidates()]
        shared = {name: value for name, value in (heads[0].items() if heads else ())
                  if all(name in other and other[name] == value for other in heads)}
        return shared | self.fixed, [{name: value for name, value in values.items() if name not in shared}
                                     for values in heads]

    def head_candidates(self) -> list[Candidate]:
        contents = ((candidate, self.descriptions[candidate.trial_id].content) for candidate in self.candidates)
        return [candidate for candidate, content in contents
                if content.get("num_layers") and content.get("prefix_boundaries") == [content["num_layers"]]]

    def notes(self) -> list[str]:
        lines = list(self.spec.warnings)
        merged = self.points - len(self.descriptions)
        if merged > 0:
            names = ", ".join(self.merged_knobs) or "knobs"
            lines.append(f"{self.points} points are {len(self.descriptions)} trials: {merged} differ from another one "
                         f"only in knobs that act on nothing there ({names})")
        if self.open_ended and self.spec.run_cap is None:
            lines.append("no run_cap: the search goes on until it is stopped (Ctrl-C)")
        return lines + self._metric_notes() + self._data_notes()

    def _metric_notes(self) -> list[str]:
        """Where the search looks at one metric, and everything else at another."""
        others = sorted({content["metric"] for content in (d.content for d in self.descriptions.values())
                         if content.get("metric") and self.spec.metric and content["metric"] != self.spec.metric.key})
        return [f"the sweep compares settings by {self.spec.metric.name}, but a trial's best epoch, the margin and the "
                f"report's verdict go by {other}; --set metric_for_best_model={self.spec.metric.key} makes them one"
                for other in others]

    def _data_notes(self) -> list[str]:
        """What was noticed in the data, once for all trials."""
        contents = [description.content for description in self.descriptions.values()]
        notes = dict.fromkeys(plain(note) for content in contents for note in content.get("notes") or [])
        rejected = max((content.get("rejected") or 0 for content in contents), default=0)
        if rejected:
            notes[f"{rejected} rows of the data cannot be used; `finetune data` lists them with their lines"] = None
        return list(notes)


def searched_names(spec: SweepSpec) -> list[str]:
    """The knobs in which trials differ, in the YAML's order."""
    return [p.name for p in spec.parameters if p.distribution != "constant" and p.arguments.get("values", "ab")[1:]]


def make_plan(spec: SweepSpec, options: SweepOptions, team: Team, *, prepare: bool = True) -> Plan:
    """Resolve the known points on the first worker. Raises what is wrong with any of them; nothing has run then.

    `prepare`: then the workers read all that the first trial will, until they have one.
    """
    fixed = fixed_knobs(spec, options.output_dir)
    points, probes, open_ended = known_points(spec, options.search_seed, fixed)
    resolved = resolve_points([*points, *probes], team, prepare=prepare)
    descriptions: dict[str, Description] = {}
    candidates: list[Candidate] = []
    merged_knobs: set[str] = set()
    first: dict[str, Point] = {}
    for point, description in zip(points, resolved, strict=False):
        if description.trial_id in first:
            same = first[description.trial_id].values
            merged_knobs |= {name for name, value in point.values.items() if same.get(name) != value}
            continue
        first[description.trial_id] = point
        candidates.append(_candidate(point, description))
    descriptions = {description.trial_id: description for description in resolved[:len(points)]}
    _check_metric(spec, resolved)
    identity = digest_of([spec.identity(options.search_seed), sorted(d.trial_id for d in resolved)])
    if spec.method == "grid" and spec.run_cap is not None:
        candidates = candidates[: spec.run_cap]
    if spec.method == "grid":
        candidates = near_each_other(candidates, descriptions)
    return Plan(spec, f"{spec.name}-{identity[:12]}", tuple(candidates), descriptions or {"": resolved[0]}, fixed,
                len(points), tuple(sorted(merged_knobs)), open_ended, searched_names(spec))


def near_each_other(candidates: Sequence[Candidate], descriptions: Mapping[str, Description]) -> list[Candidate]:
    """Trials that share a frozen prefix one after the other, those with the most left to compute first.

    The activations are read while they are fresh, and the short trials fill the gaps at the end. The second trial of
    all is one that needs activations, where there is one: while its worker computes them, the first one trains.
    """
    groups: dict[str, int] = {}

    def order(candidate: Candidate) -> tuple[int, int]:
        content = descriptions[candidate.trial_id].content
        group = groups.setdefault(content.get("prefix_id", ""), len(groups))
        return group, _boundary(content)

    ordered = sorted(candidates, key=order)
    filling = next((place for place, candidate in enumerate(ordered)
                    if _boundary(descriptions[candidate.trial_id].content)), 0)
    if filling > 1:
        ordered.insert(1, ordered.pop(filling))
    return ordered


def _boundary(content: Mapping[str, Any]) -> int:
    """How many layers' activations a trial reads instead of computing them; 0 where it needs none."""
    return max(content.get("prefix_boundaries", ()), default=0)


def plan_confirmation(plan: Plan, values: Sequence[dict[str, Any]], team: Team) -> Plan:
    """The plan of the trials that `--confirm` adds; its study is its own, named after what was chosen."""
    points = [Point(knobs, TrialConfig.from_mapping({**knobs, **plan.fixed})) for knobs in values]
    resolved = resolve_points(points, team)
    candidates = tuple(_candidate(point, description) for point, description in zip(points, resolved, strict=True))
    chosen = digest_of(sorted(candidate.trial_id for candidate in candidates))
    return replace(plan, study_name=f"{plan.study_name}-confirm-{chosen[:12]}", candidates=candidates,
                   descriptions={description.trial_id: description for description in resolved},
                   points=len(points), merged_knobs=(), open_ended=False,
                   searched=list(dict.fromkeys([*plan.searched, "seed"])))


def _candidate(point: Point, description: Description) -> Candidate:
    return Candidate(description.trial_id, point.values, point.u, description.setting_id, description.kind)


def fixed_knobs(spec: SweepSpec, output_dir: Path) -> dict[str, Any]:
    """The coordinator publishes in its own directory; W&B's project and entity are top-level keys of the YAML."""
    named = {parameter.name for parameter in spec.parameters}
    tracking = {f"wandb_{key}": spec.as_run[key] for key in ("project", "entity")
                if key in spec.as_run and f"wandb_{key}" not in named}
    return {"output_dir": str(output_dir), **tracking}


def known_points(spec: SweepSpec, search_seed: int, fixed: Mapping[str, Any]) -> tuple[list[Point], list[Point], bool]:
    """(points that will be trials, points that are only checked, whether more are drawn later)."""
    if spec.method == "grid":
        return grid_points(spec, fixed), [], False
    if spec.method == "random" and spec.run_cap is not None:
        return random_points(spec, search_seed, spec.run_cap, fixed), [], False
    startup = min(spec.run_cap or STARTUP_POINTS, STARTUP_POINTS)
    return random_points(spec, search_seed, startup, fixed), probe_points(spec, fixed), True


def resolve_points(points: Sequence[Point], team: Team, *, prepare: bool = True) -> list[Description]:
    """Every point's ids and facts, in order. Raises ConfigError, DataError or EnvironmentProblem for the bad ones."""
    team.grow(1)
    for other in team.workers[1:]:
        other.send("warm", points[0].config.model_dump())
    return resolve_on(team.workers[0], points, team, prepare=prepare)


def resolve_on(worker: Worker, points: Sequence[Point], team: Team, *, prepare: bool = False) -> list[Description]:
    """The same on a worker that is idle or not ready yet; what the others say meanwhile is heard afterwards."""
    def ask() -> None:
        worker.send("resolve", [(index, point.config.model_dump()) for index, point in enumerate(points)])
        if prepare:
            worker.send("warm", points[0].config.model_dump())

    if worker.ready:  # else it does not read yet, and many points fill the pipe: no signal is heeded meanwhile
        ask()
    descriptions: dict[int, Description] = {}
    refused: list[Mapping[str, Any]] = []
    others: list[Event] = []
    done = False
    while not done:
        for event in team.events(TICK):
            if event.worker is not worker:
                others.append(event)
            elif event.kind == "ready":
                ask()
            elif event.kind == "died":
                raise EnvironmentProblem(f"the sweep's points cannot be checked: {event.content} (log: {worker.log})")
            elif event.kind == "resolved":
                descriptions[event.content[0]] = Description(event.content[1])
            elif event.kind == "refused":
                refused.append(event.content[1])
                _raise_environment(refused[-1], worker.log)
            elif event.kind == "resolving_done":
                done = True  # but the others' news of the same moment is not lost
    team.put_back(others)
    _raise_refused(refused)
    return [descriptions[index] for index in range(len(points))]


def _raise_environment(error: Mapping[str, Any], log: Path) -> None:
    """A missing model or an unexpected error will not go away at the next point."""
    if error["type"] == "EnvironmentProblem":
        raise EnvironmentProblem("\n".join(error["problems"]))
    if error["type"] not in ("ConfigError", "DataError", "UnsupportedBackbone"):
        raise EnvironmentProblem(f"{error['type']}: " + "\n".join(error["problems"]) + f" (log: {log})")


def _raise_refused(refused: Sequence[Mapping[str, Any]]) -> None:
    problems = {kind: [line for error in refused if (error["type"] == "DataError") == (kind == "data")
                       for line in error["problems"]] for kind in ("config", "data")}
    if problems["config"]:
        raise ConfigError(first_of_each(problems["config"]))
    if problems["data"]:
        raise DataError("\n".join(first_of_each(problems["data"])))


def _check_metric(spec: SweepSpec, resolved: Sequence[Description]) -> None:
    """The metric must be one that these trials log: a search for a value that never comes is found out now."""
    if spec.metric is None:
        return
    for description in resolved:
        names = description.content.get("metrics")
        if names is not None and spec.metric.key not in names:
            raise ConfigError([Problem("metric.name", spec.metric.name, "allowed for this task: " + ", ".join(
                f"validation/{name}" for name in names) + did_you_mean(spec.metric.key, names))])

