"""A sweep's report as an object: the answer, its tables and its figures. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import ConfigError, Problem, did_you_mean
from finetune.interface.given import plain_value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.report.report import Report as Computed

SHOWN = ["freeze_depth", "strategy", "estimate", "low", "high", "seeds", "loss", "loss_at_most",
         "trainable_parameters", "train_seconds"]


class Report:
    """What `make_report` found. In a notebook it shows its answer, its warnings and the curve.

    Fractions are 0..1, times are seconds, memory is bytes; intervals are 95%.
    """

    def __init__(self, computed: Computed):
        self._computed = computed

    @property
    def summary(self) -> dict[str, Any]:
        """Everything, as summary.json holds it."""
        return self._computed.summary

    @property
    def answer(self) -> str:
        """How deep can be frozen, how sure that is, what it saves: in sentences."""
        return self.summary["answer"]

    @property
    def curve(self) -> pd.DataFrame:
        """A row per depth (and per curve, where there are several): the setting chosen on validation, measured on test.

        estimate, low, high: the metric with its 95% interval. loss: what it loses against full fine-tuning, at most
        loss_at_most (one-sided 95%).
        """
        import pandas as pd

        rows = [{**{name: value for name, value in entry.items() if name not in ("values", "missing")},
                 "seeds": len(entry["values"])} for entry in self.summary["curve"]]
        return pd.DataFrame(rows)

    @property
    def comparisons(self) -> pd.DataFrame:
        """A row per pair that was compared: difference (a minus b), low, high, p_value, p_adjusted (Holm)."""
        import pandas as pd

        return pd.DataFrame(self.summary["comparisons"])

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial: its knobs, metrics and costs."""
        from analysis.report.tables import trial_table

        return trial_table(self._computed.loaded.trials)

    @property
    def warnings(self) -> list[str]:
        """What stands between the numbers and the conclusion."""
        return [warning["text"] for warning in self.summary["warnings"]]

    @property
    def figures(self) -> list[str]:
        """The names that `figure` takes."""
        return [figure.name for figure in self._computed.figures]

    def figure(self, name: str = "curve") -> Figure:
        """One of `figures` as a matplotlib Figure, new with each call. Raises ConfigError for a name there is none of.
        """
        from finetune.interface.shown import as_shown

        found = next((figure for figure in self._computed.figures if figure.name == name), None)
        if found is None:
            raise ConfigError([Problem("figure", name, f"allowed: {', '.join(self.figures)}"
                                       + did_you_mean(name, self.figures))])
        return as_shown(found.plot())

    def save(self, folder: str | PathLike[str] | None = None) -> Path:
        """Write report.html, summary.json, figures and tables as `finetune report` does; the path of report.html.

        `folder`: default DIR/report of the first directory.
        """
        saved = self._computed.save(None if folder is None else Path(folder))
        return saved.folder / "report.html"

    def __repr__(self) -> str:
        return f"<Report of {', '.join(map(str, self.summary['curves'])) or self.summary['sweep']}: {self.answer}>"

    def _repr_html_(self) -> str:
        table = self.curve[[name for name in ("curve", *SHOWN) if name in self.curve]].dropna(axis=1, how="all")
        notes = "".join(f"<li>{escape(text)}</li>" for text in self.warnings)
        first = "".join(figure.svg for figure in self._computed.figures[:1])
        return (f"<div><p><b>{escape(self.answer)}</b></p>{first}{f'<ul>{notes}</ul>' if notes else ''}"
                f"{table.to_html(index=False, float_format='{:.4g}'.format)}</div>")


def make_report(*sources: str | PathLike[str], margin: float | Sequence[float] | None = None,
                population: Literal["new_text", "this_test_set"] = "new_text", metric: str | None = None,
                by: str | Sequence[str] = ()) -> Report:
    """The report of one or several sweeps' directories: what `finetune report` does, without writing files.

    Directories of one sweep are merged, different sweeps overlaid. `margin`: the loss that is tolerated, a fraction;
    the first of several is the headline; default: the sweep's own. `population`: whether the intervals speak about new
    text or about exactly these test rows. `by`: knobs that make a curve per value instead of being tuned. Raises
    ConfigError for a wrong argument and where there is nothing to report.

    >>> import finetune
    >>> report = finetune.make_report("runs/example")
    >>> report.answer.split(":")[0]
    'You can freeze the first 3 of 6 layers of all-MiniLM-L6-v2 on rotten_tomatoes_mini'
    >>> list(report.curve["freeze_depth"])
    [0, -1, 1, 2, 3, 4, 5, 6]
    >>> figure = report.figure("curve")
    >>> report.figure("curv")
    Traceback (most recent call last):
    finetune.errors.ConfigError: figure = 'curv': allowed: curve, ...; did you mean curve?
    """
    from analysis.command import check
    from analysis.report.report import make_report as compute

    if not sources:
        raise ConfigError("make_report: give the directory of a sweep, e.g. runs/quickstart")
    asked = plain_value(margin)
    margins = None if asked is None else asked if isinstance(asked, list) else [asked]
    names = [by] if isinstance(by, str) else list(by)
    check(margins or [], names)
    if population not in ("new_text", "this_test_set"):
        raise ConfigError([Problem("population", population, "allowed: new_text | this_test_set")])
    return Report(compute([str(source) for source in sources], margins=margins, population=population, metric=metric,
                          by=names))
