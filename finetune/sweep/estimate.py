"""`finetune sweep FILE --dry_run`: every point checked, the trials listed, time and disk estimated; nothing is kept.

Times are measured, not modelled: of each kind of trial (strategy, model, data, batch) a short one runs on this machine,
through the same worker and the same recipe, on a few rows; its seconds are scaled to the rows and epochs asked for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.statistics import sequential
from finetune.config import TrialConfig
from finetune.errors import EnvironmentProblem
from finetune.results import RecordStore
from finetune.sweep.adaptive.prepare import prepared
from finetune.sweep.adaptive.space import space_of
from finetune.sweep.plan import TICK, Plan, SweepOptions, make_plan
from finetune.sweep.runner import team_for, worker_count
from finetune.sweep.search.trials import Candidate
from finetune.sweep.spec.schema import SweepSpec
from finetune.sweep.view.board import duration, label_of
from finetune.sweep.view.live import View
from finetune.sweep.workers.team import Team

PROBE_ROWS = 64  # per split
PROBE_BATCH = 32  # rows per step at most: one step of a big batch would take as long as several trials
MOST_PROBES = 12  # more kinds than that take the mean of these
SHOWN = 40
RECORD_BYTES = 30_000
FLOAT32_BYTES = 4
# What decides how long a trial takes, besides its strategy.
COSTLY = ("dataset_name", "dataset_config_name", "model_name_or_path", "max_length", "per_device_train_batch_size",
          "gradient_accumulation_steps", "gradient_checkpointing", "mixed_precision", "prefix_cache", "pooling")


@dataclass(frozen=True)
class Probe:
    """What one kind of trial costs on this machine. Seconds per row, except `setup` and `prefix` (per row, once)."""

    setup: float
    train: float
    evaluate: float
    prefix: float
    prediction_bytes: float  # per validation or test row
    trainable_parameters: float
    parameters: float

    def model_bytes(self, save_model: bool | str) -> float:
        """What a trial keeps of its model: at most all that trained, in float32."""
        kept = {"delta": self.trainable_parameters, True: self.parameters}.get(save_model, 0)
        return kept * FLOAT32_BYTES

    def seconds(self, rows: Mapping[str, int], epochs: int) -> float:
        """One trial alone, without the frozen prefix that several may share."""
        evaluated = epochs * rows["validation"] + rows["test"]
        return self.setup + epochs * rows["train"] * self.train + evaluated * self.evaluate

    def prefix_seconds(self, rows: Mapping[str, int]) -> float:
        return self.prefix * sum(rows.values())


@dataclass(frozen=True)
class Forecast:
    """What the sweep would do. Times are seconds of wall clock on this machine, None where nothing was timed."""

    name: str
    points: int
    trials: int | None  # None: a search without an end
    done: int  # complete records that are already in the output directory
    confirm_trials: int
    labels: list[str]
    workers: int
    seconds: float | None
    disk_bytes: int
    detectable: str
    notes: list[str]
    adaptive: dict[str, int] | None = None  # numbers of trials: least, expected, most, and the grid's

    def text(self, *, as_json: bool = False) -> str:
        if as_json:
            return json.dumps(asdict(self), ensure_ascii=False)
        count = "trials without an end" if self.trials is None else f"{self.trials} trials"
        done = f", {self.done} of them done" if self.done else ""
        confirm = f", then {self.confirm_trials} to confirm" if self.confirm_trials else ""
        head = f"{self.name}: {count}{done}{confirm}" if self.adaptive is None else (
            "{name}: adaptive, about {expected} trials, {least} to {most}; the grid with 10 confirming seeds takes "
            "{grid}{done}".format(name=self.name, done=done, **self.adaptive))
        lines = [head, *(f"  {label}" for label in self.labels[:SHOWN])]
        if len(self.labels) > SHOWN:
            lines.append(f"  … and {len(self.labels) - SHOWN} more (--json lists all)")
        lines += [f"note: {note}" for note in self.notes]
        if self.seconds is None:
            lines.append("time: unknown, since no trial ended well on a few rows")
            lines.append(f"disk: about {_size(self.disk_bytes)} of records, without predictions and models")
        else:
            lines.append(f"time: about {duration(self.seconds)} with {self.workers} worker{'s' * (self.workers != 1)}, "
                         "measured on a few rows of each kind of trial")
            lines.append(f"disk: about {_size(self.disk_bytes)} of records, predictions and models (save_model)")
        return "\n".join([*lines, f"power: {self.detectable}"])


def dry_run(spec: SweepSpec, options: SweepOptions, view: View) -> Forecast:
    """Check and price the sweep. Writes nothing into the output directory. Raises what `run_sweep` would raise."""
    spec = prepared(spec, options) if options.adaptive else spec
    with _scratch() as scratch:
        aside = replace(options, output_dir=scratch, mps=False)  # one worker alone shares nothing
        with team_for(spec, aside, view, scratch / "logs") as team:  # one worker starts, with a sweep worker's threads
            plan = make_plan(spec, options, team, prepare=False)  # its trials are of a few rows
            probes = _probe_kinds(plan, scratch, team, view)
        return _forecast(plan, options, probes)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what the probes write, and no tracking and no lasting cache entries while they run."""
    with tempfile.TemporaryDirectory(prefix="finetune-dry-run-") as folder:
        ours = {"WANDB_MODE": "disabled", "FINETUNE_CACHE": str(Path(folder) / "cache")}
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _kind(candidate: Candidate, config: TrialConfig) -> tuple:
    return (candidate.kind, *(config.get(name) for name in COSTLY))


