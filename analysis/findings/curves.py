"""One curve: each depth's chosen setting, measured on test, with its interval and its loss against full fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from analysis.amounts import Amounts, amounts
from analysis.load.adaptive import AdaptivePlan
from analysis.load.protocol import Choice, Protocol, baseline_value
from analysis.load.records import Arm, Trial
from analysis.statistics import influence, sequential, stats
from analysis.statistics.stats import Interval, Parts, Population
from finetune.results import PREDICTIONS_FILE
from finetune.training.evaluation import higher_is_better

SPLIT = "test"
MOST_NAMED = 3  # trials in a sentence that is about some of them
TOLERANCE = 1e-6  # between a recorded metric and the same metric of the recorded predictions


@dataclass(frozen=True)
class Measured:
    """One setting's test results by seed; `rows` says how they vary with the rows, where predictions are there."""

    seeds: tuple[int, ...]
    values: np.ndarray  # (seeds,)
    rows: np.ndarray | None = None  # (seeds, rows): scores whose mean is the metric (`statistics.influence`)

    def pick(self, seeds: Sequence[int]) -> Measured:
        at = [self.seeds.index(seed) for seed in seeds]
        return Measured(tuple(seeds), self.values[at], None if self.rows is None else self.rows[at])

    def parts(self) -> Parts:
        if self.rows is not None:
            return stats.split_parts(self.rows)
        return stats.seed_parts(self.values)

    def times(self, factor: float, shift: float | np.ndarray = 0.0) -> Measured:
        """factor · metric + shift, where shift is a number or one number per row."""
        rows = None if self.rows is None else factor * self.rows + shift
        return Measured(self.seeds, factor * self.values + float(np.mean(shift)), rows)


def difference(a: Measured, b: Measured) -> tuple[Parts, bool] | None:
    """mean(a) - mean(b), and whether it is paired by seed. Always paired by row.

    Paired on the seeds that both have; independent seeds where they share none; None where nothing can be said.
    """
    common = [seed for seed in a.seeds if seed in b.seeds]
    if len(common) >= min(len(a.seeds), len(b.seeds)):
        a, b = a.pick(common), b.pick(common)
        return _minus(a, b).parts(), True
    if common:
        return difference(a.pick(common), b.pick(common))
    if len(a.seeds) == len(b.seeds) == 1:
        return _minus(a, Measured(a.seeds, b.values, b.rows)).parts(), False
    if len(a.seeds) < 2 or len(b.seeds) < 2:
        return None
    return _independent(a, b), False


def _minus(a: Measured, b: Measured) -> Measured:
    rows = None if a.rows is None or b.rows is None else a.rows - b.rows
    return Measured(a.seeds, a.values - b.values, rows)


def _independent(a: Measured, b: Measured) -> Parts:
    if a.rows is not None and b.rows is not None:
        return stats.unpaired_parts(a.rows, b.rows)
    of_a, of_b = stats.seed_parts(a.values), stats.seed_parts(b.values)
    return Parts(of_a.estimate - of_b.estimate, of_a.seeds + of_b.seeds, 0.0, min(of_a.n_seeds, of_b.n_seeds),
                 stats.welch_degrees(of_a, of_b))


@dataclass(frozen=True)
class Point:
    """One arm on the curve. `loss`: what it loses against full fine-tuning, positive is worse whatever the metric."""

    choice: Choice
    measured: Measured
    interval: Interval
    loss: Parts | None  # None at the reference and where there is none
    paired: bool = True

    @property
    def arm(self) -> Arm:
        return self.choice.arm

    @property
    def trials(self) -> list[Trial]:
        complete = self.choice.setting.trials
        return [complete[seed] for seed in self.measured.seeds if seed in complete]

    def cost(self, name: str) -> float | None:
        """Mean over seeds of a figure of `record.cost`."""
        return mean_or_none(trial.record.cost.get(name) for trial in self.trials)

    @property
    def alone_seconds(self) -> float | None:
        """Training time of a trial that shares nothing: with building its own prefix activations."""
        return mean_or_none(alone_seconds(trial) for trial in self.trials)

    @property
    def trainable_parameters(self) -> int | None:
        return self.trials[0].record.parameters.get("trainable")


def mean_or_none(values: Any) -> float | None:
    known = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return fmean(known) if known else None


def alone_seconds(trial: Trial) -> float | None:
    cost = trial.record.cost
    if cost.get("train_seconds") is None:
        return None
    return float(cost["train_seconds"]) + train_prefix_seconds(trial)


def train_prefix_seconds(trial: Trial) -> float:
    """What building the activations of the training rows took; of older records the rows' share of the whole."""
    cost, rows = trial.record.cost, trial.record.data.get("rows") or {}
    known = cost.get("prefix_train_seconds")
    if known is not None:
        return float(known)
    share = rows["train"] / sum(rows.values()) if rows.get("train") else 1.0
    return share * float(cost.get("prefix_seconds") or 0.0)


