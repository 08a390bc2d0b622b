"""The space of a sweep as Optuna sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from finetune.sweep.spec.points import searched_parameters
from finetune.sweep.spec.schema import SweepSpec


def distributions_of(spec: SweepSpec) -> dict[str, BaseDistribution]:
    """Optuna's view of the space: a grid's values, or u in (0, 1) whatever W&B's distribution is."""
    if spec.method == "grid":
        return {p.name: CategoricalDistribution(_choices(p.grid())) for p in spec.parameters
                if p.distribution != "constant"}
    return {p.name: FloatDistribution(0.0, 1.0) for p in searched_parameters(spec)}


def _choices(values: Sequence[Any]) -> list[Any]:
    """Numbers stay numbers; anything else is shown as text, since 1 and True are the same choice to Optuna."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return list(dict.fromkeys(values if numbers else map(str, values)))


def plain(value: Any, choices: Sequence[Any]) -> Any:
    """The choice as it is shown: itself where it is one of them, else its text."""
    return value if value in choices else str(value)
