"""Records and predictions from directories (or other sources) into one list of trials."""

from __future__ import annotations

import importlib
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.load.adaptive import AdaptivePlan, read_adaptive
from analysis.statistics.paired import Answers
from finetune.errors import ConfigError
from finetune.results import CorruptRecord, RecordStore, TrialRecord, frozen_rank

# Prefix of a source -> module whose load(source) returns Loaded, e.g. "wandb:" for wandb:ENTITY/PROJECT/SWEEP.
LOADERS: dict[str, str] = {"wandb:": "analysis.load.from_wandb"}
PROBE_FILE = "probe.json"
SWEEP_FILE = "sweep.json"
REPUBLISH_SECONDS = 0.2


@dataclass(frozen=True)
class Trial:
    """A record with its predictions, which are read when they are asked for."""

    record: TrialRecord
    source: str
    sweep: str | None
    read: Callable[[], Mapping[str, np.ndarray]]

    @cached_property
    def knobs(self) -> dict[str, Any]:
        """Dotted knobs as they acted: the configuration, with inert knobs None."""
        asked, acted = flatten(self.record.config), flatten(self.record.effective)
        return {**asked, **{name: value for name, value in acted.items() if name in asked}}

    @property
    def seed(self) -> int:
        return int(self.record.config.get("seed", 1))

    @property
    def phase(self) -> str:
        """"confirm" or "tune" (also for trials that no sweep planned)."""
        return self.record.protocol.get("phase", "tune")

    @property
    def arm(self) -> Arm:
        return Arm(str(self.knobs.get("strategy") or "full"), self.knobs.get("freeze_depth"))

    def metric(self, split: str, name: str) -> float | None:
        """metrics[split][name] as a finite number, or None."""
        value = self.record.metrics.get(split, {}).get(name)
        return float(value) if isinstance(value, int | float) and np.isfinite(value) else None

    def predictions(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """(logits, labels, ids) of a split in the order of the ids, or None when the record came without them."""
        answers = Answers.of(self.read(), split)
        return None if answers is None else answers.in_order()


@dataclass(frozen=True, order=False)
class Arm:
    """What is compared: a strategy, with its place on the depth axis where it has one."""

    strategy: str
    freeze_depth: int | None
    by_strategy: bool = field(default=False, compare=False)  # whether it stands among strategies, and is named as one

    @property
    def order(self) -> tuple[int, int, str]:
        if self.freeze_depth is None:
            return (1, 0, self.strategy)
        return (0, frozen_rank(self.freeze_depth), self.strategy)

    @property
    def is_reference(self) -> bool:
        return self.freeze_depth == 0

    @property
    def label(self) -> str:
        """As it stands on an axis: 0, emb, 1 … L, or the strategy."""
        if self.freeze_depth is None or self.by_strategy:
            return self.strategy
        return "emb" if self.freeze_depth == -1 else str(self.freeze_depth)

    @property
    def name(self) -> str:
        """As it stands in a sentence."""
        if self.freeze_depth is None or (self.by_strategy and self.freeze_depth != 0):
            return self.strategy
        return {0: "full fine-tuning", -1: "frozen embeddings"}.get(self.freeze_depth, f"depth {self.freeze_depth}")

    @property
    def subject(self) -> str:
        """As that of which a sentence says what it is: "freezing the embeddings is …"."""
        return "freezing the embeddings" if self.name == "frozen embeddings" else self.name


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep set out to do, from its sweep.json."""

    name: str | None
    method: str
    trial_ids: frozenset[str]
    seeds: tuple[int, ...]
    metric: str | None = None  # of validation, by which its search judged
    adaptive: AdaptivePlan | None = None


@dataclass
class Loaded:
    """Trials of all sources, what was wrong with them, the sweeps' plans, and layer probes that they left behind."""

    trials: list[Trial] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    plans: list[SweepPlan] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)


