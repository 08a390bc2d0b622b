"""How deep can be frozen: bounds on each depth's loss, tested in the order of a bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.findings import looks, premises
from analysis.findings.curves import Curve, Measured, Point, difference
from analysis.load.records import Arm
from analysis.statistics import bisection, power, stats
from analysis.statistics.stats import Parts

CONFIDENCE = 0.95
KEPT_SHARES = (0.99, 0.95, 0.90)


class Test(NamedTuple):
    """One test of the verdict: with `confidence` the depth loses at most `bound` (kept gain: keeps at least that more).
    """

    freeze_depth: int | None
    bound: float | None  # in the metric's unit (a share: a fraction); None where no bound can be given
    confidence: float
    safe: bool
    seeds: int  # of the depth's test


class Safe(NamedTuple):
    """The verdict at one margin: `freeze_depth` loses at most the margin.

    `tested` are the tests in order; `every_depth_up_to`: all shallower ones that were tried are shown to lose no more.
    """

    margin: float  # in the metric's unit (a share: a fraction)
    confidence: float  # of the verdict as a whole
    freeze_depth: int | None
    reason: str
    tested: list[dict[str, Any]]
    every_depth_up_to: bool


class Kept(NamedTuple):
    """`freeze_depth` keeps this share of full fine-tuning's gain over the baseline."""

    share: float
    confidence: float
    freeze_depth: int | None
    reason: str
    tested: list[dict[str, Any]]


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
    return math.nan if point.loss is None else curve.upper(point.loss, confidence)


def sequence(curve: Curve) -> list[Point]:
    """Depths in the order of what is frozen: -1, 1, … L."""
    return [point for point in curve.depths if not point.arm.is_reference]


def blocked(curve: Curve, margin: float | None = None) -> str | None:
    """Why no verdict can be given (at this margin, where one is named), or None."""
    if curve.reference is None:
        return "full fine-tuning (freeze_depth 0) is not among the results"
    if not sequence(curve):
        return "no depth was frozen"
    if reason := _lost(curve):
        return reason
    if premises.seeds_are_copies(curve):
        return "all seeds of a setting gave the same result, bit for bit: they are one seed"
    if curve.n_seeds < stats.VERDICT_SEEDS and curve.looks is None:
        return f"{curve.n_seeds} seed{'s' * (curve.n_seeds > 1)}; a verdict needs {stats.VERDICT_SEEDS}"
    return None if margin is None else premises.vacuous_margin(curve, margin)


def _lost(curve: Curve) -> str | None:
    """Seeds and arms without a result. An adaptive search calls a depth that lost one not safe, and goes on."""
    missing = {arm: lost for arm, lost in curve.missing.items() if curve.looks is None or arm.is_reference}
    if missing:
        lost = "; ".join(f"{arm.name}: {_seeds(seeds)}" for arm, seeds in missing.items())
        return f"seeds without a result ({lost})"
    if curve.protocol.without_result and curve.looks is None:
        return "no result at all at " + ", ".join(arm.name for arm in curve.protocol.without_result)
    return None


def _seeds(missing: dict[int, str]) -> str:
    return ", ".join(f"seed {seed} {reason}" for seed, reason in missing.items())


def test_level(curve: Curve, confidence: float = CONFIDENCE) -> float:
    """The confidence of each single test, so that all tests of the verdict together have `confidence`."""
    if curve.looks is not None:
        return 1 - bisection.level(len(curve.looks.candidates), curve.looks.alpha)
    return 1 - bisection.level(len(sequence(curve)), 1 - confidence)


def deepest_safe(curve: Curve, margin: float, confidence: float = CONFIDENCE) -> Safe:
    """The deepest depth that a bisection shows to lose at most the margin, each test at `test_level`."""
    reason = blocked(curve, margin)
    if reason is not None:
        return Safe(margin, confidence, None, f"no verdict: {reason}", [], False)
    if curve.looks is not None:
        return _by_looks(curve, margin)
    depths, each = sequence(curve), test_level(curve, confidence)
    found = _bisected(depths, each, lambda point: loss_bound(point, curve, each), lambda bound: bound <= margin)
    named = next((i for i, point in enumerate(depths) if point.arm.freeze_depth == found.freeze_depth), None)
    up_to = named is not None and _all_shown(curve, depths[:named + 1], len(depths), margin, confidence)
    reason = f"no deeper freeze was tried than {depths[-1].arm.name}" if found.obstacle is None else _why_not(
        curve, found.obstacle, found.bound, each, margin)
    return Safe(margin, confidence, found.freeze_depth, reason, [test._asdict() for test in found.tested], up_to)


def _all_shown(curve: Curve, depths: Sequence[Point], count: int, margin: float, confidence: float) -> bool:
    """Whether each of these of `count` depths is shown at a level that all of them share."""
    strict = 1 - (1 - confidence) / count
    return all(loss_bound(point, curve, strict) <= margin for point in depths)


def _by_looks(curve: Curve, margin: float) -> Safe:
    """The verdict of an adaptive sweep: its own decisions, from its records."""
    found, each = looks.searched(curve, margin), test_level(curve)
    confidence = 1 - found.plan.alpha
    tested = [Test(depth, None if math.isnan(found.last[depth].bound) else found.last[depth].bound, each,
                   found.last[depth].safe, found.last[depth].seeds) for depth in found.step.tested]
    named, candidates = found.step.named, found.plan.candidates
    shallower = [] if named is None else candidates[:candidates.index(named) + 1]
    known = [point for point in sequence(curve) if point.arm.freeze_depth in shallower]
    up_to = bool(shallower) and len(known) == len(shallower) and _all_shown(curve, known, len(candidates), margin,
                                                                             confidence)
    return Safe(margin, confidence, named, looks.why_not_deeper(curve, found), [test._asdict() for test in tested],
                up_to)


