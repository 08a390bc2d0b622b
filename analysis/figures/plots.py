"""The main picture: a metric against frozen layers. Computed first (NamedTuples), then drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from analysis.amounts import FRACTIONS, amounts
from analysis.figures import svg
from analysis.findings import verdict
from analysis.findings.curves import Curve, Point
from analysis.load.records import Arm
from finetune.results import frozen_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class DepthPoint(NamedTuple):
    """One depth as drawn; in the metric's own unit, a share as a fraction."""

    arm: Arm
    estimate: float
    low: float
    high: float
    values: dict[int, float]  # by seed
    hover: str


class DepthCurve(NamedTuple):
    """Everything that the curve's picture shows."""

    name: str
    metric: str
    points: list[DepthPoint]
    reference: float | None
    baseline: float | None
    safe_depth: int | None
    margin: float
    sign: int
    candidates: tuple[int, ...] = ()  # of an adaptive sweep: every depth it might have visited
    baseline_name: str = "baseline"


def scale_of(metric: str) -> float:
    return amounts(metric).level_scale


def axis_name(metric: str) -> str:
    return f"test {amounts(metric).drawn_name}"


def number(metric: str, value: float) -> str:
    return amounts(metric).drawn(value)


def depth_curve(curve: Curve, margin: float) -> DepthCurve:
    """The curve's picture, computed."""
    safe = verdict.deepest_safe(curve, margin)
    reference = curve.reference.interval.estimate if curve.reference else None
    return DepthCurve(curve.name, curve.metric, [_depth_point(curve, p) for p in curve.depths], reference,
                      curve.baseline, safe.freeze_depth, margin, curve.sign,
                      (0, *curve.looks.candidates) if curve.looks else (), _baseline_name(curve))


def _baseline_name(curve: Curve) -> str:
    if curve.baseline_kind in (None, "majority", "mean"):
        return "majority baseline" if curve.metric in FRACTIONS else "baseline"
    return f"baseline: {curve.baseline_kind}"


def _depth_point(curve: Curve, point: Point) -> DepthPoint:
    estimate, low, high, tag = point.interval
    between = "" if math.isnan(low) else f", 95% {number(curve.metric, low)} to {number(curve.metric, high)}"
    text = f"{point.arm.name}: {number(curve.metric, estimate)}{between}, {len(point.measured.seeds)} seeds"
    values = dict(zip(point.measured.seeds, map(float, point.measured.values), strict=True))
    return DepthPoint(point.arm, estimate, low, high, values, text + (f" ({tag})" if tag else ""))


def positions(curves: Sequence[DepthCurve]) -> dict[int, int]:
    """Depth -> place on the axis, to scale: one step per block that is frozen, first the embeddings, then each layer.

    Full fine-tuning stands at 0, the embeddings at 1, depth k at k + 1, whether the embeddings were tried or not.
    """
    depths = {point.arm.freeze_depth for curve in curves for point in curve.points}
    depths |= {depth for curve in curves for depth in curve.candidates}
    return {depth: frozen_rank(depth) for depth in sorted((d for d in depths if d is not None), key=frozen_rank)}


def depth_ticks(places: dict[int, int], inches: float) -> list[str]:
    """A label per place, "" where it would touch its neighbour on an axis of so many inches: 0 and the deepest stay."""
    ordered = list(places.items())
    step = inches / (ordered[-1][1] + 1)
    labels, right = [], -1.0
    last_left = (ordered[-1][1] * step) - _half(ordered[-1][0])
    for index, (depth, place) in enumerate(ordered):
        left, end = place * step - _half(depth), place * step + _half(depth)
        is_last = index == len(ordered) - 1
        shown = left > right and (is_last or index == 0 or end < last_left)
        labels.append(("emb" if depth == -1 else str(depth)) if shown else "")
        right = end if shown else right
    return labels


def _half(depth: int) -> float:
    """Half of a depth's width on the axis, in inches, with a little room."""
    return 0.045 * len("emb" if depth == -1 else str(depth)) + 0.03


def tick_labels(curves: Sequence[DepthCurve], places: dict[int, int], inches: float) -> list[str]:
    """0, emb, 1 … L; on an adaptive sweep's own picture with the number of seeds below, nothing where none were spent.
    """
    names = depth_ticks(places, inches)
    if len(curves) > 1 or not curves[0].candidates:
        return names
    spent = {point.arm.freeze_depth: len(point.values) for point in curves[0].points}
    return [f"{name}\n{spent.get(depth) or ''}" for name, depth in zip(names, places, strict=True)]


def draw_panels(curves: Sequence[DepthCurve], axes: Iterable[Axes]) -> None:
    """One small picture per curve, where one for all could not be read; axes that are left over stay empty."""
    axes = list(axes)
    for curve, ax in zip(curves, axes, strict=False):
        ax.margins(y=0.14)  # room for a note on the baseline
        draw_depth_curves([curve._replace(name="")], ax, legend=False)
        ax.set_title(svg.label(curve.name, 34), fontsize=9)
    for ax in axes[len(curves):]:
        ax.set_axis_off()
    first = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(*first, loc="outside lower center", ncols=4, fontsize=8.5)


