"""What tuning saw: heatmaps over the grid, expected best against budget, learning curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.amounts import has_points
from analysis.figures import svg
from analysis.figures.plots import number, scale_of
from analysis.findings.curves import Curve, Point
from analysis.load.groups import distinct
from analysis.load.protocol import Setting
from analysis.load.records import Arm
from analysis.statistics import stats
from finetune.training.evaluation import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Grid(NamedTuple):
    """Values over two axes; nan where there is none."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray  # (rows, columns)
    row_name: str
    column_name: str
    strong: np.ndarray | None = None  # cells to set in bold

    def transposed(self) -> Grid:
        """With what has long names (strategies) as rows, the first one on top."""
        strong = None if self.strong is None else self.strong.T[::-1]
        return Grid(self.columns[::-1], self.rows, self.values.T[::-1], self.column_name, self.row_name, strong)


def tuning_grid(curve: Curve, knob: str) -> Grid:
    """Validation metric by depth and one knob's value: the best setting over the other knobs, mean over its seeds."""
    metric = curve.protocol.group.selection
    better = max if higher_is_better(metric) else min
    settings = curve.protocol.tuning or curve.protocol.settings
    tried = {setting.arm: None for setting in sorted(settings, key=lambda setting: setting.arm.order)}
    arms = [*(point.arm for point in curve.shown if point.arm in tried)]
    arms += [arm for arm in tried if arm not in arms]
    levels = distinct(setting.example.knobs.get(knob) for setting in settings)
    values = np.full((len(levels), len(arms)), np.nan)
    for setting in settings:
        level = setting.example.knobs.get(knob)
        score = setting.score("validation", metric)
        if level is None or math.isnan(score):
            continue
        at = levels.index(level), arms.index(setting.arm)
        values[at] = score if math.isnan(values[at]) else better(values[at], score)
    found = Grid([_short(level) for level in levels], [arm.label for arm in arms], values, knob, axis_of(curve))
    return found.transposed() if curve.by_strategy else found


def axis_of(curve: Curve) -> str:
    """What stands on the axis of all arms."""
    return "strategy" if curve.by_strategy else "frozen layers"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_grid(grid: Grid, metric: str, ax: Axes, *, diverging: bool = False) -> None:
    """A heatmap with its numbers in the cells; diverging grids (changes, in points) are centred on zero."""
    import matplotlib as mpl

    scale = 100.0 if diverging else scale_of(metric)
    shown = np.ma.masked_invalid(scale * grid.values)
    most = float(np.abs(shown).max() or 1.0) if diverging and shown.count() else None
    colours = mpl.colormaps["PuOr_r" if diverging else "cividis"]
    mesh = ax.pcolormesh(shown, cmap=colours, edgecolors="none", vmin=-most if most else None, vmax=most)
    for (i, j), value in np.ndenumerate(scale * grid.values):
        if math.isnan(value):
            ax.text(j + 0.5, i + 0.5, "–", ha="center", va="center", fontsize=8.5)
        else:
            bold = grid.strong is not None and bool(grid.strong[i, j])
            red, green, blue, _ = colours(mesh.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            text = f"{value:+.1f}" if diverging else f"{value:.1f}" if scale == 100 else (
                f"{value:.3f}" if has_points(metric) else number(metric, value))
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8.5, color="white" if dark else "black",
                    fontweight="bold" if bold else "normal")
    names = [svg.label(name, 16) for name in grid.columns]
    ax.set_xticks(np.arange(len(names)) + 0.5, names, **_turned(names, ax))
    ax.set_yticks(np.arange(len(grid.rows)) + 0.5, [svg.label(name, 24) for name in grid.rows])
    ax.set_xlabel(svg.label(grid.column_name))
    ax.set_ylabel(svg.label(grid.row_name))
    ax.grid(visible=False)


LETTER = 0.085  # inches, of the width of a letter on an axis


def _turned(names: Sequence[str], ax: Axes) -> dict[str, Any]:
    """How labels of an axis are set so that neighbours do not overlap."""
    room = 0.8 * ax.figure.get_size_inches()[0] / max(len(names), 1)
    if LETTER * (max(map(len, names), default=0) + 1) <= room:
        return {}
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}


class Budget(NamedTuple):
    """Expected best validation metric of an arm after 1, 2, … settings were tried."""

    arm: Arm
    expected: list[float]


