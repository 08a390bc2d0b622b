"""All figures of a report, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from analysis import plots, svg
from analysis.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Figure(NamedTuple):
    """A figure: `name` is its file's name, `svg` one <svg> element."""

    name: str
    title: str
    caption: str
    svg: str


def make_figures(curves: Sequence[Curve], margin: float) -> list[Figure]:
    return list(_curves(curves, margin))


def _curves(curves: Sequence[Curve], margin: float) -> list[Figure]:
    computed = [plots.depth_curve(curve, margin) for curve in curves if curve.depths]
    if not computed:
        return []
    caption = "Mean over seeds with its 95% interval; every dot is a seed."
    return [draw("curve", f"{curves[0].metric} against frozen layers", caption,
                 lambda ax: plots.draw_depth_curves(computed, ax))]


def draw(name: str, title: str, caption: str, drawing: Callable[[Axes], None], **options: Any) -> Figure:
    """One pair of axes, drawn and rendered."""
    with svg.style(name):
        import matplotlib.pyplot as plt

        figure, ax = plt.subplots(**options)
        drawing(ax)
        return Figure(name, title, caption, svg.render(figure))