class _Found(NamedTuple):
    freeze_depth: int | None
    tested: list[Test]
    obstacle: Point | None  # the shallowest depth beyond the named one that was tested and not shown
    bound: float  # of the obstacle


def _bisected(depths: Sequence[Point | None], confidence: float, bound_of: Callable[[Point], float],
              shown: Callable[[float], bool]) -> _Found:
    """None among the depths: an adaptive search did not train it, and what leads there ends."""
    tests: dict[int, Test] = {}

    def is_safe(index: int) -> bool | None:
        point = depths[index]
        if point is None:
            return None
        bound = bound_of(point)
        tests[index] = Test(point.arm.freeze_depth, None if math.isnan(bound) else bound, confidence, shown(bound),
                            len(point.measured.seeds))
        return tests[index].safe

    path = bisection.bisect(len(depths), is_safe)
    named, next_one = bisection.deepest(path), bisection.obstacle(path)
    bound = None if next_one is None else tests[next_one].bound
    return _Found(None if named is None else tests[named].freeze_depth, list(tests.values()),
                  None if next_one is None else depths[next_one], math.nan if bound is None else bound)


def _candidates(curve: Curve) -> Sequence[Point | None]:
    """The depths of a bisection, shallow to deep; None for a candidate of an adaptive sweep that is not on the curve.
    """
    if curve.looks is None:
        return sequence(curve)
    known = {point.arm.freeze_depth: point for point in curve.depths if not point.choice.missing}
    return [known.get(depth) for depth in curve.looks.candidates]


def _why_not(curve: Curve, point: Point, bound: float, confidence: float, margin: float) -> str:
    """Why a depth that was tested is not shown safe, and what would decide it."""
    assert point.loss is not None
    text = (f"{point.arm.subject} is not shown safe: it {curve.amounts.bounded(point.loss.estimate, bound)} "
            f"at the verdict's own level of {100 * confidence:.1f}% per test")
    least = curve.lower(point.loss, confidence)
    if least > margin:
        return f"{text} and at least {curve.amounts.number(least)}: it is too deep"
    needed = power.what_would_show(point.loss, curve.n_examples or 0, margin, curve.population, confidence)
    return f"{text}; {needed}"


def kept(curve: Curve, share: float, confidence: float = CONFIDENCE) -> Kept:
    """How deep at least `share` of full fine-tuning's gain over the majority (or mean) baseline is kept."""
    reason = blocked(curve)
    if reason is None and curve.baseline is None:
        reason = "the records hold no baseline"
    if reason is not None:
        return Kept(share, confidence, None, f"no verdict: {reason}", [])
    each = test_level(curve, confidence)
    found = _bisected(_candidates(curve), each, lambda point: kept_bound(curve, point, share, each),
                      lambda bound: bound >= 0)
    stopped = "no deeper freeze was tried" if found.obstacle is None else \
        f"{found.obstacle.arm.subject} is not shown to keep {share:.0%}"
    return Kept(share, confidence, found.freeze_depth, stopped, [test._asdict() for test in found.tested])


def kept_bound(curve: Curve, point: Point, share: float, confidence: float) -> float:
    """Lower bound of (m_k - base) - share·(m_0 - base), positive where the share is kept."""
    assert curve.reference is not None and curve.baseline_rows is not None
    floor = (1 - share) * curve.baseline_rows * curve.sign
    full = curve.reference.measured.times(curve.sign * share, floor)
    found = difference(point.measured.times(curve.sign), full)
    return math.nan if found is None else curve.lower(found[0], confidence)


def compare_to_full(curve: Curve) -> list[Comparison]:
    """Every arm against full fine-tuning, Holm-adjusted over the curve."""
    full = curve.reference
    if full is None:
        return []
    name = named(curve, full.arm)
    return _compared([(named(curve, point.arm), name, point.measured, full.measured)
                      for point in curve.shown if point is not full], curve)


def compare_curves(curves: Sequence[Curve]) -> list[Comparison]:
    """The same arm on different curves against the first of them, where the test rows are the same. Holm over all."""
    first, pairs = curves[0], []
    for other in (curve for curve in curves[1:] if same_rows(first, curve)):
        for point in other.points:
            base = next((p for p in first.points if p.arm == point.arm), None)
            if base is not None:
                pairs.append((named(other, point.arm), named(first, base.arm), point.measured, base.measured))
    return _compared(pairs, first)


def _compared(pairs: Sequence[tuple[str, str, Measured, Measured]], curve: Curve) -> list[Comparison]:
    found = [(a, b, x, y, change) for a, b, x, y in pairs if (change := difference(x, y)) is not None]
    p_values = [curve.p_value(change[0]) for *_, change in found]
    return [_comparison(curve, *entry, p, q) for entry, p, q in zip(found, p_values, stats.holm(p_values), strict=True)]


def _comparison(curve: Curve, a: str, b: str, x: Measured, y: Measured, change: tuple[Parts, bool], p: float,
                adjusted: float) -> Comparison:
    parts, paired = change
    found = curve.interval(parts)
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


def named(curve: Curve, arm: Arm) -> str:
    """An arm in a comparison, with its curve where there are several."""
    return f"{arm.name} ({curve.name})" if curve.name else arm.name


def same_rows(a: Curve, b: Curve) -> bool:
    """Whether two curves were tested on the same rows with the same metric."""
    same_data = a.protocol.group.identity["data"] == b.protocol.group.identity["data"]
    return (a.metric == b.metric and a.population == b.population and same_data and a.labels is not None
            and b.labels is not None and np.array_equal(a.labels, b.labels))
