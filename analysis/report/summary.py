"""summary.json: the report's numbers for other programs. The keys are a contract (docs/statistics.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from analysis.figures.plots_cost import COSTS, pareto
from analysis.findings import across_words, answer, looks, verdict
from analysis.findings.across import Across
from analysis.findings.curves import Curve, Point, counted_at_baseline
from analysis.statistics import power, stats
from analysis.statistics.stats import VERDICT_SEEDS

METHODS = {
    "new_text": "split-t: t over seeds and normal over test rows, 95%",
    "this_test_set": "t over seeds on these test rows, 95%",
}


def summarize(curves: Sequence[Curve], margins: Sequence[float], warnings: Sequence[Any],
              general: Across | None = None) -> dict[str, Any]:
    """The whole summary; what differs between curves is a list in their order, what does not is one value."""
    found = in_general(curves, margins[0], general)
    return finite({
        **_same_or_list([_identity(curve) for curve in curves]),
        "curves": [curve.name for curve in curves],
        "answer": " ".join([found.headline, *found.details]), "headline": found.headline, "details": found.details,
        "curve": [entry(curve, point) for curve in curves for point in curve.points],
        "across_tasks": None if general is None else across_entry(general),
        "deepest_safe_freeze": [
            {**_curve(curve), **verdict.deepest_safe(curve, margin)._asdict()} for curve in curves for margin in margins
        ],
        "adaptive": [{**_curve(curve), **found} for curve in curves
                     if (found := looks.described(curve, margins[0])) is not None],
        "kept_gain": [{**_curve(curve), **verdict.kept(curve, share)._asdict()}
                      for curve in curves for share in verdict.KEPT_SHARES],
        **_same_or_list([_method(curve, margins[0]) for curve in curves]),
        "comparisons": [comparison._asdict() for comparison in all_comparisons(curves)],
        "pareto": [
            {"cost": cost.name, **point._asdict()}
            for cost in COSTS for curve in curves for point in pareto(curve, cost)
        ],
        "seed_correlation": [{**_curve(curve), **entry} for curve in curves for entry in seed_correlations(curve)],
        "lost_seeds_at_baseline": [entry for curve in curves for entry in pessimistic(curve)],
        "cost": [{**_curve(curve), **total_cost(curve)} for curve in curves],
        "warnings": [warning._asdict() for warning in warnings],
    })


def in_general(curves: Sequence[Curve], margin: float, general: Across | None) -> answer.Answer:
    """The answer with what several tasks say together: first, where they are enough to say something in general."""
    first = None if general is None else across_words.headline(general)
    found = answer.answer(curves, margin, brief=first is not None)
    if general is None:
        return found
    if first is None:
        return answer.Answer(found.headline, [*across_words.details(general), *found.details])
    return answer.Answer(first, [*across_words.details(general), found.headline, *found.details])


def across_entry(general: Across) -> dict[str, Any]:
    """Several tasks side by side; losses in `unit`: fractions of the metric, or of full fine-tuning's gain."""
    return {
        "task_is": general.kind, "unit": general.unit, "metric": general.metric, "n_tasks": len(general.tasks),
        "general": general.enough,
        "tasks": {task.name: [curve.name for curve in task.curves] for task in general.tasks},
        "steps": general.steps, "allowed": general.allowed, "named": general.named,
        "levels": [{**level._asdict(), "share": None if level.share is None else float(level.share)}
                   for level in general.levels],
        "tested": [test._asdict() for test in general.tested], "left_out": general.left_out,
        "reference_in_doubt": general.in_doubt,
    }


def all_comparisons(curves: Sequence[Curve]) -> list[verdict.Comparison]:
    """Every arm against full fine-tuning on its curve, then the same arm across curves."""
    within = [comparison for curve in curves for comparison in verdict.compare_to_full(curve)]
    return [*within, *verdict.compare_curves(curves)]


def _identity(curve: Curve) -> dict[str, Any]:
    identity = curve.protocol.group.identity
    return {
        "sweep": identity["sweep"], "dataset": identity["dataset"], "model": identity["model"],
        "train_size": identity["train_size"], "metric": curve.metric, "split": "test",
        "seeds": sorted({seed for point in curve.points for seed in point.measured.seeds}),
    }


