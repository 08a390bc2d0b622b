"""Quality against what it costs: the Pareto front, equal compute, and every arm's difference to full fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.amounts import Amounts, amounts
from analysis.figures import svg
from analysis.figures.plots import axis_name, number, scale_of
from analysis.figures.plots_tuning import arm_styles
from analysis.findings.curves import Curve, Point, train_prefix_seconds
from analysis.load.records import Arm
from finetune.training.evaluation import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CostPoint(NamedTuple):
    """One arm in the Pareto picture; quality in the metric's own unit (a share: a fraction) with its interval."""

    curve: str
    freeze_depth: int | None
    strategy: str
    label: str
    cost: float
    estimate: float
    low: float
    high: float
    on_front: bool


class Cost(NamedTuple):
    """One kind of cost: its name in records, on the axis, and what to divide by."""

    name: str
    axis: str
    unit: float


# Where a point's label may stand: offset in points of type, horizontal and vertical alignment.
SIDES = ((5, 4, "left", "bottom"), (5, -4, "left", "top"), (-5, 4, "right", "bottom"), (-5, -4, "right", "top"),
         (0, 7, "center", "bottom"), (0, -7, "center", "top"), (7, 0, "left", "center"), (-7, 0, "right", "center"),
         (12, 12, "left", "bottom"), (12, -12, "left", "top"), (-12, 12, "right", "bottom"), (-12, -12, "right", "top"))
COSTS = (
    Cost("train_seconds", "training time of a trial alone (s)", 1.0),
    Cost("peak_memory_bytes", "peak memory (GB)", 1e9),
    Cost("trainable_share", "trainable share (%)", 0.01),
)


def cost_of(point: Point, cost: Cost) -> float | None:
    """Training time is that of a trial which shares nothing (see `alone_seconds`)."""
    if cost.name == "train_seconds":
        return point.alone_seconds
    if cost.name == "trainable_share":
        parameters = point.trials[0].record.parameters
        total = parameters.get("total")
        return parameters["trainable"] / total if total and "trainable" in parameters else None
    return point.cost(cost.name)


def pareto(curve: Curve, cost: Cost) -> list[CostPoint]:
    """Arms with a known cost, cheapest first; on the front are those that nothing beats in both."""
    known = [(price, point) for point in curve.points if (price := cost_of(point, cost)) is not None]
    known.sort(key=lambda pair: (pair[0], -curve.sign * pair[1].interval.estimate))
    found, best = [], -math.inf
    for price, point in known:
        quality = curve.sign * point.interval.estimate
        found.append(CostPoint(curve.name, point.arm.freeze_depth, point.arm.strategy, point.arm.label, price,
                               *point.interval[:3], quality > best))
        best = max(best, quality)
    return found


def draw_pareto(fronts: Sequence[list[CostPoint]], cost: Cost, metric: str, ax: Axes) -> None:
    """Quality with error bars against cost, one colour per curve; the front is the stepped line."""
    scale, names = scale_of(metric), []
    for index, found in enumerate(fronts):
        colour, marker = svg.COLOURS[index % len(svg.COLOURS)], svg.MARKERS[index % len(svg.MARKERS)]
        front = [point for point in found if point.on_front]
        ax.plot([p.cost / cost.unit for p in front], [scale * p.estimate for p in front], drawstyle="steps-post",
                color=colour, linewidth=1.2, alpha=0.8, zorder=1)
        for point in found:
            x, y = point.cost / cost.unit, scale * point.estimate
            if not math.isnan(point.low):
                ax.vlines(x, scale * point.low, scale * point.high, color=colour, linewidth=1.4, zorder=2)
            mark, = ax.plot([x], [y], marker, color=colour, markersize=6,
                            markerfacecolor=colour if point.on_front else "none", zorder=3)
            svg.hover(mark, f"{point.curve + ', ' if point.curve else ''}{_full_label(point)}: "
                            f"{number(metric, point.estimate)} at {x:.3g} {cost.axis}")
            names.append((x, y, svg.label(point.label, 18)))
    ax.set_xlabel(cost.axis)
    ax.set_ylabel(axis_name(metric))
    ax.margins(x=0.12)
    if len(fronts) > 1:
        _legend([found[0].curve for found in fronts if found], ax)
    _name(names, ax)


def _name(names: Sequence[tuple[float, float, str]], ax: Axes) -> None:
    """A label beside each point, on the side where it covers the fewest of the other labels and points."""
    from matplotlib.transforms import Bbox

    ax.figure.draw_without_rendering()  # places in pixels are known once the layout is
    points = ax.transData.transform([(x, y) for x, y, _ in names])
    marks = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points]
    placed: list[Bbox] = []
    for index, (x, y, text) in enumerate(names):
        tried = []
        for dx, dy, across, along in SIDES:
            note = ax.annotate(text, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8, ha=across,
                               va=along)
            box = note.get_window_extent()
            others = [*placed, *marks[:index], *marks[index + 1:]]
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and box.y0 >= ax.bbox.y0
            tried.append((sum(box.overlaps(other) for other in others) + 3 * (not inside), len(tried), note, box))
        best = min(tried, key=lambda each: each[:2])
        for *_, note, _ in (each for each in tried if each is not best):
            note.remove()
        placed.append(best[3])


