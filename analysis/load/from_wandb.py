"""`finetune report wandb:ENTITY/PROJECT/SWEEP`: a sweep's trials from W&B, kept in a local cache.

The cache is a directory of records like any other (CACHE/wandb/HOST/ENTITY/PROJECT/SWEEP/trials/…) with an index of
the runs beside it, so that a report can be made again without a network.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.load.records import Loaded, SweepPlan, flatten, load_directory
from finetune.config import KNOBS
from finetune.errors import ConfigError, EnvironmentProblem, Problem
from finetune.files import atomic_write, cache_root
from finetune.results import CorruptRecord, RecordStore
from finetune.tracking.mirror import TRIAL, record_of
from finetune.values import decode

PREFIX = "wandb:"
INDEX = "index.json"
UNDER_WAY = ("running", "pending", "preempting")
_NAMED_AT_MOST = 10
_SAFE = re.compile(r"[\w.-]+")
_TRIAL_ID = re.compile(r"[0-9a-f]{64}")


def load(source: str) -> Loaded:
    """Trials of a W&B sweep; what is missing or half-finished is counted and named in `problems`.

    Raises ConfigError for a path that is none, EnvironmentProblem when W&B cannot be reached and nothing is cached.
    """
    path = parse_source(source)
    folder = cache_root().joinpath("wandb", _host(), *path)
    problems: list[str] = []
    try:
        index = fetch("/".join(path), folder)
    except (ConfigError, EnvironmentProblem):
        raise
    except Exception as error:  # whatever the client or the network raises
        index = _read_index(folder)
        if not index:
            raise EnvironmentProblem(f"{source}: W&B cannot be read ({_reason(error)}), and this sweep is not in "
                                     f"{folder}; check the path, `wandb login` and the network") from error
        problems.append(f"W&B cannot be read ({_reason(error)}): this is what was there on {index['fetched']}")
    return _assemble(folder, index, problems)


def parse_source(source: str) -> tuple[str, str, str]:
    """"wandb:ENTITY/PROJECT/SWEEP" -> its three parts; the `sweeps/` of an address is tolerated."""
    parts = [part for part in source.removeprefix(PREFIX).strip("/").split("/") if part != "sweeps"]
    if len(parts) != 3 or not all(_SAFE.fullmatch(part) and part.strip(".") for part in parts):
        raise ConfigError([Problem("DIR", source, "allowed: wandb:ENTITY/PROJECT/SWEEP_ID, as `wandb agent` takes it")])
    return parts[0], parts[1], parts[2]


# -- from W&B to the cache ---------------------------------------------------------------------------------------------

def fetch(path: str, folder: Path) -> dict[str, Any]:
    """Bring the cache up to date; returns its index. Runs that were fetched in their present state are not again."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise RuntimeError("no API key; `wandb login` stores one")
    sweep = wandb.Api(timeout=30).sweep(path)
    known = (_read_index(folder) or {}).get("runs", {})
    store, runs, found = RecordStore(folder), {}, list(sweep.runs)
    for number, run in enumerate(found, 1):
        runs[run.id] = _fetched_before(known.get(run.id), run, store) or _fetch_run(run, store)
        if number % 20 == 0 or number == len(found):
            print(f"W&B: {number} of {len(found)} runs", file=sys.stderr)
    index = {"sweep": path, "config": sweep.config, "runs": runs,
             "fetched": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    atomic_write(folder / INDEX, json.dumps(index, indent=1, default=str) + "\n", "the index of a W&B sweep")
    _forget_others(store, runs)
    return index


def _fetched_before(entry: Mapping[str, Any] | None, run: Any, store: RecordStore) -> dict[str, Any] | None:
    if not entry or not entry.get("trial_id") or entry["state"] != run.state or not _TRIAL_ID.fullmatch(
            entry["trial_id"]):
        return None
    return dict(entry) if store.load_complete(entry["trial_id"]) is not None else None


def _fetch_run(run: Any, store: RecordStore) -> dict[str, Any]:
    """What the index says of a run; its record and predictions land in the store where there are any."""
    entry: dict[str, Any] = {"name": run.name, "state": run.state, "trial_id": None}
    trial_id = (run.config.get(TRIAL) or {}).get("trial_id")
    if run.state in UNDER_WAY:
        return {**entry, "why": run.state}
    if not isinstance(trial_id, str) or not _TRIAL_ID.fullmatch(trial_id):
        return {**entry, "why": str(run.summary.get("error/message") or run.state).splitlines()[0][:200]}
    try:
        if not _download(run, trial_id, store):
            record = record_of(run.config, dict(run.summary), run.scan_history())
            record.wandb_run = {"id": run.id, "name": run.name, "project": run.project, "entity": run.entity,
                                "url": run.url, "mode": "online", "sweep_id": run.sweep_name}
            store.publish(record)
    except (ValueError, CorruptRecord) as error:
        return {**entry, "why": f"{run.state}; {error}"[:200]}
    return {**entry, "trial_id": trial_id}


def _download(run: Any, trial_id: str, store: RecordStore) -> bool:
    """The run's artifact, whole and with the right checksums, or False when it has none."""
    artifacts = [artifact for artifact in run.logged_artifacts() if artifact.type == TRIAL]
    if not artifacts:
        return False
    store.trials.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store.root, prefix=".fetch-") as temporary:
        staged = RecordStore(temporary)
        artifacts[-1].download(root=str(staged.folder(trial_id)))
        record = staged.load(trial_id)
        if record is None or record.trial_id != trial_id:
            raise CorruptRecord("its artifact holds another trial")
        staged.check_files(record)
        shutil.rmtree(store.folder(trial_id), ignore_errors=True)
        os.replace(staged.folder(trial_id), store.folder(trial_id))
    return True