def _probe_kinds(plan: Plan, scratch: Path, team: Team, view: View) -> dict[tuple, Probe]:
    """One short trial per kind, on the first worker; the first runs twice, since a process is slow to begin with."""
    kinds: dict[tuple, Candidate] = {}
    for candidate in plan.candidates:
        config = TrialConfig.from_mapping({**candidate.values, **plan.fixed})
        kinds.setdefault(_kind(candidate, config), candidate)
    asked = list(kinds.items())[:MOST_PROBES]
    probes: dict[tuple, Probe] = {}
    for number, (kind, candidate) in enumerate(asked, start=1):
        view.say(f"timing {label_of(candidate.values, plan.searched)} ({number} of {len(asked)})")
        rows = plan.descriptions[candidate.trial_id].content["rows"]["train"]
        config = _short(TrialConfig.from_mapping({**candidate.values, **plan.fixed}), scratch / "probe", rows)
        for _ in range(2 if number == 1 else 1):
            probe = _run(config, team)
        if probe is not None:
            probes[kind] = probe
    return probes


def _short(config: TrialConfig, folder: Path, rows: int) -> TrialConfig:
    """`rows`: how many the trial would train on."""
    batch = min(config.per_device_train_batch_size, PROBE_BATCH)
    return config.replace(
        output_dir=str(folder), train_size=min(PROBE_ROWS, rows), evaluation_size=PROBE_ROWS, num_train_epochs=1,
        save_model=False, per_device_train_batch_size=batch, gradient_accumulation_steps=1, checkpointing_steps=None,
        strategy=_first_epoch(config.strategy),
    )


def _first_epoch(strategy: str | None) -> str | None:
    """A phased strategy needs more epochs than one; what it trains in the end is what costs."""
    name = (strategy or "").partition(":")[0].strip()
    return "full" if name in ("lp_ft", "gradual") else strategy


def _run(config: TrialConfig, team: Team) -> Probe | None:
    """None when the trial fails on so few rows (a class that has none, say): that is no news about the sweep."""
    worker = team.workers[0]
    worker.send("run", (config.model_dump(), None))
    while True:
        for event in team.events(TICK):
            if event.kind == "died":
                raise EnvironmentProblem(f"a trial of the dry run died: {event.content} (log: {worker.log})")
            if event.kind == "epoch":
                worker.send("verdict", "continue")
            if event.kind == "finished":
                return _measured(*event.content)
            if event.kind == "failed":
                return None


def _measured(record: Mapping[str, Any], predictions: Mapping[str, Any]) -> Probe | None:
    if record["state"] != "complete":
        return None
    cost, rows = record["cost"], record["data"]["rows"]
    evaluated = rows["validation"] + rows["test"]
    return Probe(
        setup=max(0.0, cost["setup_seconds"] - cost["prefix_seconds"]), train=cost["train_seconds"] / rows["train"],
        evaluate=cost["evaluation_seconds"] / evaluated, prefix=cost["prefix_seconds"] / sum(rows.values()),
        prediction_bytes=sum(array.nbytes for array in predictions.values()) / evaluated,
        trainable_parameters=record["parameters"]["trainable"], parameters=record["parameters"]["total"],
    )


