"""The sweep file as an adaptive sweep takes it, and what is no question for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.errors import ConfigError, Problem
from finetune.sweep.adaptive.space import FULL
from finetune.sweep.plan import SweepOptions
from finetune.sweep.spec.schema import SweepSpec, parse_spec


def problems_of(spec: SweepSpec, given: Mapping[str, Any], dashes: str = "") -> list[Problem | str]:
    """Every reason why this file with these options cannot be swept adaptively."""
    problems: list[Problem | str] = []
    seeds, margin = given.get("max_seeds"), given.get("margin")
    if not given.get("adaptive"):
        return [Problem(f"{dashes}{name}", value, f"acts on nothing without {dashes}adaptive")
                for name, value in (("max_seeds", seeds), ("margin", margin)) if value is not None]
    from analysis.statistics import sequential  # with scipy, which no other sweep needs

    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < sequential.FIRST_LOOK):
        problems.append(Problem(f"{dashes}max_seeds", seeds, f"allowed: an integer >= {sequential.FIRST_LOOK}, "
                                "which a verdict needs"))
    if margin is not None and not (isinstance(margin, int | float) and 0 < margin < 1):
        problems.append(Problem(f"{dashes}margin", margin, "allowed: a fraction above 0 and below 1, e.g. 0.01"))
    if given.get("confirm"):
        problems.append(Problem(f"{dashes}confirm", given["confirm"], f"not with {dashes}adaptive, which confirms on "
                                f"as many fresh seeds as a depth needs; {dashes}max_seeds bounds them"))
    return problems + _of_the_file(spec, dashes)


def _of_the_file(spec: SweepSpec, dashes: str) -> list[Problem | str]:
    by_name = {parameter.name: parameter for parameter in spec.parameters}
    problems: list[Problem | str] = []
    if spec.method != "grid":
        return [Problem("method", spec.method, f"allowed with {dashes}adaptive: grid, whose freeze_depth values are "
                                               "the candidates")]
    reasons = {"early_terminate": (spec.early_terminate, "settings are dropped by successive halving over seeds"),
               "run_cap": (spec.run_cap, "the sweep ends when the depth is known"),
               "metric.target": (spec.metric and spec.metric.target, "the sweep ends when the depth is known")}
    problems += [Problem(name, "hyperband" if name == "early_terminate" else value,
                         f"not with {dashes}adaptive: {reason}; remove it from the file")
                 for name, (value, reason) in reasons.items() if value is not None]
    if "strategy" in by_name:
        problems.append(Problem("strategy", _values(by_name["strategy"]), f"not with {dashes}adaptive, which compares "
                                                                          "values of freeze_depth"))
    depths = [value for value in _values(by_name["freeze_depth"]) if not _is_full(value)] \
        if "freeze_depth" in by_name else []
    if not depths:
        problems.append(Problem("freeze_depth", _values(by_name["freeze_depth"]) if "freeze_depth" in by_name else None,
                                f"{dashes}adaptive needs its candidates: values such as [0, 1, 2, 3, 4, 5, 6]"))
    if "margin" in by_name and len(_values(by_name["margin"])) > 1:
        problems.append(Problem("margin", _values(by_name["margin"]), f"allowed with {dashes}adaptive: one value"))
    return problems


def prepared(spec: SweepSpec, options: SweepOptions) -> SweepSpec:
    """The file with full fine-tuning among its depths, and with the margin that is asked for.

    Raises ConfigError for a file that cannot be swept adaptively.
    """
    given = {"adaptive": True, "confirm": options.confirm, "max_seeds": options.max_seeds, "margin": options.margin}
    problems = problems_of(spec, given, "" if options.from_python else "--")
    if problems:
        raise ConfigError(problems)
    depths = next(_values(parameter) for parameter in spec.parameters if parameter.name == "freeze_depth")
    overrides: dict[str, Any] = {} if any(map(_is_full, depths)) else {"freeze_depth": [FULL, *depths]}
    if options.margin is not None:
        overrides["margin"] = options.margin
    return parse_spec(spec.as_run, default_name=spec.name, overrides=overrides) if overrides else spec


def _values(parameter: Any) -> list[Any]:
    return list(parameter.grid()) if parameter.enumerable else [parameter.distribution]


def _is_full(value: Any) -> bool:
    return value is None or str(value).strip().lower() in ("0", "none", "null")
