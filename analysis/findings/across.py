"""Does it hold in general: what a share of frozen layers costs on average over several tasks.

A task is a data set; where all curves share one data set, a model. Curves of one task (two sweeps of it, several models
on one data set) are averaged first, so that nothing counts twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from statistics import fmean
from typing import Any, NamedTuple

from analysis.amounts import has_points
from analysis.findings import premises, verdict
from analysis.findings.curves import Curve, Point
from analysis.load.groups import dataset_name
from analysis.statistics import bisection
from analysis.statistics.metrics import TAGGED
from analysis.statistics.tasks import FEWEST_TASKS, at_most, over_tasks, share_interval

ALPHA = 0.05
TWO_SIDED = 1.96  # standard errors of a 95% interval
KEPT = 0.95  # the share of the gain that a safe freeze keeps, where metrics differ
MOST_STEPS = 12
EMBEDDINGS = "embeddings only"


class Task(NamedTuple):
    """One unit: `curves` are averaged before anything else is done with them."""

    name: str
    curves: list[Curve]


class Level(NamedTuple):
    """One share of the layers (or one strategy) over tasks. Losses are fractions, of the metric or of the gain."""

    label: str
    share: Fraction | None  # of the layers: the step's upper end; 0 for the embeddings, None for a strategy
    frozen: tuple[float, float] | None  # the least and the greatest share that tasks really froze there
    losses: dict[str, float]  # by task
    mean: float
    low: float
    high: float
    at_most: float  # one-sided 95%
    new_low: float
    new_high: float
    safe: int
    judged: int  # tasks in which a verdict could be given
    safe_low: float
    safe_high: float


class Test(NamedTuple):
    """One test of the bisection over levels."""

    label: str
    bound: float
    confidence: float
    safe: bool


class Across(NamedTuple):
    """Several tasks side by side. unit: "points" of the one metric, or "gain": the share of what full fine-tuning
    gains over the baseline. `named`: the deepest level shown to lose at most `allowed` on average."""

    kind: str  # what the tasks are: "data set" | "model"
    unit: str
    metric: str | None  # None where tasks differ in it
    margin: float
    allowed: float
    tasks: list[Task]
    levels: list[Level]
    steps: str
    named: str | None
    tested: list[Test]
    left_out: dict[str, str]  # curve -> why
    averaged: dict[str, list[str]]  # task -> its curves, where there are several
    in_doubt: list[str]  # tasks whose full fine-tuning is no good reference

    @property
    def enough(self) -> bool:
        return len(self.tasks) >= FEWEST_TASKS

    @property
    def left_out_because(self) -> dict[str, list[str]]:
        """Reason -> the curves that it leaves out."""
        found: dict[str, list[str]] = {}
        for curve, reason in self.left_out.items():
            found.setdefault(reason, []).append(curve)
        return found


def across(curves: Sequence[Curve], margin: float) -> Across | None:
    """Over tasks; None where the curves are of fewer than two."""
    kind = "data set" if len(_joined(curves, _data_keys)) > 1 else "model"
    keys = _data_keys if kind == "data set" else _model_keys
    if len(_joined(curves, keys)) < 2:
        return None
    left_out = {curve.name: reason for curve in curves if (reason := unusable(curve)) is not None}
    used = [curve for curve in curves if curve.name not in left_out]
    metrics = {curve.metric for curve in used}
    of_words = {curve.protocol.group.identity["task"] == TAGGED for curve in used}  # F1 of entities is another F1
    same = len(metrics) == 1 and len(of_words) == 1
    # What has no points has no natural unit in which tasks could be averaged.
    unit = "points" if same and all(map(has_points, metrics)) else "gain"
    if unit == "gain":
        left_out |= {c.name: "its records hold no baseline" for c in used if c.baseline is None}
        used = [curve for curve in used if curve.name not in left_out]
    tasks = _tasks(_joined(used, keys), kind)
    steps, told = steps_of([shares(curve) for curve in used])
    levels = [level for level in _levels(tasks, steps, unit, margin) if len(level.losses) > 1]
    allowed = margin if unit == "points" else 1 - KEPT
    named, tested = _bisected(levels, allowed)
    return Across(kind, unit, metrics.pop() if same else None, margin, allowed, tasks, levels, told, named,
                  tested, left_out, {t.name: [c.name for c in t.curves] for t in tasks if len(t.curves) > 1},
                  [t.name for t in tasks if any(premises.better_than_reference(c) for c in t.curves)])


def unusable(curve: Curve) -> str | None:
    """Why a curve says nothing about what freezing loses, or None."""
    if curve.reference is None:
        return "full fine-tuning (freeze_depth 0) is not among its results"
    if not any(point.loss is not None for point in curve.points):
        return "nothing was frozen in it, or no seed is shared with full fine-tuning"
    if not curve.protocol.group.num_layers:
        return "its records do not say how many layers the model has"
    if curve.baseline is not None and not _beats_baseline(curve):
        return "full fine-tuning does not beat the baseline beyond chance: there is nothing to lose"
    return None


def _beats_baseline(curve: Curve) -> bool:
    assert curve.reference is not None and curve.baseline is not None
    estimate, low, high, _ = curve.reference.interval
    worst = low if curve.sign > 0 else high
    if math.isnan(worst):  # two seeds: no interval; taken as if they told how far seeds lie apart
        parts = curve.reference.measured.parts()
        worst = estimate - curve.sign * TWO_SIDED * math.sqrt(parts.seeds + parts.rows)
    return curve.sign * (worst - curve.baseline) > 0


def gain(curve: Curve) -> float:
    """What full fine-tuning gains over the baseline, positive is better."""
    assert curve.reference is not None and curve.baseline is not None
    return curve.sign * (curve.reference.interval.estimate - curve.baseline)


def loss_of(curve: Curve, point: Point, unit: str) -> float:
    """A point's loss against full fine-tuning, in `unit`."""
    assert point.loss is not None
    return point.loss.estimate / (gain(curve) if unit == "gain" else 1.0)