def _forecast(plan: Plan, options: SweepOptions, probes: Mapping[tuple, Probe]) -> Forecast:
    store = RecordStore(options.output_dir)
    done = [candidate for candidate in plan.candidates if _is_done(store, candidate.trial_id)]
    waiting = [candidate for candidate in plan.candidates if candidate not in done]
    rows = next(iter(plan.descriptions.values())).content["rows"]
    seeds = {TrialConfig.from_mapping({**c.values, **plan.fixed}).seed for c in plan.candidates}
    settings = len({candidate.kind for candidate in plan.candidates})
    workers = _workers(plan.spec, options)
    seconds, disk = _price(plan, waiting, probes)
    total = plan.total
    if total is not None and len(plan.candidates) and total > len(plan.candidates):  # drawn later
        seconds, disk = seconds * total / len(plan.candidates), disk * total / len(plan.candidates)
    if options.confirm and plan.candidates:
        share = options.confirm * settings / len(plan.candidates)
        more, more_disk = _price(plan, plan.candidates, probes)
        seconds, disk = seconds + share * more, disk + share * more_disk
    adaptive = _adaptive(plan, options) if options.adaptive else None
    if adaptive is not None:  # as a rule, of trials that cost what the grid's do on average, whatever is done already
        whole, whole_disk = _price(plan, plan.candidates, probes)
        total, share = adaptive["expected"], adaptive["expected"] / len(plan.candidates)
        seconds, disk = share * whole, share * whole_disk
    return Forecast(
        name=plan.spec.name, points=plan.points, trials=total, done=len(done),
        confirm_trials=options.confirm * settings, labels=_labels(plan), workers=workers,
        seconds=seconds / workers if probes else None, disk_bytes=int(disk),
        detectable=_power(options.max_seeds if options.adaptive else options.confirm or len(seeds), rows["test"], plan),
        notes=plan.notes(), adaptive=adaptive,
    )


def _adaptive(plan: Plan, options: SweepOptions) -> dict[str, int]:
    """Without what is trained ahead."""
    space = space_of(plan, options.max_seeds)
    reckoned = sequential.plan(len(space.candidates), space.settings, len(space.tuning_seeds), space.max_seeds)
    # The grid's own number: where a knob acts on nothing, a depth has fewer settings than another.
    return {**reckoned._asdict(), "grid": len(plan.candidates) + sequential.GRID_SEEDS * len(space.tuning)}


def _is_done(store: RecordStore, trial_id: str) -> bool:
    record = store.load_complete(trial_id)
    return record is not None and record.state != "failed"


def _workers(spec: SweepSpec, options: SweepOptions) -> int:
    from finetune.sweep.workers.pool import Machine

    return worker_count(Machine.here(), spec, options)


def _labels(plan: Plan) -> list[str]:
    """One line per setting, its seeds together."""
    others = [name for name in plan.searched if name != "seed"]
    seeds: dict[str, list[Any]] = {}
    for candidate in plan.candidates:
        seeds.setdefault(label_of(candidate.values, others), []).append(candidate.values.get("seed", 1))
    return [f"{label}, {_seeds(values)}" for label, values in seeds.items()]


def _seeds(values: Sequence[Any]) -> str:
    count = Counter(values)
    return f"seed{'s' * (len(count) > 1)} {', '.join(map(str, count))}"


def _price(plan: Plan, candidates: Sequence[Candidate], probes: Mapping[tuple, Probe]) -> tuple[float, float]:
    """(seconds of one worker, bytes) of these trials; a frozen prefix is computed once per kind."""
    seconds, disk, filled = 0.0, 0.0, set()
    if not probes:
        return 0.0, float(RECORD_BYTES * len(candidates))
    for candidate in candidates:
        config = TrialConfig.from_mapping({**candidate.values, **plan.fixed})
        kind = _kind(candidate, config)
        probe = probes.get(kind) or _mean(list(probes.values()))
        rows = plan.descriptions[candidate.trial_id].content["rows"]
        seconds += probe.seconds(rows, config.num_train_epochs)
        if kind not in filled:
            filled.add(kind)
            seconds += probe.prefix_seconds(rows)
        disk += RECORD_BYTES + probe.prediction_bytes * (rows["validation"] + rows["test"])
        disk += probe.model_bytes(config.save_model)
    return seconds, disk


def _mean(probes: Sequence[Probe]) -> Probe:
    fields = asdict(probes[0])
    return Probe(**{name: sum(getattr(probe, name) for probe in probes) / len(probes) for name in fields})


def _power(seeds: int, test_rows: int, plan: Plan) -> str:
    from analysis.statistics.power import planned

    if plan.metric != "accuracy":
        return f"{seeds} seeds and {test_rows:,} test rows; what they can detect is known beforehand for accuracy only"
    return planned(seeds, test_rows)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
