"""The `parameters` section of a sweep: which distribution each one has, and whether its arguments are sound."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from finetune.errors import Problem, did_you_mean, shown
from finetune.sweep.spec.distributions import Quantile, grid_size, grid_values, quantile

_MINMAX = ("min", "max")
# distribution -> (required arguments, optional arguments)
SCHEMA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("value",), ()),
    "categorical": (("values",), ()),
    "categorical_w_probabilities": (("values", "probabilities"), ()),
    "int_uniform": (_MINMAX, ()),
    "uniform": (_MINMAX, ()),
    "q_uniform": (_MINMAX, ("q",)),
    "log_uniform": (_MINMAX, ()),
    "log_uniform_values": (_MINMAX, ()),
    "q_log_uniform": (_MINMAX, ("q",)),
    "q_log_uniform_values": (_MINMAX, ("q",)),
    "inv_log_uniform": (_MINMAX, ()),
    "inv_log_uniform_values": (_MINMAX, ()),
    "normal": ((), ("mu", "sigma")),
    "q_normal": ((), ("mu", "sigma", "q")),
    "log_normal": ((), ("mu", "sigma")),
    "q_log_normal": ((), ("mu", "sigma", "q")),
    "beta": ((), ("a", "b")),
    "q_beta": ((), ("a", "b", "q")),
}
_ARGUMENTS = ("value", "values", "probabilities", "min", "max", "q", "mu", "sigma", "a", "b", "distribution",
              "parameters")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_EDGE = 1e-9


@dataclass(frozen=True)
class Parameter:
    """One searched or fixed knob; `name` is dotted for a nested one."""

    name: str
    distribution: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def quantile(self) -> Quantile:
        return quantile(self.distribution, self.arguments)

    @property
    def enumerable(self) -> bool:
        return self.distribution in ("constant", "categorical", "int_uniform", "q_uniform")

    @property
    def size(self) -> int:
        """How many values a grid gives it."""
        return grid_size(self.distribution, self.arguments)

    def grid(self) -> list[Any]:
        values = grid_values(self.distribution, self.arguments)
        assert values is not None, f"{self.distribution} cannot be enumerated"
        return values

    @property
    def warnings(self) -> list[str]:
        if self.distribution not in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
            return []
        return [f"{self.name} uses {self.distribution}, where min/max specify base-e exponents. "
                f"Use {self.distribution}_values to specify limit values."]


def flatten_parameters(body: Any, problems: list[Problem | str], prefix: str = "") -> dict[str, Any]:
    """Nested `parameters:` -> {dotted name: body}. Violations are added to `problems`."""
    section = f"parameters.{prefix}".rstrip(".")
    if not isinstance(body, dict) or not body:
        problems.append("`parameters` is missing" if body is None and not prefix
                        else Problem(section, body, "allowed: a mapping of at least one knob to its values"))
        return {}
    flat: dict[str, Any] = {}
    for key, value in body.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            problems.append(Problem(section, key, "a name has letters, digits, _, . and -, and begins with a letter"))
        elif isinstance(value, dict) and "parameters" in value:
            if len(value) > 1:
                problems.append(Problem(name, value, "a nested parameter holds `parameters` and nothing else"))
            flat.update(flatten_parameters(value["parameters"], problems, f"{name}."))
        else:
            flat[name] = value
    return flat


def parse_parameter(name: str, body: Any, problems: list[Problem | str]) -> Parameter | None:
    """A checked Parameter, or None when `problems` grew."""
    if not isinstance(body, dict):
        problems.append(Problem(name, body, f"allowed: a mapping, e.g. {{value: {shown(body, 40)}}} or values: […]"))
        return None
    before = len(problems)
    problems += [Problem(f"{name}.{key}", value, "no such key" + did_you_mean(str(key), _ARGUMENTS))
                 for key, value in body.items() if key not in _ARGUMENTS]
    distribution = None if len(problems) > before else _distribution_of(name, body, problems)
    if distribution is None:
        return None
    arguments = {key: value for key, value in body.items() if key != "distribution"}
    problems += _check_arguments(name, distribution, arguments)
    if len(problems) > before:
        return None
    parameter = Parameter(name, distribution, arguments)
    problems += _check_range(parameter)
    return parameter if len(problems) == before else None


def _distribution_of(name: str, body: Mapping[str, Any], problems: list[Problem | str]) -> str | None:
    """The stated distribution, or the one that W&B infers from the keys."""
    if "distribution" in body:
        stated = body["distribution"]
        if not isinstance(stated, str) or stated not in SCHEMA:
            problems.append(Problem(f"{name}.distribution", stated, f"allowed: {', '.join(SCHEMA)}"
                                    + did_you_mean(str(stated), SCHEMA)))
            return None
        return stated
    keys = set(body)
    if keys == set(_MINMAX):
        return _uniform_kind(name, body, problems)
    for distribution in ("constant", "categorical", "categorical_w_probabilities"):
        if keys == set(SCHEMA[distribution][0]):
            return distribution
    problems.append(Problem(name, dict(body), "cannot tell its distribution: give value, values, min and max, "
                            "or name a `distribution`"))
    return None


def _uniform_kind(name: str, body: Mapping[str, Any], problems: list[Problem | str]) -> str | None:
    kinds = {type(body[key]) for key in _MINMAX}
    if kinds == {int}:
        return "int_uniform"
    if kinds == {float}:
        return "uniform"
    hint = "".join(text_number_hint(body[key]) for key in _MINMAX)
    problems.append(Problem(name, dict(body), f"Parameter {name} is ambiguous, please specify bounds as both floats "
                            f"(for a float_uniform distribution) or ints (for an int_uniform distribution){hint}"))
    return None


def text_number_hint(value: Any) -> str:
    """YAML 1.1 reads 1e-5 as text, and so does W&B."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return ""
    mantissa, *exponent = repr(number).split("e")
    written = "e".join([mantissa if "." in mantissa else f"{mantissa}.0", *exponent])
    return f"; YAML reads {value.strip()} as text, write {written}"


