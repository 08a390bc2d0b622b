"""The answer in a sentence or two, with its uncertainty."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from analysis.amounts import amounts, amounts_of
from analysis.findings import looks, premises, verdict
from analysis.findings.curves import Curve, Point
from analysis.findings.words import count
from analysis.load.records import Arm
from analysis.statistics import stats

MOST_STRATEGIES = 5  # that are told in a sentence; more are in the table


class Answer(NamedTuple):
    """What to remember, and what to know besides: one paragraph per curve."""

    headline: str
    details: list[str]


def answer(curves: Sequence[Curve], margin: float, *, brief: bool = False) -> Answer:
    """The answer of one curve, or of several in one sentence with their details after it; `brief`: without each one's.
    """
    found = [_one(curve, margin) for curve in curves]
    if len(curves) == 1:
        return found[0]
    about = {where(curve) for curve in curves}
    of = f" for {about.pop()}" if len(about) == 1 else ""
    outcomes: dict[str, list[str]] = defaultdict(list)
    for curve in curves:
        outcomes[_deepest(curve, margin)].append(curve.name)
    ordered = sorted(outcomes.items(), key=lambda found: found[0].startswith(("none is shown", "no verdict")))
    depths = "; ".join(f"{outcome} ({_which(names, curves)})" for outcome, names in ordered)
    details = [] if brief else [f"{curve.name}: {' '.join([*_named(curve, a, margin), *a.details])}"
                                for curve, a in zip(curves, found, strict=True) if a.details]
    across = _across(curves)
    told = amounts_of(curve.metric for curve in curves).margin_of(margin)
    return Answer(f"Deepest safe freeze at a margin of {told}{of}: {depths}.",
                  [across, *details] if across else details)


def _named(curve: Curve, found: Answer, margin: float) -> list[str]:
    """The curve's own headline where it names a depth, which its details speak about."""
    blocked = verdict.blocked(curve, margin) is not None
    return [] if blocked or verdict.deepest_safe(curve, margin).freeze_depth is None else [found.headline]


def _across(curves: Sequence[Curve]) -> str:
    """Whether the same depth or strategy differs between curves, where they were tested on the same rows."""
    found = [c for c in verdict.compare_curves(curves) if not math.isnan(c.p_adjusted)]
    if not found:
        return ""
    clear = [c for c in found if c.p_adjusted < 1 - verdict.CONFIDENCE]
    of_first = amounts(curves[0].metric)  # with which all are compared
    rest = f"{count(len(found), 'comparison')} between the curves, adjusted after Holm at 5%"
    if not clear:
        return f"The same depth differs between no two curves beyond chance ({rest})."
    told = "; ".join(f"{c.a} against {c.b}: {of_first.signed(c.difference)}" for c in clear[:MOST_STRATEGIES])
    more = f" and {len(clear) - MOST_STRATEGIES} more" if len(clear) > MOST_STRATEGIES else ""
    differ = f"{count(len(clear), 'difference')} {of_first.differences}"
    return f"Between curves {differ} beyond chance ({rest}): {told}{more}."


def _which(names: list[str], curves: Sequence[Curve]) -> str:
    return f"all {len(curves)} curves" if len(names) == len(curves) else "; ".join(names)


def _deepest(curve: Curve, margin: float) -> str:
    if (reason := verdict.blocked(curve, margin)) is not None:
        # What would be a better margin stands among the warnings.
        return f"no verdict, {reason if verdict.blocked(curve) else reason.split(' (')[0]}"
    depth = verdict.deepest_safe(curve, margin).freeze_depth
    return "none is shown" if depth is None else Arm("", depth).name


def _one(curve: Curve, margin: float) -> Answer:
    headline, detail = _verdict(curve, margin) if verdict.blocked(curve, margin) is None else _no_verdict(curve, margin)
    text = " ".join(part for part in (detail, _strategies(curve)) if part)
    return Answer(headline, [part for part in (text, _search(curve, margin)) if part])


def _strategies(curve: Curve) -> str:
    """What strategies without a depth change, in a sentence."""
    others = [p for p in curve.points if p.arm.freeze_depth is None and p.loss is not None]
    if not others or len(others) > MOST_STRATEGIES:
        return ""
    changes = [(p.arm.name, _change(p, curve)) for p in others]
    told = ", ".join(f"{name} by {curve.amounts.signed(c.estimate)}{_range(curve, c)}" for name, c in changes)
    return f"Against full fine-tuning, {curve.metric} changes{curve.amounts.in_unit} with {told}."


def _change(point: Point, curve: Curve) -> stats.Interval:
    """The metric's change against full fine-tuning, more being more."""
    assert point.loss is not None
    return curve.interval(point.loss._replace(estimate=-curve.sign * point.loss.estimate))


def where(curve: Curve) -> str:
    """Model and data, for a sentence."""
    identity = curve.protocol.group.identity
    return f"{str(identity['model']).rsplit('/', 1)[-1]} on {identity['dataset']}"


def _verdict(curve: Curve, margin: float) -> tuple[str, str]:
    safe = verdict.deepest_safe(curve, margin)
    if safe.freeze_depth is None:
        return (f"No frozen depth of {where(curve)} is shown to "
                f"{curve.amounts.to_lose(curve.amounts.margin(margin), named=True)} against full fine-tuning.",
                _sentence(safe.reason))
    point = next(p for p in curve.depths if p.arm.freeze_depth == safe.freeze_depth)
    bound = max(verdict.loss_bound(point, curve), 0.0)
    loses = curve.amounts.loses_at_most(bound, named=True)
    headline = (f"You can freeze {depth_phrase(curve, point)} of {where(curve)}: it {loses} against full fine-tuning "
                f"(95% confidence){_saving(curve, point)}.")
    headline = " ".join(part for part in (headline, _doubts(curve, point)) if part)
    told = (_up_to(curve, safe), _own_level(curve, safe), _deeper(curve, safe))
    return headline, " ".join(part for part in told if part)