def _method(curve: Curve, margin: float) -> dict[str, Any]:
    return {
        "interval_method": METHODS[curve.population] + (", repeated over looks" if curve.looks else ""),
        "population": curve.population, "n_seeds": curve.n_seeds,
        "n_examples": curve.n_examples, "detectable_margin": detectable(curve),
        "confirmed": curve.protocol.confirmed,
        "verdict": verdict.blocked(curve, margin) is None, "verdict_seeds": VERDICT_SEEDS,
    }


def detectable(curve: Curve) -> float | None:
    """The margin that these seeds and rows show to be kept with 80% power at the level of one of the verdict's tests:
    the median over depths, as a fraction."""
    each = verdict.test_level(curve)
    margins = [power.realised_margin(p.loss, curve.population, confidence=each)
               for p in curve.points if p.loss is not None]
    margins = [margin for margin in margins if math.isfinite(margin)]
    return median(margins) if margins else None


def seed_correlations(curve: Curve) -> list[dict[str, Any]]:
    """Realised correlation over common seeds of every arm with full fine-tuning: what pairing by seed gains."""
    full = curve.reference
    found = []
    for point in curve.points if full is not None else []:
        common = [seed for seed in point.measured.seeds if seed in full.measured.seeds]
        if point is not full and len(common) > 2:
            pair = np.stack([full.measured.pick(common).values, point.measured.pick(common).values])
            found.append({"freeze_depth": point.arm.freeze_depth, "strategy": point.arm.strategy, "seeds": len(common),
                          "correlation": float(stats.seed_correlation(pair)[0, 1])})
    return found


def pessimistic(curve: Curve) -> list[dict[str, Any]]:
    """The curve with lost seeds counted at the baseline; [] where none is lost."""
    counted = counted_at_baseline(curve)
    return [] if counted is None else [
        {**_curve(curve), "freeze_depth": point.arm.freeze_depth, "strategy": point.arm.strategy,
         **dict(zip(("estimate", "low", "high"), point.interval, strict=False))} for point in counted.points]


def total_cost(curve: Curve) -> dict[str, Any]:
    """What all trials of the curve took, as executed, and what reuse of frozen prefixes saved."""
    records = [trial.record for trial in curve.protocol.group.trials]
    return {
        "trials": len(records), "train_seconds": sum(r.cost.get("train_seconds") or 0.0 for r in records),
        "evaluation_seconds": sum(r.cost.get("evaluation_seconds") or 0.0 for r in records),
        "saved_seconds": sum(r.prefix.get("saved_seconds") or 0.0 for r in records),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {"curve": curve.name} if curve.name else {}


def _same_or_list(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """One value where all entries agree, else a list in their order."""
    return {
        name: entries[0][name] if all(e[name] == entries[0][name] for e in entries) else [e[name] for e in entries]
        for name in entries[0]
    }


def entry(curve: Curve, point: Point) -> dict[str, Any]:
    """One point of the curve."""
    setting = point.choice.setting
    knobs = setting.knobs(sorted({"learning_rate", "head_learning_rate", "head_size", *curve.protocol.group.tuned}))
    return {
        **_curve(curve), "freeze_depth": point.arm.freeze_depth, "strategy": point.arm.strategy, **knobs,
        "estimate": point.interval.estimate, "low": point.interval.low, "high": point.interval.high,
        "note": point.interval.tag,
        "values": {str(seed): float(v) for seed, v in zip(point.measured.seeds, point.measured.values, strict=True)},
        "missing": {str(seed): reason for seed, reason in point.choice.missing.items()},
        "validation": setting.score("validation", curve.protocol.group.selection),
        "loss": point.loss.estimate if point.loss else None, "loss_at_most": verdict.loss_bound(point, curve),
        "trainable_parameters": point.trainable_parameters, "train_seconds": point.cost("train_seconds"),
        "alone_seconds": point.alone_seconds, "prefix_seconds": point.cost("prefix_seconds"),
        "peak_memory_bytes": point.cost("peak_memory_bytes"), "setting_id": setting.setting_id,
    }


def finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