@dataclass(frozen=True)
class Curve:
    """All arms of one group, measured on the same test rows."""

    protocol: Protocol
    metric: str
    population: Population
    points: list[Point]
    labels: np.ndarray | None  # (rows,) test labels; None when records came without predictions
    notes: list[str]  # what was found while measuring
    asked: str | None = None  # the metric that was asked for, where this task has no such metric

    @property
    def name(self) -> str:
        return self.protocol.group.label

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if higher_is_better(self.metric) else -1

    @property
    def amounts(self) -> Amounts:
        """How amounts of the metric are told."""
        return amounts(self.metric)

    @property
    def reference(self) -> Point | None:
        return next((point for point in self.points if point.arm.is_reference), None)

    @property
    def depths(self) -> list[Point]:
        """Points with a place on the depth axis, shallow to deep."""
        return [point for point in self.points if point.arm.freeze_depth is not None]

    @property
    def by_strategy(self) -> bool:
        """Whether strategies are compared, and not depths alone."""
        return any(point.arm.by_strategy for point in self.points)

    @property
    def noun(self) -> str:
        return "strategy" if self.by_strategy else "depth"

    @property
    def shown(self) -> list[Point]:
        """The points in the order of pictures and tables: by depth, or, where strategies are compared, the best first.
        """
        if not self.by_strategy:
            return self.points
        return sorted(self.points, key=lambda point: -self.sign * point.interval.estimate)

    @property
    def n_examples(self) -> int | None:
        if self.labels is not None:
            return len(self.labels)
        return next((t.record.data.get("rows", {}).get(SPLIT) for p in self.points for t in p.trials), None)

    @property
    def n_seeds(self) -> int:
        """Of the point that has the fewest."""
        return min(len(point.measured.seeds) for point in self.points)

    @property
    def looks(self) -> AdaptivePlan | None:
        """Of an adaptive sweep. Every bound and interval is then a repeated one: it holds whatever made it stop."""
        return self.protocol.adaptive

    def _nominal(self, confidence: float, n_seeds: int) -> float:
        """One-sided confidence at one look, for a claim that shall have `confidence`."""
        if self.looks is None or n_seeds < self.looks.looks[0]:
            return confidence
        return sequential.repeated_confidence(n_seeds, self.looks.max_seeds, confidence)

    def upper(self, parts: Parts, confidence: float = 0.95) -> float:
        """With this confidence the truth is at most so much."""
        return stats.upper_bound(parts, self.population, self._nominal(confidence, parts.n_seeds))

    def lower(self, parts: Parts, confidence: float = 0.95) -> float:
        return stats.lower_bound(parts, self.population, self._nominal(confidence, parts.n_seeds))

    def interval(self, parts: Parts) -> Interval:
        """Two-sided, 95%."""
        return stats.interval(parts, self.population, 2 * self._nominal(0.975, parts.n_seeds) - 1)

    def p_value(self, parts: Parts) -> float:
        """Two-sided, of no difference; it agrees with `interval`."""
        nominal = stats.p_value(parts, self.population)
        if self.looks is None or parts.n_seeds < self.looks.looks[0]:
            return nominal
        return sequential.repeated_p_value(nominal, parts.n_seeds, self.looks.max_seeds)

    @property
    def missing(self) -> dict[Arm, dict[int, str]]:
        """Seeds without a result, by arm."""
        return {point.arm: point.choice.missing for point in self.points if point.choice.missing}

    @cached_property
    def baseline(self) -> float | None:
        """The majority (or mean) baseline's test metric."""
        return next((value for point in self.points for trial in point.trials
                     if (value := baseline_value(trial, SPLIT, self.metric)) is not None), None)

    @property
    def baseline_kind(self) -> str | None:
        """What answer the baseline is, in the records' words; None where they hold none."""
        return next((kind for point in self.points for trial in point.trials
                     if (kind := trial.record.baseline.get("kind"))), None)

    @cached_property
    def baseline_rows(self) -> np.ndarray | float | None:
        """The baseline's score per row where the majority class is known from its accuracy, else its value."""
        if self.metric == "accuracy" and self.labels is not None and self.labels.ndim == 1 \
                and self.baseline is not None:
            for label in np.unique(self.labels):
                hits = (self.labels == label).astype(np.float64)
                if abs(hits.mean() - self.baseline) < TOLERANCE:
                    return hits
        return self.baseline

    def class_names(self) -> list[str]:
        """What a record counts one by one: classes, labels, or entity types."""
        details = self.points[0].trials[0].record.details.get(SPLIT, {})
        return [str(entry["label"]) for entry in details.get("per_class", [])]

    def label_names(self) -> list[str]:
        return [str(name) for name in self.points[0].trials[0].record.data.get("label_names") or []]