def _forget_others(store: RecordStore, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """A run that was deleted on W&B is no longer part of the sweep."""
    wanted = {entry["trial_id"] for entry in runs.values()}
    for trial_id in store.trial_ids():
        if trial_id not in wanted:
            shutil.rmtree(store.folder(trial_id), ignore_errors=True)


# -- from the cache to a report ----------------------------------------------------------------------------------------

def _assemble(folder: Path, index: Mapping[str, Any], problems: list[str]) -> Loaded:
    loaded = load_directory(folder)
    config, runs = index["config"], index["runs"]
    name = str(config.get("name") or index["sweep"].rsplit("/", 1)[-1])
    for trial in loaded.trials:
        object.__setattr__(trial, "sweep", name)
    half = [f"{entry['name']} ({entry['why']})" for entry in runs.values() if entry.get("why")]
    if half:
        problems.append(f"{len(half)} of {len(runs)} runs of {index['sweep']} are not finished or tell of no trial, "
                        f"and are not used: {_listed(half)}")
    problems += _missing(config, loaded)
    seeds = {trial.seed for trial in loaded.trials}
    loaded.plans.append(SweepPlan(name, str(config.get("method")),
                                  frozenset(trial.record.trial_id for trial in loaded.trials), tuple(sorted(seeds))))
    loaded.problems += problems
    return loaded


def _missing(config: Mapping[str, Any], loaded: Loaded) -> list[str]:
    """Points of a grid, or a number of runs, that the sweep asked for and that have no result."""
    results = [trial for trial in loaded.trials if trial.record.state in ("complete", "pruned")]
    if config.get("method") != "grid":
        cap = config.get("run_cap")
        return [f"{len(results)} of {cap} runs have a result"] if isinstance(cap, int) and len(results) < cap else []
    points = list(_grid(config))
    present = [flatten(trial.record.config) for trial in results]
    missing = [" ".join(f"{name}={value}" for name, value in point.items())
               for point in points if not any(_has(knobs, point) for knobs in present)]
    if not missing:
        return []
    return [f"{len(missing)} of {len(points)} points of the grid have no result: {_listed(missing)}; W&B does not try "
            "a failed point again: delete its run and resume the sweep"]


def _grid(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from finetune.sweep.spec.points import MAX_POINTS
    from finetune.sweep.spec.schema import parse_spec

    try:
        spec = parse_spec({key: value for key, value in config.items() if value is not None}, default_name="sweep")
    except ConfigError:
        return  # a sweep of W&B that this version does not understand: only its runs can be counted
    searched = [parameter for parameter in spec.parameters if parameter.distribution != "constant"]
    if math.prod(parameter.size for parameter in searched) > MAX_POINTS:
        return
    for values in itertools.product(*(parameter.grid() for parameter in searched)):
        yield {parameter.name: value for parameter, value in zip(searched, values, strict=True)}


def _has(knobs: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    return all(_same(name, value, knobs.get(name)) for name, value in point.items())


def _same(name: str, asked: Any, has: Any) -> bool:
    try:
        return decode(asked, KNOBS[name].annotation) == has
    except (KeyError, ValueError):
        return asked == has


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _read_index(folder: Path) -> dict[str, Any] | None:
    try:
        index = json.loads((folder / INDEX).read_text())
        return index if {"sweep", "config", "runs", "fetched"} <= index.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _host() -> str:
    """The server's name, so that two servers do not share a cache."""
    address = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    return re.sub(r"[^\w.-]", "_", address.netloc) or "unknown"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
