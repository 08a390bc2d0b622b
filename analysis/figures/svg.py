"""Figures as SVG that read well on white paper and on a dark screen, with values to hover.

matplotlib draws; it can write neither currentColor nor a <title> to hover, so these are put in afterwards.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with every common kind of colour blindness, and on black as on white.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
COLOURS = [BLUE, RED, GREEN, PURPLE, ORANGE, SKY, YELLOW]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
INK = "#010203"  # becomes currentColor: black on paper, light in dark mode
_HOVER = "hover-"
_STYLE: dict[str, Any] = {
    "figure.figsize": (7.2, 4.2), "figure.dpi": 100, "font.size": 10, "font.family": "sans-serif",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "axes.titlesize": 11, "axes.titlelocation": "left", "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.grid": True, "grid.color": "#888888", "grid.alpha": 0.25, "grid.linewidth": 0.6, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none",
    "text.parse_math": False, "axes.unicode_minus": True, "figure.constrained_layout.use": True,
}
_ON_DARK = {BLUE: "#4FA8DC", RED: "#F0803C", GREEN: "#2CBF95"}  # the dark ones among our colours, lighter
DARK_CSS = "".join(
    f'svg [style*="{part}: {dark.lower()}"]{{{part}:{light} !important}}'
    for dark, light in _ON_DARK.items() for part in ("stroke", "fill"))
_PAPER = (f"<style>svg{{color:#111;background:#fff}}@media (prefers-color-scheme:dark){{"
          f"svg{{color:#eee;background:#16181c}}{DARK_CSS}}}</style>")


@contextmanager
def style(name: str) -> Iterator[None]:
    """matplotlib set up for our figures; `name` keeps the ids of two figures in one page apart."""
    import matplotlib
    from cycler import cycler

    settings = {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS), "svg.hashsalt": name, "svg.id": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def label(text: object, longest: int = 40) -> str:
    """Text from data as it can stand in a figure: no control characters, not too long."""
    clean = "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn") else c for c in str(text))
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def hover(artist: Artist, text: str) -> None:
    """Show `text` when the pointer is on `artist`."""
    artist.set_gid(_HOVER + label(text, 400))


def blank(*, figsize: tuple[float, float] | None = None, **grid: Any) -> tuple[Figure, Any]:
    """A figure and its axes, as pyplot.subplots gives them, without pyplot: a notebook's backend stays its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize)
    return figure, figure.subplots(**grid)


def render(figure: Figure) -> str:
    """The figure as the text of one <svg> element, colours by currentColor, hover texts as <title>."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):].strip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    return re.sub(rf"""<g id=(?:"{_HOVER}([^"]*)"|'{_HOVER}([^']*)')>""", _titled, text)


def _titled(match: re.Match[str]) -> str:
    return f'<g class="hover"><title>{match[1] or match[2]}</title>'


def standalone(svg: str, title: str) -> str:
    """An SVG file of its own, which follows the reader's light or dark mode."""
    start = svg.index(">") + 1
    return ('<?xml version="1.0" encoding="utf-8"?>\n' + svg[:start]
            + f"<title>{escape(title)}</title>{_PAPER}" + svg[start:] + "\n")