def measure(protocol: Protocol, *, metric: str | None = None, population: Population = "new_text") -> Curve:
    """Read the reported trials' test predictions and make the curve; by its own metric where it has not this one."""
    known = {name for trial in protocol.group.trials for name in trial.record.metrics.get(SPLIT, {})}
    asked = metric if metric is not None and known and metric not in known else None
    metric = protocol.group.metric if metric is None or asked else metric
    reader = _Reader(metric, protocol.group.first.record.task)
    measured = [(choice, reader.measure(choice)) for choice in protocol.choices]
    if any(m.rows is None for _, m in measured):
        population = "this_test_set"
        measured = [(choice, Measured(m.seeds, m.values)) for choice, m in measured]
    reference = next((m for choice, m in measured if choice.arm.is_reference), None)
    curve = Curve(protocol, metric, population, [], reader.labels, reader.notes, asked)
    return replace(curve, points=[_point(curve, choice, m, reference) for choice, m in measured])


def _point(curve: Curve, choice: Choice, m: Measured, reference: Measured | None) -> Point:
    loss, paired = None, True
    if reference is not None and not choice.arm.is_reference:
        found = difference(reference.times(curve.sign), m.times(curve.sign))
        loss, paired = found if found is not None else (None, False)
    return Point(choice, m, curve.interval(m.parts()), loss, paired)


def _recorded(trial: Trial, metric: str) -> float:
    value = trial.metric(SPLIT, metric)
    return math.nan if value is None else value


def _without_copies(trials: Sequence[Trial]) -> list[Trial]:
    """The trials whose weights and predictions no earlier one has, bit for bit: two copies are one draw, not two."""
    kept, seen = [], set()
    for trial in trials:
        marks = {mark for mark in (("weights", trial.record.weights),
                                   ("predictions", trial.record.files.get(PREDICTIONS_FILE))) if mark[1]}
        if not marks & seen:
            kept.append(trial)
        seen |= marks
    return kept


class _Reader:
    """Reads predictions once, insists that all are of the same rows, and keeps only what statistics need."""

    def __init__(self, metric: str, task: str):
        self.metric, self.task = metric, task
        self.labels: np.ndarray | None = None
        self.ids: np.ndarray | None = None
        self._notes: list[str] = []
        self._read, self._lacking = 0, []  # trials; names of those without predictions

    @property
    def notes(self) -> list[str]:
        """What was found while reading, in a line each."""
        if not self._lacking:
            return self._notes
        few = ", ".join(self._lacking[:MOST_NAMED])
        more = len(self._lacking) - MOST_NAMED
        who = "no trial came with" if len(self._lacking) == self._read else (
            f"{few}{f' and {more} more' if more > 0 else ''} came without")
        return [f"{who} predictions: intervals cover seeds only", *self._notes]

    def measure(self, choice: Choice) -> Measured:
        trials = _without_copies([choice.setting.trials[seed] for seed in choice.setting.seeds])
        seeds = tuple(trial.seed for trial in trials)
        read = [self._one(trial) for trial in trials]
        if any(one is None for one in read):
            return Measured(seeds, np.array([_recorded(trial, self.metric) for trial in trials]))
        values, spread = np.array([one[0] for one in read]), np.stack([one[1] for one in read])
        return Measured(seeds, values, rows=spread)

    def _one(self, trial: Trial) -> tuple[float, np.ndarray] | None:
        """The metric with (rows,) scores whose mean it is; None without predictions of the same rows."""
        name = f"seed {trial.seed} of {trial.arm.name}"
        predictions = trial.predictions(SPLIT)
        self._read += 1
        if predictions is None:
            self._lacking.append(name)
            return None
        logits, labels, ids = predictions
        if self.ids is None:
            self.labels, self.ids = labels, ids
        if not np.array_equal(ids, self.ids) or not np.array_equal(labels, self.labels):
            self._note(f"{name} was tested on other rows than the rest: intervals cover seeds only")
            return None
        rows = influence.row_values(self.metric, self.task, logits, labels)
        return self._agreed(trial, name, float(rows.mean())), rows

    def _agreed(self, trial: Trial, name: str, value: float) -> float:
        """`value` of the recorded predictions, which should be the recorded metric."""
        recorded = trial.metric(SPLIT, self.metric)
        if recorded is None or abs(value - recorded) > TOLERANCE * max(1.0, abs(value)):
            self._note(f"{name}: the record says {self.metric} {recorded}, its predictions say {value:.6f}; "
                       "the predictions are used")
        return value

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)


def counted_at_baseline(curve: Curve) -> Curve | None:
    """The curve with every seed that has no result counted at the baseline; None where none is missing."""
    if not curve.missing or curve.baseline_rows is None:
        return None
    measured = [(p.choice, _with_baseline(p.measured, sorted(p.choice.missing), curve.baseline_rows))
                for p in curve.points]
    reference = next((m for choice, m in measured if choice.arm.is_reference), None)
    return replace(curve, points=[_point(curve, choice, m, reference) for choice, m in measured])


def _with_baseline(m: Measured, missing: Sequence[int], level: np.ndarray | float) -> Measured:
    if not missing:
        return m
    seeds, count = (*m.seeds, *missing), len(missing)
    value = float(np.mean(level))
    rows = m.rows if m.rows is None else np.vstack([m.rows, np.tile(level * np.ones(m.rows.shape[1]), (count, 1))])
    return Measured(seeds, np.append(m.values, [value] * count), rows)