def flatten(knobs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested knobs -> dotted names."""
    flat: dict[str, Any] = {}
    for name, value in knobs.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def load_sources(sources: list[str]) -> Loaded:
    """Trials of every source; the same trial of one sweep in several directories counts once.

    Raises ConfigError when a source is not there or none holds a record. A damaged record is set aside and named in
    `problems`.
    """
    loaded = Loaded()
    for source in sources:
        part = _load_one(source)
        loaded.trials += part.trials
        loaded.problems += part.problems
        loaded.plans += part.plans
        loaded.probes += part.probes
    loaded.trials = _without_duplicates(loaded.trials)
    if not loaded.trials:
        what = f"; {loaded.problems[0]}" if loaded.problems else ""
        raise ConfigError(f"no trial records in {', '.join(sources)} (a sweep writes DIR/trials/*/record.json); run "
                          f"`finetune sweep FILE --output_dir {shlex.quote(sources[0])}` first{what}")
    return loaded


def _load_one(source: str) -> Loaded:
    prefix = next((prefix for prefix in LOADERS if source.startswith(prefix)), None)
    if prefix is not None:
        return importlib.import_module(LOADERS[prefix]).load(source)
    if not Path(source).is_dir():
        raise ConfigError(f"DIR = {source!r}: no such directory; allowed: the output directory of a sweep, such as "
                          "runs/quickstart")
    return load_directory(Path(source))


def load_directory(folder: Path) -> Loaded:
    store, loaded, plan = RecordStore(folder), Loaded(), read_plan(folder / SWEEP_FILE)
    for trial_id in store.trial_ids():
        try:
            record = _checked(store, trial_id)
        except CorruptRecord as error:
            loaded.problems.append(_set_aside(store, trial_id, error))
            continue
        if record is not None:
            # A trial that an earlier sweep left on disk is not run again: it belongs to every sweep that asks for it.
            sweep = plan.name if plan and trial_id in plan.trial_ids else record.sweep
            loaded.trials.append(Trial(record, str(folder), sweep, _reader(store, record)))
    loaded.plans += [plan] if plan else []
    loaded.probes += read_probe(folder / PROBE_FILE)
    return loaded


def _reader(store: RecordStore, record: TrialRecord) -> Callable[[], Mapping[str, np.ndarray]]:
    if not record.files:
        return dict
    return lambda: store.predictions(record)


def _checked(store: RecordStore, trial_id: str) -> TrialRecord | None:
    try:
        return _load_and_check(store, trial_id)
    except CorruptRecord:
        # A sweep may be publishing this trial again right now: predictions first, then the record that names them.
        time.sleep(REPUBLISH_SECONDS)
        return _load_and_check(store, trial_id)


def _load_and_check(store: RecordStore, trial_id: str) -> TrialRecord | None:
    record = store.load(trial_id)
    if record is not None:
        store.check_files(record)
    return record


def _set_aside(store: RecordStore, trial_id: str, error: CorruptRecord) -> str:
    try:
        where = f"set aside in {store.quarantine(trial_id)}"
    except OSError:
        where = "left where it is"
    return f"trial {trial_id[:12]} is damaged and not used ({error}); {where}; rerun the sweep to replace it"


def _without_duplicates(trials: list[Trial]) -> list[Trial]:
    """One trial per sweep and trial_id: a complete one if there is one."""
    best: dict[tuple[str | None, str], Trial] = {}
    for trial in trials:
        key = (trial.sweep, trial.record.trial_id)
        if key not in best or (best[key].record.state != "complete" and trial.record.state == "complete"):
            best[key] = trial
    return list(best.values())


def read_plan(path: Path) -> SweepPlan | None:
    """DIR/sweep.json as `finetune sweep` writes it; None when there is none or it says nothing."""
    try:
        content = json.loads(path.read_text())
        seeds = content["spec"]["parameters"].get("seed", {})
        values = seeds.get("values", [seeds["value"]] if "value" in seeds else [])
        trial_ids = [trial_id for ids in content["trials"].values() for trial_id in ids]
        return SweepPlan(content["name"], content["spec"]["method"], frozenset(trial_ids),
                         tuple(sorted(int(value) for value in values)), _searched_metric(content["spec"]),
                         read_adaptive(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _searched_metric(spec: Mapping[str, Any]) -> str | None:
    name = str((spec.get("metric") or {}).get("name", ""))
    return name.removeprefix("validation/") or None


def read_probe(path: Path) -> list[dict[str, Any]]:
    """DIR/probe.json: {"metric", "split", "points": [{"freeze_depth", "value"}]}, if the sweep left one."""
    try:
        content = json.loads(path.read_text())
        points = [{"freeze_depth": int(p["freeze_depth"]), "value": float(p["value"])} for p in content["points"]]
        return [{"metric": str(content["metric"]), "split": str(content["split"]), "points": points}]
    except (OSError, ValueError, KeyError, TypeError):
        return []
