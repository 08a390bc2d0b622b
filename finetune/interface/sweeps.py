"""A sweep from Python: from a notebook, a shell, or a script, which needs no `if __name__ == "__main__"`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, Problem
from finetune.interface.given import as_path, plain_value
from finetune.interface.progress import BarView, Quiet, in_notebook, stop_button
from finetune.interface.reports import Report, make_report

if TYPE_CHECKING:
    import pandas as pd

    from finetune.sweep.spec.schema import SweepSpec


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended. `failures`: (trial, reason) of every one without a result; the same call tries them again."""

    output_dir: Path
    failures: list[tuple[str, str]]
    chosen: list[dict[str, Any]] = field(repr=False)  # with `confirm`: each depth's setting, as tuning chose it
    text: str = field(repr=False)  # what the command prints at the end
    adaptive: dict[str, Any] | None = field(default=None, repr=False)  # its decisions: that section of sweep.json

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial that is on disk: its knobs, metrics and costs."""
        from analysis.load.records import load_sources
        from analysis.report.tables import trial_table

        return trial_table(load_sources([str(self.output_dir)]).trials)

    def report(self, **options: Any) -> Report:
        """`make_report` of this sweep."""
        return make_report(self.output_dir, **options)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text)}</pre>"


def run_sweep(sweep: str | PathLike[str] | Mapping[str, Any], *, set: Mapping[str, Any] | None = None,
              output_dir: str | PathLike[str] | None = None, name: str | None = None, workers: int | None = None,
              confirm: int = 0, search_seed: int = 0, retries: int = 2, trial_timeout: float | None = None,
              storage: str | None = None, prefix_budget: str | None = None, mps: str = "auto",
              adaptive: bool = False, max_seeds: int | None = None, margin: float | None = None,
              progress: bool = True) -> SweepResult:
    """Run all trials of a sweep that are not on disk yet: what `finetune sweep` does, with its options.

    `sweep` is a YAML file, the name of one that comes with the package, or a dict in W&B's form. `set` fixes a knob for
    the whole sweep, or replaces its values where the value is a list. Records lie in `output_dir`, by default
    runs/<the file's name, or the dict's `name`>. Workers are processes of their own, which import nothing of yours.

    `adaptive=True` finds the deepest freeze_depth that loses at most `margin` (a fraction; default: the sweep's own)
    without training every one, with at most `max_seeds` fresh seeds per depth (default: 20).

    Ctrl-C or the stop button: running trials write their checkpoints, KeyboardInterrupt is raised, nothing is lost, and
    the same call goes on there. Trials that failed are no exception: they are in `failures`.

    Raises ConfigError for a sweep or a point that is wrong (nothing has run then), DataError, EnvironmentProblem.

    >>> import finetune
    >>> finetune.run_sweep({"method": "grid", "parameters": {"freeze_dept": {"values": [0, 6]}}})
    Traceback (most recent call last):
    finetune.errors.ConfigError: freeze_dept = 0, 6: no such knob; did you mean freeze_depth?
    """
    from finetune.commands.sweep import closing, options_from
    from finetune.sweep.runner import run_sweep as run
    from finetune.sweep.view.live import open_view
    from finetune.tracking import check_mode

    check_mode()
    if set is not None and not isinstance(set, Mapping):
        raise ConfigError([Problem("set", set, 'allowed: a dict of knobs and values, e.g. {"train_size": 100}')])
    if name is not None and not isinstance(name, str):
        raise ConfigError([Problem("name", name, "allowed: text")])
    spec, folder = _spec_of(sweep, plain_value(set or {}))
    options = options_from({
        "output_dir": None if output_dir is None else as_path("output_dir", output_dir), "confirm": confirm,
        "retries": retries, "workers": "auto" if workers is None else workers, "search_seed": search_seed,
        "trial_timeout": trial_timeout, "storage": storage, "prefix_budget": prefix_budget, "mps": mps,
        "adaptive": adaptive, "max_seeds": max_seeds, "margin": margin, "from_python": True}, spec, folder)
    spec = spec.named(name)
    view = (BarView() if in_notebook() else open_view()) if progress else Quiet()
    with stop_button():
        try:
            ending = run(spec, options, view)
        finally:
            view.close()
    return SweepResult(options.output_dir, ending.failures, [vars(choice) for choice in ending.chosen],
                       closing(ending, options.output_dir), ending.adaptive)


def _spec_of(sweep: str | PathLike[str] | Mapping[str, Any], overrides: dict[str, Any]) -> tuple[SweepSpec, str]:
    """The checked sweep, and the name of its folder in runs/."""
    from finetune.commands.sweep import find_sweep
    from finetune.sweep.spec.schema import load_spec, parse_spec

    if isinstance(sweep, str | PathLike):
        file = find_sweep(str(sweep))
        return load_spec(file, overrides), file.stem
    if isinstance(sweep, Mapping):
        spec = parse_spec(plain_value(sweep), default_name="sweep", overrides=overrides)
        return spec, Path(spec.name).name
    raise ConfigError([Problem("sweep", sweep, "allowed: a YAML file, the name of a sweep that comes with the "
                                               "package, or a dict in W&B's form")])
