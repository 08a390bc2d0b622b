"""The report as files: report.html (one self-contained page), summary.json, figures, tables."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.figures.figures import Figure, make_figures
from analysis.figures.svg import standalone
from analysis.findings import checks
from analysis.findings.across import across
from analysis.findings.curves import Curve, measure
from analysis.load.groups import make_groups
from analysis.load.protocol import make_protocol
from analysis.load.records import Loaded, load_sources
from analysis.report.page import render
from analysis.report.summary import summarize
from analysis.report.tables import write_tables
from analysis.statistics.stats import Population
from finetune.errors import ConfigError, Problem, did_you_mean
from finetune.files import atomic_write, disk_errors


@dataclass(frozen=True)
class Report:
    """Everything that a report says, and the folder in which it is or would be written."""

    folder: Path
    summary: dict[str, Any]
    curves: list[Curve]
    figures: list[Figure]
    loaded: Loaded
    margins: list[float]

    def save(self, folder: Path | None = None) -> Report:
        """Write all files. Returns the report with the folder that it now lies in."""
        report = self if folder is None else replace(self, folder=folder)
        documents = render(report.summary, report.curves, report.figures, report.margins)
        documents |= {f"figures/{figure.name}.svg": standalone(figure.svg, figure.title) for figure in report.figures}
        documents["summary.json"] = json.dumps(report.summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        forget_old(report.folder)
        write_tables(report.folder / "tables", report.loaded.trials)
        for name, text in documents.items():
            atomic_write(report.folder / name, text, "the report")
        return report


def write_report(sources: list[str], **options: Any) -> Report:
    """As `make_report`, and write all files."""
    return make_report(sources, **options).save()


def make_report(
    sources: list[str], *, margins: Sequence[float] | None = None, population: Population = "new_text",
    metric: str | None = None, by: Sequence[str] = (), folder: Path | None = None,
) -> Report:
    """Read the sources and compute everything. Raises ConfigError when there is nothing to report."""
    loaded = load_sources(sources)
    curves = make_curves(loaded, population=population, metric=metric, by=by)
    margins = list(margins or [own_margin(curves)])
    general = across(curves, margins[0])
    warnings = checks.all_warnings(loaded, curves, margins) + checks.across_warnings(general)
    summary = summarize(curves, margins, warnings, general)
    figures = make_figures(curves, margins[0], loaded.probes, general)
    return Report(folder or default_folder(sources, curves), summary, curves, figures, loaded, margins)


def forget_old(folder: Path) -> None:
    """Figures and tables of an earlier report that this one may not have again."""
    with disk_errors("the report", folder):
        for pattern in ("figures/*.svg", "tables/*.tex"):
            for path in folder.glob(pattern):
                path.unlink()


def make_curves(
    loaded: Loaded, *, population: Population = "new_text", metric: str | None = None, by: Sequence[str] = ()
) -> list[Curve]:
    """One curve per group of trials that has a complete one."""
    check_metric(loaded, metric)
    protocols = [make_protocol(group) for group in make_groups(loaded, by)]
    curves = [measure(protocol, metric=metric, population=population) for protocol in protocols if protocol.choices]
    if not curves:
        states = ", ".join(sorted({trial.record.state for trial in loaded.trials}))
        raise ConfigError(f"no complete trial among {len(loaded.trials)} records (they are {states}); "
                          "see `finetune status DIR` for the reasons, then rerun the sweep")
    return curves


def check_metric(loaded: Loaded, metric: str | None) -> None:
    """Raises ConfigError for a metric that no record has."""
    known = {name for trial in loaded.trials for name in trial.record.metrics.get("test", {})}
    if metric is not None and known and metric not in known:
        raise ConfigError([Problem("--metric", metric, f"allowed: {', '.join(sorted(known))}"
                                   + did_you_mean(metric, known))])


def own_margin(curves: Sequence[Curve]) -> float:
    """The margin that the sweep fixed before it ran."""
    if curves[0].looks is not None:
        return curves[0].looks.margin
    return float(next(iter(checks.planned_margins(curves[0])), 0.01))


def default_folder(sources: Sequence[str], curves: Sequence[Curve]) -> Path:
    """DIR/report; a comparison of several sweeps must not replace the first one's own report."""
    sweeps = {curve.protocol.group.identity["sweep"] for curve in curves}
    first = Path(re.sub(r"[^\w./~-]", "_", sources[0]) if ":" in sources[0] else sources[0])
    return first / ("report" if len(sources) == 1 or len(sweeps) == 1 else "report-overlay")
