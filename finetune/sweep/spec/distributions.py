"""W&B's distributions, each as its quantile function: u in (0, 1) -> value.

The definitions are those of W&B's `sweeps` package: rounding to multiples of q happens after sampling, `log_uniform`
takes exponents (base e) and `log_uniform_values` takes values, categorical values are equally likely.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

Quantile = Callable[[float], Any]


def quantile(name: str, arguments: Mapping[str, Any]) -> Quantile:
    """The quantile function of distribution `name` with its (checked) arguments, e.g. ("uniform", {"min", "max"})."""
    values = {**DEFAULTS.get(name, {}), **arguments}
    base = name.removeprefix("q_")
    continuous = _BUILDERS[base](values)
    return _quantized(continuous, values["q"]) if name.startswith("q_") else continuous


def grid_values(name: str, arguments: Mapping[str, Any]) -> list[Any] | None:
    """Every value of a distribution that a grid can enumerate, or None for one that it cannot."""
    if name == "constant":
        return [arguments["value"]]
    if name == "categorical":
        return list(arguments["values"])
    if name == "int_uniform":
        return list(range(arguments["min"], arguments["max"] + 1))
    if name == "q_uniform":  # W&B leaves the upper bound out, as numpy's arange does
        step = arguments.get("q", 1.0)
        count = math.ceil((arguments["max"] - arguments["min"]) / step)
        return [arguments["min"] + index * step for index in range(count)]
    return None


def grid_size(name: str, arguments: Mapping[str, Any]) -> int:
    """How many values `grid_values` would list, without listing them."""
    if name == "int_uniform":
        return arguments["max"] - arguments["min"] + 1
    if name == "q_uniform":
        return math.ceil((arguments["max"] - arguments["min"]) / arguments.get("q", 1.0))
    return len(arguments.get("values", [None]))


def _quantized(continuous: Quantile, q: float) -> Quantile:
    def value(u: float) -> float:
        rounded = round(continuous(u) / q) * q
        return int(rounded) if isinstance(q, int) else float(rounded)

    return value


def _linear(low: float, high: float) -> Quantile:
    return lambda u: low + u * (high - low)


def _exponential(low: float, high: float) -> Quantile:
    """exp(U), U uniform in (low, high)."""
    return lambda u: math.exp(low + u * (high - low))


def _inverse_exponential(low: float, high: float) -> Quantile:
    """exp(-U), U uniform in (low, high): the quantile rises with u as every quantile does."""
    return lambda u: math.exp(-(low + (1 - u) * (high - low)))


def _categorical(values: Sequence[Any]) -> Quantile:
    return lambda u: values[min(math.ceil(u * len(values)), len(values)) - 1]


def _weighted(values: Sequence[Any], probabilities: Sequence[float]) -> Quantile:
    edges = list(accumulate(probabilities))
    # Sums of floats end a little below or above 1: the last value with any weight takes what remains.
    last = max(index for index, weight in enumerate(probabilities) if weight > 0)
    return lambda u: values[min(bisect.bisect_right(edges, u), last)]


def _integers(low: int, high: int) -> Quantile:
    return lambda u: min(low + math.ceil(u * (high - low + 1)) - 1, high)


def _normal(mu: float, sigma: float) -> Quantile:
    from scipy.special import ndtri

    return lambda u: mu + sigma * float(ndtri(u))


def _log_normal(mu: float, sigma: float) -> Quantile:
    normal = _normal(mu, sigma)
    return lambda u: math.exp(normal(u))


def _beta(a: float, b: float) -> Quantile:
    from scipy.special import betaincinv

    return lambda u: float(betaincinv(a, b, u))


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], Quantile]] = {
    "constant": lambda p: lambda u: p["value"],
    "categorical": lambda p: _categorical(p["values"]),
    "categorical_w_probabilities": lambda p: _weighted(p["values"], p["probabilities"]),
    "int_uniform": lambda p: _integers(p["min"], p["max"]),
    "uniform": lambda p: _linear(p["min"], p["max"]),
    "log_uniform": lambda p: _exponential(p["min"], p["max"]),
    "log_uniform_values": lambda p: _exponential(math.log(p["min"]), math.log(p["max"])),
    "inv_log_uniform": lambda p: _inverse_exponential(p["min"], p["max"]),
    "inv_log_uniform_values": lambda p: _inverse_exponential(-math.log(p["max"]), -math.log(p["min"])),
    "normal": lambda p: _normal(p["mu"], p["sigma"]),
    "log_normal": lambda p: _log_normal(p["mu"], p["sigma"]),
    "beta": lambda p: _beta(p["a"], p["b"]),
}

_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1, "b": 1}
_Q = {"q": 1.0}
DEFAULTS: dict[str, dict[str, float]] = {
    "q_uniform": _Q, "q_log_uniform": _Q, "q_log_uniform_values": _Q,
    "normal": _NORMAL, "q_normal": _NORMAL | _Q, "log_normal": _NORMAL, "q_log_normal": _NORMAL | _Q,
    "beta": _BETA, "q_beta": _BETA | _Q,
}