def _check_arguments(name: str, distribution: str, arguments: Mapping[str, Any]) -> list[Problem | str]:
    required, optional = SCHEMA[distribution]
    problems: list[Problem | str] = [Problem(f"{name}.{key}", value, f"not an argument of {distribution}")
                                     for key, value in arguments.items() if key not in (*required, *optional)]
    problems += [Problem(name, dict(arguments), f"{distribution} needs `{key}`")
                 for key in required if key not in arguments]
    for key, value in arguments.items():
        problems += [Problem(f"{name}.{key}", value, text) for text in _check_argument(key, value, distribution)]
    return problems or _check_together(name, arguments)


def _check_argument(key: str, value: Any, distribution: str) -> list[str]:
    if key == "value":
        return []
    if key == "values":
        return [] if isinstance(value, list) and value else ["allowed: a list of at least one value"]
    if key == "probabilities":
        sound = isinstance(value, list) and value and all(is_number(p) and p >= 0 for p in value)
        return [] if sound else ["allowed: a list of numbers >= 0"]
    if not is_number(value):
        return ["allowed: a number" + text_number_hint(value)]
    if distribution == "int_uniform" and not isinstance(value, int):
        return ["allowed: an integer"]
    if key == "min" and distribution.endswith("_values") and value <= 0:
        return ["allowed: a number > 0"]
    limits = {"q": (value > 0, "> 0"), "sigma": (value >= 0, ">= 0"), "a": (value > 0, "> 0"), "b": (value > 0, "> 0")}
    sound, words = limits.get(key, (True, ""))
    return [] if sound else [f"allowed: a number {words}"]


def _check_together(name: str, arguments: Mapping[str, Any]) -> list[Problem | str]:
    if "min" in arguments and arguments["min"] >= arguments["max"]:
        return [f"{name}: min {arguments['min']} is not less than max {arguments['max']}"]
    if "probabilities" in arguments:
        weights = arguments["probabilities"]
        if len(weights) != len(arguments["values"]):
            return [Problem(f"{name}.probabilities", weights, "must have the same length as values")]
        if not math.isclose(sum(weights), 1.0, rel_tol=1e-5, abs_tol=1e-8):
            return [Problem(f"{name}.probabilities", weights, "Probabilities do not sum to 1")]
    return []


def _check_range(parameter: Parameter) -> list[Problem | str]:
    """exp() of an exponent that was meant as a value overflows: say so now, not in the middle of the sweep."""
    try:
        ends = [parameter.quantile(u) for u in (_EDGE, 0.5, 1 - _EDGE)]
    except OverflowError:
        ends = [math.inf]
    if any(isinstance(value, float) and not math.isfinite(value) for value in ends
           if parameter.distribution not in ("constant", "categorical", "categorical_w_probabilities")):
        return [Problem(parameter.name, parameter.arguments, f"values of {parameter.distribution} overflow"
                        + "".join(f"; {text}" for text in parameter.warnings))]
    return []


def is_number(value: Any) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