# -- which curves are one task -----------------------------------------------------------------------------------------

def _data_keys(curve: Curve) -> set[tuple[Any, ...]]:
    """By content and by name: another split of one data set has another fingerprint and is no other task."""
    first, known = curve.protocol.group.first, curve.protocol.group.identity["data"]
    config = first.record.config
    named = ("name", config.get("dataset_name"), config.get("dataset_config_name"), str(config.get("label_column")))
    return {named} | ({("data", known)} if known else set())


def _model_keys(curve: Curve) -> set[tuple[Any, ...]]:
    identity = curve.protocol.group.identity
    named = ("name", curve.protocol.group.first.record.config.get("model_name_or_path"))
    return {named} | ({("weights", identity["weights"])} if identity["weights"] else set())


def _joined(curves: Iterable[Curve], keys_of: Callable[[Curve], set[tuple[Any, ...]]]) -> list[list[Curve]]:
    """Curves that share a key, directly or through others, together."""
    clusters: list[tuple[set[tuple[Any, ...]], list[Curve]]] = []
    for curve in curves:
        keys, members = keys_of(curve), [curve]
        for other in [cluster for cluster in clusters if cluster[0] & keys]:
            clusters.remove(other)
            keys, members = keys | other[0], [*other[1], *members]
        clusters.append((keys, members))
    return [members for _, members in clusters]


def _tasks(clusters: Sequence[list[Curve]], kind: str) -> list[Task]:
    tasks: list[Task] = []
    for members in clusters:
        identity = members[0].protocol.group.identity
        own = dataset_name(members[0].protocol.group.first) if kind == "data set" else \
            str(identity["model"]).rsplit("/", 1)[-1]
        taken = {task.name for task in tasks}
        free = (name for name in (own, *(f"{own} ({i})" for i in range(2, len(clusters) + 2))) if name not in taken)
        tasks.append(Task(next(free), members))
    return tasks


# -- shares of the layers at which tasks with different numbers of layers meet -----------------------------------------

def share_of(curve: Curve, point: Point) -> Fraction | None:
    """Share of the layers that are frozen; 0 for the embeddings alone; None without a place on the depth axis."""
    depth, layers = point.arm.freeze_depth, curve.protocol.group.num_layers
    return None if depth is None or not layers else Fraction(max(depth, 0), layers)


def shares(curve: Curve) -> set[Fraction]:
    """The shares above 0 that the curve tried."""
    found = (share_of(curve, point) for point in verdict.sequence(curve))
    return {share for share in found if share}


def steps_of(tried: Sequence[set[Fraction]]) -> tuple[list[tuple[Fraction, Fraction]], str]:
    """Half-open steps (from, to] of the share of layers, and in words how they were made.

    The same shares everywhere: exactly these. Else the finest equal steps in each of which every curve was tried; where
    there are none, quarters, with the curves that were tried there. No value is interpolated.
    """
    if not tried:
        return [], "no depth was tried"
    if all(each == tried[0] for each in tried):
        ends = [Fraction(0), *sorted(tried[0])]
        return list(zip(ends[:-1], ends[1:], strict=True)), "all tried the same shares of their layers"
    deepest = "; within a step the deepest depth that was tried counts, nothing is interpolated"
    for count in range(MOST_STEPS, 1, -1):
        steps = _equal_steps(count)
        if all(any(low < share <= high for share in each) for low, high in steps for each in tried):
            return steps, f"steps of 1/{count} of the layers, the finest in which every curve has a depth{deepest}"
    return _equal_steps(4), f"quarters of the layers, with those that have a depth there{deepest}"


