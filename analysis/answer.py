"""The answer in a sentence or two, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis import stats, verdict
from analysis.curves import Curve, Point
from analysis.verdict import points


def answer(curves: Sequence[Curve], margin: float) -> str:
    """One or two sentences per curve."""
    return " ".join(_one(curve, margin) for curve in curves)


def _one(curve: Curve, margin: float) -> str:
    text = _verdict(curve, margin) if verdict.blocked(curve) is None else _no_verdict(curve)
    return f"{curve.name}: {text}" if curve.name else text


def where(curve: Curve) -> str:
    """Model and data, for a sentence."""
    identity = curve.protocol.group.identity
    return f"{identity['model']} on {identity['dataset']}"


def _verdict(curve: Curve, margin: float) -> str:
    safe = verdict.deepest_safe(curve, margin)
    if safe.freeze_depth is None:
        return (f"No frozen depth of {where(curve)} is shown to lose at most {verdict.margin_text(margin)} of "
                f"{curve.metric}: {safe.reason}.")
    point = next(p for p in curve.depths if p.arm.freeze_depth == safe.freeze_depth)
    what = depth_phrase(curve, point)
    bound = verdict.loss_bound(point, curve)
    text = (f"You can freeze {what} of {where(curve)}: every depth up to it loses at most "
            f"{verdict.margin_text(margin)} of {curve.metric} against full fine-tuning, and it itself at "
            f"most {points(max(bound, 0.0))} (95% confidence{_saving(curve, point)}).")
    if safe.freeze_depth == verdict.sequence(curve)[-1].arm.freeze_depth:
        return f"{text} No deeper freeze was tried."
    return f"{text} {safe.reason[0].upper()}{safe.reason[1:]}."


def depth_phrase(curve: Curve, point: Point) -> str:
    """'the first 4 of 6 layers', 'the embeddings', 'the whole backbone'."""
    depth, total = point.arm.freeze_depth, curve.protocol.group.num_layers
    if depth == -1:
        return "the embeddings"
    if total and depth == total:
        return "the whole backbone"
    return f"the first {depth} of {total} layers" if total else f"the first {depth} layers"


def _saving(curve: Curve, point: Point) -> str:
    """', in 45% of the training time', where times are known and it is faster."""
    assert curve.reference is not None
    own, full = point.alone_seconds, curve.reference.alone_seconds
    return f"; training takes {own / full:.0%} of the time" if own and full and own < full else ""


def _no_verdict(curve: Curve) -> str:
    """What can be said without one: the deepest depth's change, or the level."""
    reason = verdict.blocked(curve)
    deepest = next((p for p in reversed(verdict.sequence(curve)) if p.loss is not None), None)
    if deepest is None or deepest.loss is None:
        level = max(curve.points, key=lambda p: curve.sign * p.interval.estimate)
        return (f"No verdict for {where(curve)}: {reason}. The best of what was tried is {level.arm.name} with "
                f"{curve.metric} {percent(level.interval.estimate)}{_between(level.interval)}.")
    change = stats.interval(deepest.loss._replace(estimate=-deepest.loss.estimate), curve.population)
    return (f"No verdict for {where(curve)}: {reason}. Freezing {depth_phrase(curve, deepest)} changes "
            f"{curve.metric} by {signed(change.estimate)} points{_range(change)}.")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def signed(fraction: float) -> str:
    """A change in points with its sign; a true minus."""
    text = points(abs(fraction))
    if text == "0.0":
        return "0.0"
    return ("+" if fraction > 0 else "−") + text


def _between(interval: stats.Interval) -> str:
    if math.isnan(interval.low):
        return " (one or two seeds: no interval)"
    return f" (95% interval {percent(interval.low)} to {percent(interval.high)}{_tag(interval)})"


def _range(interval: stats.Interval) -> str:
    if math.isnan(interval.low):
        return " (two seeds: no interval)"
    return f" (95% interval {signed(interval.low)} to {signed(interval.high)}{_tag(interval)})"


def _tag(interval: stats.Interval) -> str:
    return f", {interval.tag}" if interval.tag else ""