def draw_depth_curves(curves: Sequence[DepthCurve], ax: Axes, *, legend: bool = True) -> None:
    """Metric against frozen layers; with one curve also the reference, the margin and the safe region."""
    places = positions(curves)
    for index, curve in enumerate(curves):
        shift = 0.0 if len(curves) == 1 else 0.36 * (index / (len(curves) - 1) - 0.5)
        _draw_curve(curve, places, index, shift, ax)
    if len(curves) == 1:
        _draw_references(curves[0], places, ax)
    elif len({curve.baseline for curve in curves}) == 1:
        _draw_baseline(curves[0], ax)
    inches = 0.85 * ax.figure.get_size_inches()[0] / ax.get_subplotspec().get_gridspec().ncols
    ax.set_xticks(list(places.values()), tick_labels(curves, places, inches))
    ax.set_xlim(-0.4, max(places.values()) + 0.4) if curves[0].candidates else None
    emb = "; emb: embeddings only" if -1 in places else ""
    counted = "; below: seeds" if len(curves) == 1 and curves[0].candidates else ""
    ax.set_xlabel(f"frozen layers (0: full fine-tuning{emb}{counted})" if legend else "frozen layers")
    ax.set_ylabel(axis_name(curves[0].metric))
    ax.grid(axis="x", visible=False)
    if legend:
        ax.figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)


def _draw_curve(curve: DepthCurve, places: dict[int, int], index: int, shift: float, ax: Axes) -> None:
    scale, colour = scale_of(curve.metric), svg.COLOURS[index % len(svg.COLOURS)]
    xs = [places[p.arm.freeze_depth] + shift for p in curve.points]  # type: ignore[index]
    name = svg.label(curve.name) or "mean over seeds, 95% interval"
    ax.plot(*_line(curve, places, shift), color=colour, linewidth=1.6, zorder=3, label=name,
            marker=svg.MARKERS[index % len(svg.MARKERS)], markersize=0)
    for x, point in zip(xs, curve.points, strict=True):
        if not math.isnan(point.low):
            ax.vlines(x, scale * point.low, scale * point.high, color=colour, linewidth=2.2, zorder=3)
        beside = x + 0.012 * (max(places.values()) + 1)
        for seed, value in point.values.items():
            dot, = ax.plot([beside], [scale * value], ".", color=colour, alpha=0.55, markersize=5, zorder=2)
            svg.hover(dot, f"{point.arm.name}, seed {seed}: {number(curve.metric, value)}")
        mark, = ax.plot([x], [scale * point.estimate], svg.MARKERS[index % len(svg.MARKERS)], color=colour,
                        markersize=6.5, zorder=4)
        svg.hover(mark, f"{curve.name + ', ' if curve.name else ''}{point.hover}")


def _line(curve: DepthCurve, places: dict[int, int], shift: float) -> tuple[list[float], list[float]]:
    """Through the points, with a gap where a depth in between was not visited."""
    found = {p.arm.freeze_depth: scale_of(curve.metric) * p.estimate for p in curve.points}
    through = [depth for depth in places if depth in found or depth in curve.candidates]
    return [places[depth] + shift for depth in through], [found.get(depth, math.nan) for depth in through]


def _draw_references(curve: DepthCurve, places: dict[int, int], ax: Axes) -> None:
    scale = scale_of(curve.metric)
    if curve.reference is not None:
        ax.axhline(scale * curve.reference, color=svg.INK, linewidth=1, linestyle="--", zorder=1,
                   label="full fine-tuning")
        edge = curve.reference - curve.sign * curve.margin
        ax.axhspan(scale * edge, scale * curve.reference, color=svg.GREEN, alpha=0.14, linewidth=0, zorder=0,
                   label=f"within the margin of {amounts(curve.metric).margin(curve.margin)}")
    if curve.safe_depth is not None:
        at = places[curve.safe_depth]
        ax.axvspan(at - 0.4, at + 0.4, color=svg.SKY, alpha=0.16, linewidth=0, zorder=0, label="deepest shown safe")
    _draw_baseline(curve, ax)


def _draw_baseline(curve: DepthCurve, ax: Axes) -> None:
    """A line, or, where it would squeeze the curve into a corner, a note at the edge of the axis."""
    if curve.baseline is None:
        return
    name = curve.baseline_name
    bottom, top = ax.get_ylim()
    level = scale_of(curve.metric) * curve.baseline
    if bottom - 1.5 * (top - bottom) <= level <= top + 1.5 * (top - bottom):
        ax.axhline(level, color=svg.RED, linewidth=1.2, linestyle=":", zorder=1, label=name)
        return
    below = level < bottom
    text = f"{name} {number(curve.metric, curve.baseline)} {'↓' if below else '↑'}"
    ax.annotate(text, (0.012, 0.015 if below else 0.985), xycoords="axes fraction", va="bottom" if below else "top",
                fontsize=8.5)
