"""What a linear probe reads from each depth of a frozen model: a panel per property."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from analysis.figures import svg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"length": "length: longer than the median", "word": "one word: is “{word}” in the text", "label": "the label",
          "order": "word order: two neighbours swapped"}


class PropertyLine(NamedTuple):
    """One property over depths; fractions. `depths`: -1 the embeddings' output, k the output of layer k-1."""

    title: str
    depths: list[int]
    estimates: list[float]
    lows: list[float]
    highs: list[float]
    chance: float


def property_lines(readings: pd.DataFrame, word: str) -> list[PropertyLine]:
    """Rows of property, freeze_depth, estimate, low, high, chance -> a line per property, in their order."""
    found = []
    for name, rows in readings.groupby("property", sort=False):
        found.append(PropertyLine(TITLES[str(name)].format(word=svg.label(word, 20)),
                                  *(rows[column].tolist() for column in ("freeze_depth", "estimate", "low", "high")),
                                  chance=float(rows["chance"].iloc[0])))
    return found


def draw_property(line: PropertyLine, colour: str, ax: Axes) -> None:
    """Accuracy in percent against layers read; dotted: guessing."""
    places = np.arange(len(line.depths))
    ax.axhline(100 * line.chance, linestyle=":", color=svg.INK, linewidth=1)
    ax.plot(places, 100 * np.array(line.estimates), "-", color=colour, linewidth=1.3)
    ax.vlines(places, 100 * np.array(line.lows), 100 * np.array(line.highs), color=colour)
    for place, depth, value, low, high in zip(places, line.depths, line.estimates, line.lows, line.highs, strict=True):
        mark, = ax.plot([place], [100 * value], "o", color=colour, markersize=5)
        between = "" if np.isnan(low) else f", 95% {100 * low:.1f}% to {100 * high:.1f}%"
        where = "embeddings" if depth < 0 else f"after {depth} layer{'s' * (depth > 1)}"
        svg.hover(mark, f"{line.title}, {where}: {100 * value:.1f}%{between}")
    ax.set_title(line.title, fontsize=9.5)
    step = max(1, len(places) // 12)
    ax.set_xticks(places[::step], ["emb" if depth < 0 else str(depth) for depth in line.depths][::step])


def layers_figure(lines: Sequence[PropertyLine]) -> Figure:
    """A panel per property, each with a scale of its own: the shapes are compared, not the heights."""
    with svg.style("layers"):
        rows = -(-len(lines) // 2)
        figure, axes = svg.blank(figsize=(7.6, 0.5 + 2.3 * rows), nrows=rows, ncols=min(len(lines), 2), squeeze=False)
        for line, colour, ax in zip(lines, svg.COLOURS, axes.flat, strict=False):
            draw_property(line, colour, ax)
        for ax in axes.flat[len(lines):]:
            ax.set_axis_off()
        figure.supxlabel("layers read (emb: the embeddings alone)", fontsize=9.5)
        figure.supylabel("accuracy of the probe (%)", fontsize=9.5)
    return figure


def layers_svg(lines: Sequence[PropertyLine], title: str) -> str:
    """The figure as the text of an SVG file."""
    figure = layers_figure(lines)
    with svg.style("layers"):
        return svg.standalone(svg.render(figure), title)
