"""report.html: one file, nothing fetched, everything that comes from data escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.curves import Curve
from analysis.figures import Figure


def environment() -> Any:
    """Jinja2 with escaping on for every template but LaTeX's and Markdown's own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    return Environment(loader=PackageLoader("analysis"), autoescape=select_autoescape(["html"]),
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render_html(summary: dict[str, Any], curves: Sequence[Curve], figures: Sequence[Figure]) -> str:
    return environment().get_template("report.html").render(summary=summary, curves=curves, figures=figures)
