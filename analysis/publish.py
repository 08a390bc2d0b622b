"""`finetune report SOURCE --publish`: the answer beside the runs in W&B, as one run of job type `report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.load.from_wandb import PREFIX, parse_source
from analysis.report.report import Report
from finetune.errors import EnvironmentProblem, FinetuneError
from finetune.tracking.client import INIT_SECONDS, reason_of, usual_project, wanted_mode

JOB_TYPE = "report"
CURVE = ("freeze_depth", "strategy", "learning_rate", "head_learning_rate", "estimate", "low", "high", "loss",
         "loss_at_most", "train_seconds", "trainable_parameters")
COMPARISONS = ("a", "b", "difference", "low", "high", "p_value", "p_adjusted")


def publish(report: Report, sources: Sequence[str]) -> str:
    """Put curve, tables, figures and report.html of a written report into the sweep's project; returns where.

    A new run each time, named after the sweep; its artifact `report-SWEEP` gets a new version. With
    WANDB_MODE=offline it is written below the report's folder, for `wandb sync`. Raises EnvironmentProblem when W&B is
    off or cannot be reached.
    """
    mode = wanted_mode()
    if mode == "disabled":
        raise EnvironmentProblem("--publish needs W&B: `wandb login`, or WANDB_MODE=offline to write it for `wandb "
                                 f"sync`; the report is in {report.folder}")
    try:
        return _publish(report, mode, *_place(sources))
    except FinetuneError:
        raise
    except Exception as error:
        raise EnvironmentProblem(f"the report cannot be published ({reason_of(error)}); it is in {report.folder}, and "
                                 "the same command publishes it later") from error


def _place(sources: Sequence[str]) -> tuple[str | None, str, str]:
    """(entity, project, name) of the first source; a directory goes into the usual project."""
    first = sources[0]
    if first.startswith(PREFIX):
        return parse_source(first)
    return os.environ.get("WANDB_ENTITY"), usual_project(), Path(first).resolve().name


def _publish(report: Report, mode: str, entity: str | None, project: str, sweep: str) -> str:
    import wandb

    summary = report.summary
    with wandb.init(mode=mode, entity=entity, project=project, job_type=JOB_TYPE, name=f"report {sweep}", group=sweep,
                    dir=str(report.folder), tags=[JOB_TYPE],
                    settings=wandb.Settings(silent=True, init_timeout=INIT_SECONDS),
                    config={"sweep": sweep, "metric": summary["metric"], "margins": report.margins,
                            "population": summary["population"]}) as run:
        curve = _table(summary["curve"], CURVE)
        run.log({"curve": curve, "comparisons": _table(summary["comparisons"], COMPARISONS),
                 "warnings": wandb.Table(["name", "text"], [[w.get("name"), w["text"]] for w in summary["warnings"]]),
                 "chart": wandb.plot.line(curve, "freeze_depth", "estimate", title=_title(report)),
                 "report": wandb.Html(str(report.folder / "report.html"), inject=False),
                 **{f"figures/{figure.name}": wandb.Html(figure.svg, inject=False) for figure in report.figures}})
        run.summary.update({"answer": summary["answer"], "headline": summary["headline"],
                            "deepest_safe_freeze": summary["deepest_safe_freeze"]})
        artifact = wandb.Artifact(f"report-{sweep}", type=JOB_TYPE)
        for part in ("report.html", "report.md", "summary.json"):
            artifact.add_file(str(report.folder / part))
        artifact.add_dir(str(report.folder / "figures"), "figures")
        run.log_artifact(artifact)
        where = run.url if mode == "online" else f"{run.settings.sync_dir} (send it with `wandb sync`)"
    return where


def _title(report: Report) -> str:
    return f"{report.summary['metric']} against frozen layers, {report.summary['dataset']}"


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Any:
    import wandb

    kept = [name for name in columns if any(row.get(name) is not None for row in rows)] or list(columns)
    return wandb.Table(kept, [[row.get(name) for name in kept] for row in rows])
