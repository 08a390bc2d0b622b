"""How deep can be frozen: bounds on each depth's loss, tested from shallow to deep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analysis import power, stats
from analysis.curves import Curve, Point, difference
from analysis.load import Arm

CONFIDENCE = 0.95
KEPT_SHARES = (0.99, 0.95, 0.90)


class Safe(NamedTuple):
    """The verdict at one margin: every depth up to `freeze_depth` loses at most the margin."""

    margin: float  # fraction of the metric
    confidence: float
    freeze_depth: int | None
    reason: str


class Kept(NamedTuple):
    """Every depth up to `freeze_depth` keeps this share of full fine-tuning's gain over the baseline."""

    share: float
    confidence: float
    freeze_depth: int | None
    reason: str


class Comparison(NamedTuple):
    """a - b in the metric's own direction, with its two-sided 95% interval."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    note: str


def points(fraction: float) -> str:
    """A difference in percentage points, for a sentence; never '-0.0'."""
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:.1f}"


def margin_text(margin: float) -> str:
    return f"{100 * margin:g} point" + ("" if margin == 0.01 else "s")


def loss_bound(point: Point, curve: Curve, confidence: float = CONFIDENCE) -> float:
    """With this confidence the point loses at most so much (nan where nothing can be said)."""
    return math.nan if point.loss is None else stats.upper_bound(point.loss, curve.population, confidence)


def sequence(curve: Curve) -> list[Point]:
    """Depths in the order in which they are tested: -1, 1, … L."""
    return [point for point in curve.depths if not point.arm.is_reference]


def blocked(curve: Curve) -> str | None:
    """Why no verdict can be given, or None."""
    if curve.reference is None:
        return "full fine-tuning (freeze_depth 0) is not among the results"
    if not sequence(curve):
        return "no depth was frozen"
    if curve.missing:
        lost = "; ".join(f"{arm.name}: {_seeds(missing)}" for arm, missing in curve.missing.items())
        return f"seeds without a result ({lost})"
    if curve.protocol.without_result:
        return "no result at all at " + ", ".join(arm.name for arm in curve.protocol.without_result)
    if curve.n_seeds < stats.VERDICT_SEEDS:
        return f"{curve.n_seeds} seed{'s' * (curve.n_seeds > 1)}; a verdict needs {stats.VERDICT_SEEDS}"
    return None


def _seeds(missing: dict[int, str]) -> str:
    return ", ".join(f"seed {seed} {reason}" for seed, reason in missing.items())


def deepest_safe(curve: Curve, margin: float, confidence: float = CONFIDENCE) -> Safe:
    """The fixed sequence: stop at the first depth whose bound is not below the margin."""
    reason = blocked(curve)
    if reason is not None:
        return Safe(margin, confidence, None, f"no verdict: {reason}")
    tested = sequence(curve)
    bounds = [loss_bound(point, curve, confidence) for point in tested]
    count = stats.fixed_sequence([bound <= margin for bound in bounds])
    deepest = tested[count - 1].arm.freeze_depth if count else None
    if count == len(tested):
        return Safe(margin, confidence, deepest, f"every depth that was tried loses at most {margin_text(margin)}")
    return Safe(margin, confidence, deepest, _why_stopped(curve, tested[count], bounds[count], margin))


def _why_stopped(curve: Curve, point: Point, bound: float, margin: float) -> str:
    assert point.loss is not None
    text = (f"{point.arm.name} is not shown safe: it loses {points(point.loss.estimate)} points, "
            f"at most {points(bound)} (95%)")
    if stats.lower_bound(point.loss, curve.population) > margin:
        return f"{text}, and at least {points(stats.lower_bound(point.loss, curve.population))}: it is too deep"
    needed = power.what_would_show(point.loss, curve.n_examples or 0, margin, curve.population)
    return f"{text}; to show it would take {needed}"


def kept(curve: Curve, share: float, confidence: float = CONFIDENCE) -> Kept:
    """How deep at least `share` of full fine-tuning's gain over the majority (or mean) baseline is kept."""
    reason = blocked(curve)
    if reason is None and curve.baseline is None:
        reason = "the records hold no baseline"
    if reason is not None:
        return Kept(share, confidence, None, f"no verdict: {reason}")
    bounds = [_kept_bound(curve, point, share, confidence) for point in sequence(curve)]
    count = stats.fixed_sequence([bound >= 0 for bound in bounds])
    deepest = sequence(curve)[count - 1].arm.freeze_depth if count else None
    stopped = "every depth that was tried" if count == len(bounds) else \
        f"{sequence(curve)[count].arm.name} is not shown to keep {share:.0%}"
    return Kept(share, confidence, deepest, stopped)


def _kept_bound(curve: Curve, point: Point, share: float, confidence: float) -> float:
    """Lower bound of (m_k - base) - share·(m_0 - base), positive where the share is kept."""
    assert curve.reference is not None and curve.baseline_rows is not None
    floor = (1 - share) * curve.baseline_rows * curve.sign
    full = curve.reference.measured.times(curve.sign * share, floor)
    found = difference(point.measured.times(curve.sign), full)
    return math.nan if found is None else stats.lower_bound(found[0], curve.population, confidence)


def compare_to_full(curve: Curve) -> list[Comparison]:
    """Every arm against full fine-tuning, Holm-adjusted over the curve."""
    compared = [point for point in curve.points if point.loss is not None]
    p_values = [stats.p_value(point.loss, curve.population) for point in compared if point.loss is not None]
    adjusted = stats.holm(p_values)
    return [_comparison(curve, point, p, q) for point, p, q in zip(compared, p_values, adjusted, strict=True)]


def _comparison(curve: Curve, point: Point, p: float, adjusted: float) -> Comparison:
    assert point.loss is not None and curve.reference is not None
    change = stats.interval(point.loss._replace(estimate=-curve.sign * point.loss.estimate), curve.population)
    note = ", ".join(part for part in (change.tag, "" if point.paired else "seeds not paired") if part)
    return Comparison(_named(curve, point.arm), _named(curve, curve.reference.arm), change.estimate, change.low,
                      change.high, p, adjusted, note)


def _named(curve: Curve, arm: Arm) -> str:
    return f"{arm.name} ({curve.name})" if curve.name else arm.name


def compare_curves(curves: Sequence[Curve]) -> list[Comparison]:
    """The same arm on different curves, against the first of them; where the test rows are the same. Holm over all."""
    found = []
    for other in curves[1:]:
        for point in other.points:
            base = next((p for p in curves[0].points if p.arm == point.arm), None)
            if base is None or not same_rows(curves[0], other):
                continue
            change = difference(point.measured, base.measured)
            if change is not None:
                found.append((_named(other, point.arm), _named(curves[0], base.arm), *change))
    population = curves[0].population
    p_values = [stats.p_value(parts, population) for _, _, parts, _ in found]
    return [
        Comparison(a, b, *stats.interval(parts, population)[:3], p, q, "" if paired else "seeds not paired")
        for (a, b, parts, paired), p, q in zip(found, p_values, stats.holm(p_values), strict=True)
    ]


def same_rows(a: Curve, b: Curve) -> bool:
    """Whether two curves were tested on the same rows with the same metric."""
    same_data = a.protocol.group.identity["data"] == b.protocol.group.identity["data"]
    return (a.metric == b.metric and a.population == b.population and same_data and a.labels is not None
            and b.labels is not None and np.array_equal(a.labels, b.labels))
