"""An adaptive sweep's decisions, computed again from its records: what each look said, and which depth comes next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from analysis.findings.curves import Curve, Point, difference
from analysis.findings.words import count, seeds
from analysis.load.adaptive import AdaptivePlan
from analysis.load.records import Arm
from analysis.statistics import sequential
from analysis.statistics.sequential import Decision


class Searched(NamedTuple):
    """Where the search stands. `decisions`: candidate -> what its looks said, in order, the last one standing."""

    plan: AdaptivePlan
    step: sequential.Step
    decisions: dict[int, list[Decision]]

    @property
    def last(self) -> dict[int, Decision]:
        return {depth: found[-1] for depth, found in self.decisions.items() if found}


def searched(curve: Curve, margin: float) -> Searched:
    """The search at this margin. At another than the sweep's own it may end where the sweep trained no further."""
    plan = curve.looks
    assert plan is not None
    each = sequential.each_alpha(plan.candidates, plan.alpha)
    by_depth = {point.arm.freeze_depth: point for point in curve.depths}
    decisions = {depth: list(_looks(curve, by_depth[depth], plan, margin, each)) for depth in plan.candidates
                 if depth in by_depth}
    lost = {arm.freeze_depth for arm in curve.protocol.without_result}
    decisions |= {depth: [sequential.without_result()] for depth in plan.candidates if depth in lost}
    last = {depth: found[-1] for depth, found in decisions.items() if found}
    step = sequential.next_depths(plan.candidates, last)
    path = (*step.tested, *(() if step.now is None else (step.now,)))
    return Searched(plan, step, {depth: decisions[depth] for depth in path if decisions.get(depth)})


def _looks(curve: Curve, point: Point, plan: AdaptivePlan, margin: float, alpha: float) -> Iterator[Decision]:
    """Looks at one depth, up to the first that is final."""
    full = curve.reference
    assert full is not None
    known = [{*p.choice.setting.trials, *p.choice.setting.lost} for p in (full, point)]
    for look in plan.looks[:sum(look <= plan.last_look(known[0] & known[1]) for look in plan.looks)]:
        asked = plan.seeds[:look]
        lost = sum(any(seed in p.choice.setting.lost for p in (full, point)) for seed in asked)
        both = [seed for seed in asked if seed in full.measured.seeds and seed in point.measured.seeds]
        found = difference(full.measured.pick(both).times(curve.sign), point.measured.pick(both).times(curve.sign)) \
            if both else None
        decision = sequential.without_result(look, plan.looks.index(look) + 1) if found is None else sequential.decide(
            found[0], margin, alpha, plan.max_seeds, population=curve.population, seeds=look, lost=lost)
        yield decision
        if decision.final:
            return


def why_not_deeper(curve: Curve, found: Searched) -> str:
    """What stands beyond the named depth: the shallowest depth there that was decided against, or the one at hand."""
    step, plan = found.step, found.plan
    rank = {depth: place for place, depth in enumerate(plan.candidates)}
    beyond = [depth for depth in step.tested if not found.last[depth].safe and
              (step.named is None or rank[depth] > rank[step.named])]
    if step.now is not None and (step.named is None or rank[step.now] > rank[step.named]):
        return _at_hand(curve, found, step.now)
    if not beyond:
        return f"no deeper freeze is a candidate than {Arm('', plan.candidates[-1]).name}"
    depth = min(beyond, key=rank.__getitem__)
    return f"{Arm('', depth).subject} {_against(curve, depth, found.last[depth], plan)}"


def _at_hand(curve: Curve, found: Searched, depth: int) -> str:
    name, decision = Arm("", depth).subject, found.last.get(depth)
    if decision is None:
        return f"{name} comes next and has not been looked at"
    return (f"{name} is not decided: it {_loses(curve, decision)} after {count(decision.seeds, 'seed')}; "
            f"{count((decision.next_seeds or 0) - decision.seeds, 'more seed')} are next")


def _loses(curve: Curve, decision: Decision) -> str:
    return curve.amounts.loses_plainly(decision.estimate, decision.bound)


