"""report.html (one file, nothing fetched, everything from data escaped), report.md, and LaTeX tables."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from analysis.figures.figures import Figure
from analysis.figures.svg import DARK_CSS
from analysis.findings.curves import Curve
from analysis.findings.methods import methods, notes, scope
from analysis.report.content import Table, make_tables, metric_of

MOST_NAMED = 3  # sweeps, models or data sets in the title
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "<": "$<$",
          ">": "$>$", "×": r"$\times$"}


def latex(text: object) -> str:
    """Text as LaTeX shows it literally."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def markdown(text: object) -> str:
    """Text as Markdown shows it literally, also inside a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#$])", r"\\\1", _one_line(text))


def _one_line(text: object) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(text))


def json_in_html(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def environment() -> Any:
    """Jinja2, escaping everything in HTML; what is not defined is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    found = Environment(loader=PackageLoader("analysis"), autoescape=select_autoescape(["html"]),
                        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    found.filters |= {"latex": latex, "markdown": markdown, "json_in_html": json_in_html}
    return found


def render(summary: dict[str, Any], curves: Sequence[Curve], figures: Sequence[Figure], margins: Sequence[float]
           ) -> dict[str, str]:
    """The texts of all documents by file name."""
    tables = make_tables(summary, curves)
    context = {
        "summary": summary, "figures": figures, "tables": {table.name: table for table in tables},
        "title": title(summary), "metric": metric_of(summary), "scope": scope(summary),
        "methods": methods(curves, margins), "notes": notes(curves),
        "dark_css": DARK_CSS,
    }
    documents = {name: environment().get_template(name).render(context) for name in ("report.html", "report.md")}
    return documents | {f"tables/{table.name}.tex": render_latex(table) for table in tables}


def render_latex(table: Table) -> str:
    return environment().get_template("table.tex").render(table=table)


def title(summary: dict[str, Any]) -> str:
    """'SWEEP: MODEL on DATA'; many names are counted, and sweeps that are named as their data sets need no name."""
    def shown(value: Any, noun: str) -> str:
        each = list(dict.fromkeys(map(str, value))) if isinstance(value, list) else [str(value)]
        return ", ".join(each) if len(each) <= MOST_NAMED else f"{len(each)} {noun}s"

    same = summary["sweep"] == summary["dataset"] and isinstance(summary["sweep"], list)
    sweep = f"{shown(summary['sweep'], 'sweep')}: " if summary["sweep"] and not same else ""
    return f"{sweep}{shown(summary['model'], 'model')} on {shown(summary['dataset'], 'data set')}"
