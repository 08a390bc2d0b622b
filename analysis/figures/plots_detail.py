"""Details: what happens to single classes, to small training sets, and what linear probes foretold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.figures import svg
from analysis.figures.plots import DepthCurve, axis_name, draw_depth_curves, number, positions, scale_of
from analysis.figures.plots_tuning import Grid, axis_of, line_styles
from analysis.findings.curves import SPLIT, Curve, Point
from analysis.statistics import stats
from analysis.statistics.metrics import TAGGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 20


def class_hits(point: Point, task: str, seeds: Sequence[int]) -> np.ndarray:
    """(seeds, rows, classes): 1 where a row of the class is found, 0 where it is missed, nan where it is of another."""
    found = []
    for seed in seeds:
        predictions = point.choice.setting.trials[seed].predictions(SPLIT)
        assert predictions is not None  # the curve has labels, so it was measured on predictions
        logits, labels, _ = predictions
        if task == TAGGED:
            found.append(_entity_recall(logits))
        elif task == "multilabel":
            found.append(np.where(labels > 0, (logits > 0).astype(float), np.nan))
        else:
            classes = np.arange(logits.shape[1])
            hit = (logits.argmax(axis=1) == labels).astype(float)[:, None]
            found.append(np.where(labels[:, None] == classes, hit, np.nan))
    return np.array(found)


def _entity_recall(counts: np.ndarray) -> np.ndarray:
    """(sentences, types) whose mean is each type's recall, and whose spread is that of a ratio of sums."""
    hits, true = counts[:, :-1, 0], counts[:, :-1, 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits.sum(axis=0) / true.sum(axis=0)
        return np.where(true.sum(axis=0) > 0, (hits - recall * true) / true.mean(axis=0) + recall, np.nan)


def class_changes(curve: Curve) -> Grid | None:
    """Change of each class's recall against full fine-tuning, by arm; bold where its own 95% interval excludes 0.

    With many classes those that change most. None without classes, predictions or a reference.
    """
    task = curve.protocol.group.identity["task"]
    names = curve.class_names() if task == TAGGED else curve.label_names()
    if curve.reference is None or task == "regression" or not names or curve.labels is None:
        return None
    others = [p for p in curve.shown if not p.arm.is_reference]
    values, strong = np.full((len(names), len(others)), np.nan), np.zeros((len(names), len(others)), bool)
    for column, point in enumerate(others):
        values[:, column], strong[:, column] = _recall_change(point, curve.reference, task)
    order = np.argsort(-np.nanmax(np.abs(np.nan_to_num(values)), axis=1, initial=0), kind="stable")[:MOST_CLASSES]
    order = np.sort(order)
    found = Grid([names[i] for i in order], [p.arm.label for p in others], values[order], "", axis_of(curve),
                 strong[order])
    return found.transposed() if curve.by_strategy else found


def _recall_change(point: Point, full: Point, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Change of each class's recall (classes,), paired on common seeds, and whether its interval excludes zero."""
    seeds = [seed for seed in point.measured.seeds if seed in full.measured.seeds]
    if not seeds:
        return np.array(np.nan), np.array(False)
    change = class_hits(point, task, seeds) - class_hits(full, task, seeds)
    means, clear = np.full(change.shape[2], np.nan), np.zeros(change.shape[2], bool)
    for label in range(change.shape[2]):
        rows = ~np.isnan(change[0, :, label])
        if rows.sum() > 1:
            parts = stats.split_parts(change[:, rows, label])
            means[label] = parts.estimate
            clear[label] = abs(parts.estimate) > stats.half_width(parts, 0.975)
    return means, clear


class SizeLine(NamedTuple):
    """One arm's metric over training sizes."""

    label: str
    sizes: list[float]
    estimates: list[float]
    lows: list[float]
    highs: list[float]


def by_train_size(curves: Sequence[Curve]) -> list[SizeLine]:
    """Lines over training sizes, where curves differ in nothing else; [] otherwise."""
    identities = [{k: repr(v) for k, v in c.protocol.group.identity.items() if k != "train_size"} for c in curves]
    if len(curves) < 2 or any(identity != identities[0] for identity in identities):
        return []
    lines: dict[Any, list[tuple[float, Point]]] = defaultdict(list)
    for curve in curves:
        for point in curve.points:
            size = point.trials[0].record.data.get("rows", {}).get("train")
            if size is not None:
                lines[point.arm].append((float(size), point))
    return [_size_line(arm.name, sorted(found, key=lambda pair: pair[0]))
            for arm, found in sorted(lines.items(), key=lambda pair: pair[0].order)]


def _size_line(name: str, found: list[tuple[float, Point]]) -> SizeLine:
    intervals = [point.interval for _, point in found]
    return SizeLine(name, [size for size, _ in found], [i.estimate for i in intervals], [i.low for i in intervals],
                    [i.high for i in intervals])


def draw_sizes(lines: Sequence[SizeLine], metric: str, ax: Axes) -> None:
    scale = scale_of(metric)
    for (colour, marker), line in zip(line_styles(len(lines)), lines, strict=True):
        ax.plot(line.sizes, [scale * value for value in line.estimates], marker, linestyle="-", color=colour,
                markersize=5, label=line.label)
        ax.vlines(line.sizes, [scale * v for v in line.lows], [scale * v for v in line.highs], color=colour)
        for size, value in zip(line.sizes, line.estimates, strict=True):
            mark, = ax.plot([size], [scale * value], marker, color=colour, markersize=5)
            svg.hover(mark, f"{line.label}, {size:,.0f} training rows: {number(metric, value)}")
    ax.set_xscale("log")
    sizes = sorted({size for line in lines for size in line.sizes})
    ax.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("training rows")
    ax.set_ylabel(axis_name(metric))
    ax.figure.legend(loc="outside right center", fontsize=8.5)


def size_grid(curves: Sequence[Curve]) -> Grid | None:
    """Depth x training size as a heatmap of the test metric."""
    lines = by_train_size(curves)
    if not lines:
        return None
    sizes = sorted({size for line in lines for size in line.sizes})
    values = np.full((len(sizes), len(lines)), np.nan)
    for column, line in enumerate(lines):
        for size, value in zip(line.sizes, line.estimates, strict=True):
            values[sizes.index(size), column] = value
    return Grid([f"{size:,.0f}" for size in sizes], [line.label for line in lines], values, "training rows",
                "frozen layers")


def draw_probe(curve: DepthCurve, probe: dict[str, Any], ax: Axes) -> None:
    """The real curve with linear probes on each depth's frozen features."""
    draw_depth_curves([curve._replace(safe_depth=None)], ax)
    places, scale = positions([curve]), scale_of(probe["metric"])
    known = [point for point in probe["points"] if point["freeze_depth"] in places]
    ax.plot([places[p["freeze_depth"]] for p in known], [scale * p["value"] for p in known], "--", color=svg.PURPLE,
            linewidth=1.2)
    for point in known:
        mark, = ax.plot([places[point["freeze_depth"]]], [scale * point["value"]], "D", color=svg.PURPLE, markersize=5)
        svg.hover(mark, f"linear probe on {point['freeze_depth']} frozen layers ({probe['split']}): "
                        f"{number(probe['metric'], point['value'])}")
