"""Several tasks in one picture: a thin line per task, their mean with its interval, how many are safe by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from analysis.figures import svg
from analysis.findings.across import Across, Level, Task, loss_of, share_of, shares
from analysis.findings.across_words import number
from analysis.findings.curves import Curve
from analysis.findings.verdict import sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = svg.COLOURS[:-1]  # thin yellow cannot be seen on white
GREY = "#888888"
MOST_NAMED = 2 * len(COLOURS)  # lines that are told apart by colour and mark


class TaskLine(NamedTuple):
    """One task: its changes against full fine-tuning by the share of frozen layers (0: the embeddings alone)."""

    name: str
    shares: list[float]
    changes: list[float]


def task_lines(found: Across) -> list[TaskLine]:
    """A line per task, at the shares that all its curves tried; the line whose end is best comes first."""
    lines = [line for task in found.tasks if (line := _line(task, found.unit)).shares]
    return sorted(lines, key=lambda line: -line.changes[-1])


def _line(task: Task, unit: str) -> TaskLine:
    each = [_changes(curve, unit) for curve in task.curves]
    common = sorted(set.intersection(*(set(changes) for changes in each)))
    return TaskLine(task.name, common, [fmean(changes[x] for changes in each) for x in common])


def _changes(curve: Curve, unit: str) -> dict[float, float]:
    found = {}
    for point in sequence(curve):
        share = share_of(curve, point)
        if point.loss is not None and share is not None:
            found[float(share)] = -loss_of(curve, point, unit)
    return found


def embeddings_place(found: Across) -> float:
    """Where the embeddings alone are drawn: halfway to the smallest share that any task tried."""
    tried = set().union(*(shares(curve) for task in found.tasks for curve in task.curves))
    return float(min(tried, default=1)) / 2


def draw_across(found: Across, axes: Sequence[Axes]) -> None:
    """Above the changes, below the share of tasks in which each level is safe by itself."""
    levels = [level for level in found.levels if level.share is not None]
    lines = task_lines(found)
    _draw_tasks(found, lines, axes[0])
    places = [float(level.share or embeddings_place(found)) for level in levels]
    _draw_mean(found, levels, places, axes[0])
    axes[0].axhline(0, color=svg.INK, linewidth=1, linestyle="--", zorder=1)
    axes[0].axhline(-100 * found.allowed, color=svg.GREEN, linewidth=1.2, linestyle=":", zorder=1,
                    label="margin" if found.unit == "points" else "95% of the gain")
    axes[0].set_ylabel(f"change of test {found.metric}\n(points)" if found.unit == "points"
                       else "change (% of full\nfine-tuning's gain)")
    _draw_safe(found, levels, places, axes[1])
    for ax in axes:
        ax.grid(axis="x", visible=False)
    axes[0].figure.legend(loc="outside right upper", fontsize=8.5)


def _draw_tasks(found: Across, lines: Sequence[TaskLine], ax: Axes) -> None:
    named = len(lines) <= MOST_NAMED
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)] if named else GREY
        marker = svg.MARKERS[index % len(svg.MARKERS)] if named else "o"
        places = [share or embeddings_place(found) for share in line.shares]
        ax.plot([0, *places], [0, *(100 * value for value in line.changes)], color=colour, linewidth=0.9,
                alpha=0.75, zorder=2, linestyle="--" if named and index >= len(COLOURS) else "-",
                label=_short(line.name, 28) if named else None, marker=marker, markersize=3)
        if not named and index in (0, len(lines) - 1):
            ax.annotate(_short(line.name, 26), (places[-1], 100 * line.changes[-1]), xytext=(6, 0), va="center",
                        textcoords="offset points", fontsize=8, annotation_clip=False)
        for place, share, value in zip(places, line.shares, line.changes, strict=True):
            mark, = ax.plot([place], [100 * value], marker, color=colour, markersize=4)
            svg.hover(mark, f"{line.name}, {f'{share:.0%} of the layers' if share else 'embeddings only'}: "
                            f"{_signed(found, value)}")


def _draw_mean(found: Across, levels: Sequence[Level], places: Sequence[float], ax: Axes) -> None:
    middle = [-100 * level.mean for level in levels]
    label = f"mean over {found.kind}s" + (", 95% interval" if found.enough else "")
    ax.plot([0, *places], [0, *middle], color=svg.INK, linewidth=2.4, zorder=4, label=label)
    for place, level, value in zip(places, levels, middle, strict=True):
        between = ""
        if not math.isnan(level.low):
            ax.vlines(place, -100 * level.high, -100 * level.low, color=svg.INK, linewidth=2.4, zorder=4)
            between = f" (95% {_signed(found, -level.high)} to {_signed(found, -level.low)})"
        mark, = ax.plot([place], [value], "o", color=svg.INK, markersize=7, zorder=5)
        svg.hover(mark, f"mean over {len(level.losses)} {found.kind}s, {level.label}: {_signed(found, -level.mean)}"
                        f"{between}")


def _draw_safe(found: Across, levels: Sequence[Level], places: Sequence[float], ax: Axes) -> None:
    if not any(level.judged for level in levels):
        ax.annotate(f"no {found.kind} could be judged by itself", (0.5, 0.5), xycoords="axes fraction", ha="center",
                    va="center", fontsize=8.5)
    for place, level in zip(places, levels, strict=True):
        if not level.judged and any(other.judged for other in levels):
            ax.annotate("?", (place, 0), ha="center", va="bottom", fontsize=8.5)
        if not level.judged:
            continue
        total = len(level.losses)
        share, unknown = (100 * count / total for count in (level.safe, total - level.judged))
        bar, = ax.bar([place], [share], width=_width(places), color=svg.SKY, linewidth=0)
        svg.hover(bar, f"{level.label}: shown safe in {level.safe} of {level.judged} {found.kind}s by themselves")
        if unknown:
            pale, = ax.bar([place], [unknown], bottom=[share], width=_width(places), color=GREY, alpha=0.25,
                           linewidth=0)
            svg.hover(pale, f"{level.label}: {total - level.judged} of {total} {found.kind}s could not be judged")
        ax.annotate(f"{level.safe}/{level.judged}", (place, share + unknown), ha="center", va="bottom", fontsize=8.5)
    ax.set_ylim(0, 125)
    ax.set_yticks([0, 50, 100])
    ax.set_ylabel("safe in (%)")
    ax.set_xticks([0, *places], ["0", *(_tick(level) for level in levels)])
    ax.set_xlabel("share of the layers that is frozen (0: full fine-tuning; emb: embeddings only)"
                  if any(level.share == 0 for level in levels) else
                  "share of the layers that is frozen (0: full fine-tuning)")


def _tick(level: Level) -> str:
    return f"{float(level.share):.0%}" if level.share else "emb"


def _width(places: Sequence[float]) -> float:
    ends = [0.0, *places]
    return 0.6 * min(b - a for a, b in zip(ends[:-1], ends[1:], strict=True))


def _short(name: str, longest: int) -> str:
    """Without its middle: names of one collection differ at their ends."""
    half = (longest - 1) // 2
    return svg.label(name if len(name) <= longest else f"{name[:half]}…{name[-half:]}", longest)


def _signed(found: Across, change: float) -> str:
    text = number(found, abs(change))
    return text if text.startswith("0.0") else f"{'+' if change > 0 else '−'}{text}"