def budgets(curve: Curve) -> list[Budget]:
    """Arms with at least two settings; each setting counts with its mean over seeds."""
    metric = curve.protocol.group.selection
    by_arm: dict[Arm, list[Setting]] = defaultdict(list)
    for setting in curve.protocol.tuning:
        by_arm[setting.arm].append(setting)
    found = []
    order = [point.arm for point in curve.shown]
    for arm, settings in sorted(by_arm.items(), key=lambda pair: (
            order.index(pair[0]) if pair[0] in order else len(order), pair[0].order)):
        scores = [s for s in (setting.score("validation", metric) for setting in settings) if not math.isnan(s)]
        if len(scores) > 1:
            found.append(Budget(arm, stats.expected_best(scores, higher_is_better=higher_is_better(metric))))
    return found


def draw_budgets(found: Sequence[Budget], metric: str, ax: Axes) -> None:
    scale = scale_of(metric)
    for (colour, marker, dashes), budget in zip(arm_styles([each.arm for each in found]), found, strict=True):
        tries = range(1, len(budget.expected) + 1)
        ax.plot(tries, [scale * value for value in budget.expected], marker, linestyle=dashes,
                color=colour, markersize=4,
                label=budget.arm.name)
        for n, value in zip(tries, budget.expected, strict=True):
            mark, = ax.plot([n], [scale * value], marker, color=colour, markersize=4)
            svg.hover(mark, f"{budget.arm.name}: {number(metric, value)} expected from {n} settings")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("settings tried")
    ax.set_ylabel("expected best validation " + metric + (" (%)" if scale == 100 else ""))
    ax.figure.legend(loc="outside right center", fontsize=8.5)


class Learning(NamedTuple):
    """Means over seeds per epoch, for one arm."""

    arm: Arm
    epochs: list[int]
    validation: list[float]
    train_loss: list[float]


def learning(curve: Curve) -> list[Learning]:
    return [_learning(point, curve.protocol.group.metric) for point in curve.shown]


def _learning(point: Point, metric: str) -> Learning:
    quality: dict[int, list[float]] = defaultdict(list)
    loss: dict[int, list[float]] = defaultdict(list)
    for trial in point.trials:
        for entry in trial.record.history:
            quality[entry["epoch"]].append(entry.get("validation", {}).get(metric, math.nan))
            loss[entry["epoch"]].append(entry.get("train", {}).get("loss", math.nan))
    epochs = sorted(quality)
    return Learning(point.arm, epochs, [fmean(quality[e]) for e in epochs], [fmean(loss[e]) for e in epochs])


def draw_learning(found: Sequence[Learning], metric: str, axes: Sequence[Axes]) -> None:
    """Validation metric and training loss by epoch."""
    scale = scale_of(metric)
    for (colour, marker, dashes), line in zip(arm_styles([line.arm for line in found]), found, strict=True):
        axes[0].plot(line.epochs, [scale * value for value in line.validation], marker, linestyle=dashes, color=colour,
                     markersize=4, label=line.arm.name)
        axes[1].plot(line.epochs, line.train_loss, dashes, color=colour)
        for epoch, value in zip(line.epochs, line.validation, strict=True):
            mark, = axes[0].plot([epoch], [scale * value], marker, color=colour, markersize=4)
            svg.hover(mark, f"{line.arm.name}, epoch {epoch}: {number(metric, value)}")
    axes[0].set_ylabel("validation " + metric + (" (%)" if scale == 100 else ""))
    axes[1].set_ylabel("training loss")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].figure.legend(loc="outside right center", fontsize=8.5)


def arm_styles(arms: Sequence[Arm]) -> list[tuple[Any, str, str]]:
    """(colour, marker, dashes) of each: depths along one colour map, strategies each told apart by the three."""
    if not any(arm.by_strategy for arm in arms):
        return [(*style, "-") for style in line_styles(len(arms))]
    colours = svg.COLOURS[:-1]  # thin yellow cannot be seen on white
    kinds = ["-", "--", ":", "-."]
    return [(svg.INK if arm.is_reference else colours[i % len(colours)], svg.MARKERS[i % len(svg.MARKERS)],
             "-" if arm.is_reference else kinds[i // len(colours) % len(kinds)]) for i, arm in enumerate(arms)]


def line_styles(count: int) -> list[tuple[Any, str]]:
    """(colour, marker) from shallow to deep, along a colour map that survives colour blindness and grey printing."""
    import matplotlib as mpl

    colours = [mpl.colormaps["viridis"](x) for x in np.linspace(0.15, 0.8, max(count, 1))]
    return [(colours[i], svg.MARKERS[i % len(svg.MARKERS)]) for i in range(count)]