def _search(curve: Curve, margin: float) -> str:
    """Of an adaptive sweep: in which order it looked, how the level was kept, and what it cost."""
    if curve.looks is None or curve.reference is None:
        return ""
    found = looks.searched(curve, margin)
    return " ".join(part for part in (looks.how(found), looks.beside_the_grid(curve, found)) if part)


def _doubts(curve: Curve, point: Point) -> str:
    """What the verdict's sentence must not be read without: a reference in doubt, circumstances that differ."""
    told = []
    if better := premises.better_than_reference(curve):
        best = better[0]
        worse = f"{curve.amounts.worse_than(-best.loss.estimate)} {best.arm.name}"
        told.append(f"But the reference is in doubt: full fine-tuning is {worse}. "
                    f"{premises.against_best(curve, point, best)}")
    if differing := premises.confounds(curve, point):
        told.append(f"But {point.arm.name} and full fine-tuning differ in {', '.join(differing)} too: the "
                    "comparison is confounded.")
    return " ".join(told)


def _up_to(curve: Curve, safe: verdict.Safe) -> str:
    """Whether the shallower depths are shown too; nothing where there are none."""
    first = verdict.sequence(curve)[0].arm.freeze_depth if curve.looks is None else curve.looks.candidates[0]
    if safe.freeze_depth == first:
        return ""
    if safe.every_depth_up_to:
        return ("Every depth up to it that was tried is shown to "
                f"{curve.amounts.to_lose(curve.amounts.margin(safe.margin))}.")
    return "This is a claim about this depth, not about every shallower one."


def _own_level(curve: Curve, safe: verdict.Safe) -> str:
    """The bound at which the verdict was reached, beside the headline's 95%."""
    test = next(test for test in safe.tested if test["freeze_depth"] == safe.freeze_depth)
    if len(safe.tested) == 1 and test["confidence"] == verdict.CONFIDENCE:
        return ""
    loses = curve.amounts.loses_at_most(max(test["bound"], 0.0))
    if curve.looks is not None:
        return (f"At the level of the search's single test, {100 * test['confidence']:.1f}% over all looks, it "
                f"{loses}.")
    order = ", ".join(Arm("", test["freeze_depth"]).name.removeprefix("depth ") for test in safe.tested)
    return (f"Tested in the order of a bisection ({order}), each at {100 * test['confidence']:.1f}%, so that the "
            f"verdict as a whole has 95%: at that level it {loses}.")


def _deeper(curve: Curve, safe: verdict.Safe) -> str:
    if curve.looks is None and safe.freeze_depth == verdict.sequence(curve)[-1].arm.freeze_depth:
        return "No deeper freeze was tried."
    return _sentence(safe.reason)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def depth_phrase(curve: Curve, point: Point) -> str:
    """'the first 4 of 6 layers', 'the embeddings', 'the whole backbone'."""
    depth, total = point.arm.freeze_depth, curve.protocol.group.num_layers
    if depth == -1:
        return "the embeddings"
    if total and depth == total:
        return "the whole backbone"
    if depth == 1:
        return f"the first of {total} layers" if total else "the first layer"
    return f"the first {depth} of {total} layers" if total else f"the first {depth} layers"


def _saving(curve: Curve, point: Point) -> str:
    """' and trains in 45% of the time', where times are known and it is faster."""
    assert curve.reference is not None
    own, full = point.alone_seconds, curve.reference.alone_seconds
    return f" and trains in {own / full:.0%} of the time" if own and full and own < full else ""


def _no_verdict(curve: Curve, margin: float) -> tuple[str, str]:
    """What can be said without one: the deepest depth's change, or the best level."""
    headline = f"No verdict for {where(curve)}: {verdict.blocked(curve, margin)}."
    deepest = next((p for p in reversed(verdict.sequence(curve)) if p.loss is not None), None)
    if deepest is None:
        best = max(curve.points, key=lambda p: curve.sign * p.interval.estimate)
        return (headline, f"The best of what was tried is {best.arm.name} with {curve.metric} "
                                f"{curve.amounts.level(best.interval.estimate)}{_between(curve, best.interval)}.")
    change = _change(deepest, curve)
    return (headline, f"Freezing {depth_phrase(curve, deepest)} changes {curve.metric} by "
                            f"{curve.amounts.change(change.estimate)}{_range(curve, change)}.")


def _between(curve: Curve, interval: stats.Interval) -> str:
    if math.isnan(interval.low):
        return " (one or two seeds: no interval)"
    low, high = map(curve.amounts.level, (interval.low, interval.high))
    return f" (95% interval {low} to {high}{_tag(interval)})"


def _range(curve: Curve, interval: stats.Interval) -> str:
    if math.isnan(interval.low):
        return " (two seeds: no interval)" if interval.tag == "two seeds" else " (no interval)"
    low, high = map(curve.amounts.signed, (interval.low, interval.high))
    return f" (95% interval {low} to {high}{_tag(interval)})"


def _tag(interval: stats.Interval) -> str:
    return f", {interval.tag}" if interval.tag else ""