def _full_label(point: CostPoint) -> str:
    return point.strategy if point.freeze_depth is None else f"depth {point.label}"


class Spent(NamedTuple):
    """What one arm had reached when each of its epochs ended; means over the reported seeds."""

    arm: Arm
    seconds: list[float]  # since the start of a trial that shares nothing
    best: list[float]  # validation metric of the best epoch so far


def spent(curve: Curve) -> list[Spent]:
    """Arms whose epochs were all timed. Epochs that not every seed has are left out."""
    metric = curve.protocol.group.selection
    best_of = np.maximum if higher_is_better(metric) else np.minimum
    found = []
    for point in curve.shown:
        histories = [trial.record.history for trial in point.trials]
        epochs = min(map(len, histories), default=0)
        seconds = np.array([[entry.get("train_seconds", math.nan) for entry in history[:epochs]]
                            for history in histories])
        values = np.array([[entry.get("validation", {}).get(metric, math.nan) for entry in history[:epochs]]
                           for history in histories])
        if epochs and np.isfinite(seconds).all() and np.isfinite(values).all():
            prefix = np.array([[train_prefix_seconds(trial)] for trial in point.trials])
            ends = (prefix + seconds.cumsum(axis=1)).mean(axis=0)
            found.append(Spent(point.arm, ends.tolist(), best_of.accumulate(values, axis=1).mean(axis=0).tolist()))
    return found


def draw_spent(found: Sequence[Spent], metric: str, ax: Axes) -> None:
    """One step line per arm: read upwards at any time, it says what each had reached by then."""
    scale = scale_of(metric)
    for (colour, marker, dashes), line in zip(arm_styles([line.arm for line in found]), found, strict=True):
        ax.plot(line.seconds, [scale * value for value in line.best], marker, linestyle=dashes, drawstyle="steps-post",
                color=colour, markersize=4, linewidth=1.2, label=line.arm.name)
        for epoch, (seconds, value) in enumerate(zip(line.seconds, line.best, strict=True), start=1):
            mark, = ax.plot([seconds], [scale * value], marker, color=colour, markersize=4)
            svg.hover(mark, f"{line.arm.name}, after epoch {epoch} ({seconds:.3g} s): {number(metric, value)}")
    ax.set_xlabel("training time so far, of a trial alone (s)")
    ax.set_ylabel("best validation " + metric + " so far" + (" (%)" if scale == 100 else ""))
    ax.figure.legend(loc="outside right center", fontsize=8.5)


class Change(NamedTuple):
    """An arm's difference to full fine-tuning, in the metric's own direction."""

    curve: str
    label: str
    estimate: float
    low: float
    high: float


def changes(curve: Curve) -> list[Change]:
    found = []
    for point in curve.shown:
        if point.loss is not None:
            change = curve.interval(point.loss._replace(estimate=-curve.sign * point.loss.estimate))
            found.append(Change(curve.name, point.arm.name, *change[:3]))
    return found


def draw_changes(found: Sequence[Change], metric: str, margin: float, sign: int, ax: Axes) -> None:
    """One row per arm and in it one line per curve: the difference with its interval, beside zero and the margin."""
    own = amounts(metric)
    rows, curves = (list(dict.fromkeys(getattr(change, key) for change in found)) for key in ("label", "curve"))
    for change in found:
        index = curves.index(change.curve)
        place = rows.index(change.label) + (0.7 * (index / (len(curves) - 1) - 0.5) if len(curves) > 1 else 0.0)
        style = svg.COLOURS[index % len(svg.COLOURS)], svg.MARKERS[index % len(svg.MARKERS)]
        _draw_change(change, own, place, style, ax)
    ax.axvline(0, color=svg.INK, linewidth=1, linestyle="--")
    ax.axvline(-sign * own.scale * margin, color=svg.GREEN, linewidth=1.2, linestyle=":")
    ax.set_yticks(range(len(rows)), [svg.label(row, 34) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(own.change_axis)
    if len(curves) > 1:
        _legend(curves, ax)


def _draw_change(change: Change, own: Amounts, place: float, style: tuple[str, str], ax: Axes) -> None:
    colour, marker = style
    if not math.isnan(change.low):
        ax.hlines(place, own.scale * change.low, own.scale * change.high, color=colour, linewidth=2.2)
    mark, = ax.plot([own.scale * change.estimate], [place], marker, color=colour)
    between = "" if math.isnan(change.low) else f" ({own.signed(change.low)} to {own.signed(change.high)})"
    svg.hover(mark, f"{change.curve + ', ' if change.curve else ''}{change.label}: "
                    f"{own.change(change.estimate)}{between}")


def _legend(curves: Sequence[str], ax: Axes) -> None:
    """One entry per curve, below the axes."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=svg.COLOURS[i % len(svg.COLOURS)], marker=svg.MARKERS[i % len(svg.MARKERS)],
                    label=svg.label(name)) for i, name in enumerate(curves)]
    ax.figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8.5)