def _equal_steps(count: int) -> list[tuple[Fraction, Fraction]]:
    return [(Fraction(i, count), Fraction(i + 1, count)) for i in range(count)]


# -- levels ------------------------------------------------------------------------------------------------------------

def _levels(tasks: Sequence[Task], steps: Sequence[tuple[Fraction, Fraction]], unit: str, margin: float) -> list[Level]:
    curves = [curve for task in tasks for curve in task.curves]
    found = []
    if all(any(point.arm.freeze_depth == -1 for point in curve.depths) for curve in curves):
        found.append(_level(EMBEDDINGS, Fraction(0), tasks, _embeddings, unit, margin))
    found += [_step(tasks, step, unit, margin) for step in steps]
    common = set.intersection(*({p.arm.strategy for p in c.points if p.arm.freeze_depth is None} for c in curves)) \
        if curves else set()
    strategies = [_level(name, None, tasks, _strategy(name), unit, margin) for name in sorted(common)]
    return found + sorted(strategies, key=lambda level: level.mean)


def _embeddings(curve: Curve) -> Point | None:
    return next((point for point in curve.depths if point.arm.freeze_depth == -1), None)


def _strategy(name: str) -> Callable[[Curve], Point | None]:
    return lambda curve: next((p for p in curve.points if p.arm.strategy == name), None)


def _step(tasks: Sequence[Task], step: tuple[Fraction, Fraction], unit: str, margin: float) -> Level:
    def deepest(curve: Curve) -> Point | None:
        within = [p for p in verdict.sequence(curve) if step[0] < (share_of(curve, p) or Fraction(0)) <= step[1]]
        return within[-1] if within else None

    found = _level("", step[1], tasks, deepest, unit, margin)
    exact = found.frozen is None or found.frozen == (float(step[1]), float(step[1]))
    return found._replace(label=f"{'' if exact else 'up to '}{float(step[1]):.0%} of the layers")


def _level(label: str, share: Fraction | None, tasks: Sequence[Task], pick: Callable[[Curve], Point | None], unit: str,
           margin: float) -> Level:
    losses, frozen, safe = {}, [], []
    for task in tasks:
        found = [(curve, point) for curve in task.curves if (point := pick(curve)) is not None
                 and point.loss is not None]
        if not found:
            continue
        losses[task.name] = fmean(loss_of(curve, point, unit) for curve, point in found)
        frozen += [float(x) for curve, point in found if (x := share_of(curve, point)) is not None]
        judged = [_is_safe(curve, point, unit, margin) for curve, point in found]
        safe += [] if None in judged else [all(judged)]
    values = list(losses.values())
    over = over_tasks(values) if values else None
    spread = tuple(over)[1:] if over else (math.nan,) * 5
    mean, low, high, new_low, new_high = spread
    return Level(label, share, (min(frozen), max(frozen)) if frozen else None, losses, mean, low, high,
                 at_most(values), new_low, new_high, sum(safe), len(safe), *share_interval(sum(safe), len(safe)))


def _is_safe(curve: Curve, point: Point, unit: str, margin: float) -> bool | None:
    """Whether this task by itself shows the point safe (one-sided 95%); None where it can give no verdict."""
    if unit == "points":
        return None if verdict.blocked(curve, margin) else verdict.loss_bound(point, curve) <= margin
    return None if verdict.blocked(curve) else verdict.kept_bound(curve, point, KEPT, 1 - ALPHA) >= 0


def _bisected(levels: Sequence[Level], allowed: float) -> tuple[str | None, list[Test]]:
    """The deepest level whose mean loss is shown to be at most `allowed`, by a bisection as for a single task."""
    order = [level for level in levels if level.share is not None and len(level.losses) >= FEWEST_TASKS]
    confidence = 1 - bisection.level(len(order), ALPHA)
    bounds = [at_most(list(level.losses.values()), confidence) for level in order]
    path = bisection.bisect(len(order), lambda index: bounds[index] <= allowed)
    deepest = bisection.deepest(path)
    return (None if deepest is None else order[deepest].label,
            [Test(order[i].label, bounds[i], confidence, safe) for i, safe in path])
