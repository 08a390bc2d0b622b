"""How deep can be frozen: bounds on each depth's loss, tested from shallow to deep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from analysis.findings.curves import Curve, Measured, Point, difference
from analysis.findings.words import margin_text, points
from analysis.load.records import Arm
from analysis.statistics import power, stats
from analysis.statistics.stats import Parts

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
    """a - b in the metric's own direction, with its two-sided 95% interval.

    bootstrap_low and bootstrap_high: the crossed bootstrap of seeds and rows, a cross-check; mcnemar_p: of two single
    checkpoints. nan where they do not apply.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    bootstrap_low: float
    bootstrap_high: float
    mcnemar_p: float
    note: str


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
            f"at most {points(bound)} with 95% confidence")
    if stats.lower_bound(point.loss, curve.population) > margin:
        least = points(stats.lower_bound(point.loss, curve.population))
        return f"{text} and at least {least}: it is too deep"
    needed = power.what_would_show(point.loss, curve.n_examples or 0, margin, curve.population)
    return f"{text}; {needed}"


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
    full = curve.reference
    if full is None:
        return []
    name = _named(curve, full.arm)
    return _compared([(_named(curve, point.arm), name, point.measured, full.measured)
                      for point in curve.points if point is not full], curve)


def compare_curves(curves: Sequence[Curve]) -> list[Comparison]:
    """The same arm on different curves against the first of them, where the test rows are the same. Holm over all."""
    first, pairs = curves[0], []
    for other in (curve for curve in curves[1:] if same_rows(first, curve)):
        for point in other.points:
            base = next((p for p in first.points if p.arm == point.arm), None)
            if base is not None:
                pairs.append((_named(other, point.arm), _named(first, base.arm), point.measured, base.measured))
    return _compared(pairs, first)


def _compared(pairs: Sequence[tuple[str, str, Measured, Measured]], curve: Curve) -> list[Comparison]:
    found = [(a, b, x, y, change) for a, b, x, y in pairs if (change := difference(x, y)) is not None]
    p_values = [stats.p_value(change[0], curve.population) for *_, change in found]
    return [_comparison(curve, *entry, p, q) for entry, p, q in zip(found, p_values, stats.holm(p_values), strict=True)]


def _comparison(curve: Curve, a: str, b: str, x: Measured, y: Measured, change: tuple[Parts, bool], p: float,
                adjusted: float) -> Comparison:
    parts, paired = change
    found = stats.interval(parts, curve.population)
    note = ", ".join(part for part in (found.tag, "" if paired else "seeds not paired") if part)
    return Comparison(a, b, found.estimate, found.low, found.high, p, adjusted, *_cross_check(x, y), note)


def _cross_check(x: Measured, y: Measured) -> tuple[float, float, float]:
    """(low, high) of the crossed bootstrap over common seeds, and McNemar's p for two single checkpoints."""
    common = [seed for seed in x.seeds if seed in y.seeds]
    if x.rows is None or y.rows is None or not common:
        return math.nan, math.nan, math.nan
    a, b = x.pick(common).rows, y.pick(common).rows
    assert a is not None and b is not None
    if len(common) == 1:
        right_or_wrong = np.isin(np.concatenate([a, b]), (0.0, 1.0)).all()
        return math.nan, math.nan, stats.mcnemar(a[0], b[0]) if right_or_wrong else math.nan
    return *stats.crossed_bootstrap(a - b, np.random.default_rng(0)), math.nan


def _named(curve: Curve, arm: Arm) -> str:
    return f"{arm.name} ({curve.name})" if curve.name else arm.name


def same_rows(a: Curve, b: Curve) -> bool:
    """Whether two curves were tested on the same rows with the same metric."""
    same_data = a.protocol.group.identity["data"] == b.protocol.group.identity["data"]
    return (a.metric == b.metric and a.population == b.population and same_data and a.labels is not None
            and b.labels is not None and np.array_equal(a.labels, b.labels))
