"""The points of a sweep: a grid enumerated, a random draw by its number, the corners that are checked beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Problem
from finetune.files import canonical_json
from finetune.sweep.spec.parameters import Parameter
from finetune.sweep.spec.schema import SweepSpec

MAX_POINTS = 100_000
MAX_PROBLEMS = 20  # a wrong value repeats at every point that has it
# Trials that agree in these share loaded data, backbone and frozen prefix: they come one after the other.
LOCALITY = ("dataset_name", "dataset_config_name", "dataset_revision", "model_name_or_path", "model_revision",
            "max_length", "train_size", "freeze_depth", "strategy")


@dataclass(frozen=True)
class Point:
    """One place in the search space. `values` are its knobs as the YAML writes them, dotted names."""

    values: dict[str, Any]
    config: TrialConfig
    u: dict[str, float] | None = None  # where it was drawn, for random and bayes


def grid_points(spec: SweepSpec, fixed: Mapping[str, Any]) -> list[Point]:
    """The cartesian product without duplicates, neighbours sharing data, model and depth.

    `fixed` are knobs that the sweep sets by itself. Raises ConfigError with the problems of all points.
    """
    parameters = sorted(spec.parameters, key=_locality)
    count = math.prod(parameter.size for parameter in parameters)
    if count > MAX_POINTS:
        raise ConfigError(f"the grid has {count} points; at most {MAX_POINTS} are allowed")
    names = [parameter.name for parameter in parameters]
    product = itertools.product(*(parameter.grid() for parameter in parameters))
    return _checked([(dict(zip(names, values, strict=True)), None) for values in product], fixed)


def random_points(spec: SweepSpec, search_seed: int, count: int, fixed: Mapping[str, Any]) -> list[Point]:
    """The first `count` random draws. Draw i depends on the seed and i alone."""
    drawn = [draw(spec, search_seed, index) for index in range(count)]
    return _checked([(values_at(spec, u), u) for u in drawn], fixed)


def probe_points(spec: SweepSpec, fixed: Mapping[str, Any]) -> list[Point]:
    """Points that show a wrong range before a bayes or endless search starts: each parameter at both its ends."""
    searched = searched_parameters(spec)
    middle = {parameter.name: 0.5 for parameter in searched}
    ends = [{**middle, parameter.name: u} for parameter in searched for u in _end_positions(parameter)]
    return _checked([(values_at(spec, u), u) for u in [middle, *ends]], fixed)


def searched_parameters(spec: SweepSpec) -> list[Parameter]:
    """The parameters that are not constant, by name: their order must not depend on the file's."""
    return sorted((p for p in spec.parameters if p.distribution != "constant"), key=lambda p: p.name)


def draw(spec: SweepSpec, search_seed: int, index: int) -> dict[str, float]:
    """u in (0, 1) for every searched parameter; never 0 or 1, where some quantiles are infinite."""
    searched = searched_parameters(spec)
    integers = np.random.default_rng([search_seed, index]).integers(0, 2**53, size=len(searched))
    return {p.name: (int(n) + 0.5) / 2**53 for p, n in zip(searched, integers, strict=True)}


def _end_positions(parameter: Parameter) -> list[float]:
    choices = parameter.arguments.get("values")
    if choices is None:
        return [1e-6, 1 - 1e-6]
    # Every listed value is checked: the wrong one may stand in the middle.
    if parameter.distribution == "categorical":
        return [(index + 0.5) / len(choices) for index in range(len(choices))]
    edges = [0.0, *itertools.accumulate(parameter.arguments["probabilities"])]
    return [(low + high) / 2 for low, high in itertools.pairwise(edges) if high > low]


def values_at(spec: SweepSpec, u: Mapping[str, float]) -> dict[str, Any]:
    """Every parameter at its quantile u[name]."""
    return {p.name: p.quantile(u.get(p.name, 0.5)) for p in spec.parameters}


def _locality(parameter: Parameter) -> int:
    return LOCALITY.index(parameter.name) if parameter.name in LOCALITY else len(LOCALITY)


def _checked(candidates: Sequence[tuple[dict[str, Any], dict[str, float] | None]],
             fixed: Mapping[str, Any]) -> list[Point]:
    """Decode every candidate and drop the ones that repeat an earlier one."""
    points: dict[str, Point] = {}
    problems: list[Any] = []
    for values, u in candidates:
        try:
            config = TrialConfig.from_mapping({**values, **fixed})
        except ConfigError as error:
            problems += error.problems
            continue
        points.setdefault(canonical_json(config.model_dump()), Point(values, config, u))
    if problems:
        raise ConfigError(first_of_each(problems))
    return list(points.values())


class Several(list):
    """Values of one knob with one problem."""

    def __repr__(self) -> str:
        return ", ".join(map(repr, self))


def first_of_each(problems: Iterable[Any]) -> list[Any]:
    """Problems without repetition, one for all values of a knob; cut at MAX_PROBLEMS with a line that says so."""
    groups: dict[Any, list[Any]] = {}
    for problem in {str(problem): problem for problem in problems}.values():
        key = (problem.field, problem.allowed) if isinstance(problem, Problem) else problem
        groups.setdefault(key, []).append(problem)
    distinct = [same[0] if len(same) == 1 else Problem(same[0].field, Several(one.value for one in same),
                                                       same[0].allowed) for same in groups.values()]
    more = len(distinct) - MAX_PROBLEMS
    return distinct if more <= 0 else [*distinct[:MAX_PROBLEMS], f"… and {more} more problems"]