def _against(curve: Curve, depth: int, decision: Decision, plan: AdaptivePlan) -> str:
    """Why a depth was decided against, as the rest of a sentence that begins with it."""
    after = f"after {count(decision.seeds, 'seed')}"
    if math.isnan(decision.estimate):
        return "is not shown safe: no trial has a result"
    if decision.lost:
        point = next(p for p in curve.depths if p.arm.freeze_depth == depth)
        return f"is not shown safe: {_lost(curve, point)}; a lost seed can only flatter, so it was given up {after}"
    if decision.state == "unsafe":
        loses = curve.amounts.loses_plainly(decision.estimate, decision.lower, "at least")
        return f"is too deep: it {loses}, {after}"
    if decision.next_seeds is None:
        return f"is not shown safe: it {_loses(curve, decision)} after all of {plan.max_seeds} seeds"
    return (f"is not shown safe: it {_loses(curve, decision)} {after}, and was given up because the chance that "
            f"{plan.max_seeds} seeds would show it was {decision.chance:.0%}")


def _lost(curve: Curve, point: Point) -> str:
    known = {**(curve.reference.choice.setting.lost if curve.reference else {}), **point.choice.setting.lost}
    return "; ".join(f"{seeds([seed])} {why}" for seed, why in sorted(known.items()))


def how(found: Searched) -> str:
    """In which order depths were looked at, and how the level was kept, in two sentences."""
    plan, alpha = found.plan, sequential.each_alpha(found.plan.candidates, found.plan.alpha)
    order = ", ".join(f"{Arm('', depth).name} {_state(last)} after {count(last.seeds, 'seed')}"
                      for depth, last in found.last.items())
    if not order:
        return ""
    looks = ", ".join(map(str, plan.looks))
    return (f"Looked at in the order of a bisection: {order}. Each depth may err in {100 * alpha:.3g}%, spent over "
            f"looks at {looks} seeds (power family, t^{sequential.SPENDING_POWER:g}), so that the verdict as a whole "
            f"has {100 * (1 - plan.alpha):g}%; bounds and intervals are repeated ones, valid whatever made it stop.")


def _state(decision: Decision) -> str:
    if math.isnan(decision.estimate):
        return "without a result"
    return {"safe": "safe", "unsafe": "too deep", "futile": "given up", "undecided": "undecided"}[decision.state]


def beside_the_grid(curve: Curve, found: Searched) -> str:
    """How many trials were run, beside those of the grid, and how many of them served nothing."""
    plan, reference = found.plan, curve.reference
    settings = len(reference.choice.candidates) if reference else 1
    tuning = len({seed for plan in curve.protocol.group.plans for seed in plan.seeds}) or 1
    grid = sequential.plan(len(plan.candidates), settings, tuning, plan.max_seeds).grid
    run = len(curve.protocol.group.trials)
    ahead = f", {plan.trained_ahead_unused} of them trained ahead for nothing" if plan.trained_ahead_unused else ""
    return f"It took {count(run, 'trial')}{ahead}; the grid with 10 confirming seeds takes {grid:,}."


def differing(curve: Curve) -> Iterator[str]:
    """Decisions of the sweep that its records do not bear out."""
    plan = curve.looks
    if plan is None or curve.reference is None:
        return
    own = searched(curve, plan.margin)
    for told in plan.decisions:
        depth, look = int(told["freeze_depth"]), int(told["seeds"])
        known = next((d for d in own.decisions.get(depth, ()) if d.seeds == look), None)
        if known is not None and known.state != told["state"]:
            yield (f"{Arm('', depth).name} after {look} seeds: the sweep decided {told['state']}, its records say "
                   f"{known.state}; the records are used")


def unfinished(curve: Curve) -> Iterator[str]:
    plan = curve.looks
    if plan is None or curve.reference is None:
        return
    own = searched(curve, plan.margin)
    if own.step.now is not None:
        yield f"the adaptive search is not finished: {_at_hand(curve, own, own.step.now)}"


def described(curve: Curve, margin: float) -> dict[str, Any] | None:
    """For summary.json: the search, its looks at the margin, and what they decided."""
    plan = curve.looks
    if plan is None or curve.reference is None:
        return None
    found = searched(curve, margin)
    told = [{"freeze_depth": depth, "look": d.look, "seeds": d.seeds, "state": d.state, "estimate": d.estimate,
             "lower": d.lower, "bound": d.bound, "confidence": d.confidence, "lost": d.lost}
            for depth, looked in found.decisions.items() for d in looked]
    return {"candidates": list(plan.candidates), "margin": margin, "alpha": plan.alpha, "max_seeds": plan.max_seeds,
            "looks": list(plan.looks), "spending": f"power family, t^{sequential.SPENDING_POWER:g}",
            "bounds": "repeated confidence bounds", "decisions": told, "next": found.step.now,
            "trained_ahead_unused": plan.trained_ahead_unused}
