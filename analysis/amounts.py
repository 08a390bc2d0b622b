"""How an amount of a metric is told: the one place that knows its unit.

A metric that is a share or a correlation is told in points (hundredths: 0.80 -> 0.79 loses 1 point) and its level in
percent. A loss or an error (every metric of which less is better) has no hundredths: its amounts, levels and margins
are told in its own unit, and freezing does not lose some of it but raises it.

All values are given in the metric's own unit (a share as a fraction), losses positive where freezing makes it worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

from finetune.training.evaluation import higher_is_better

FRACTIONS = {"accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted", "subset_accuracy"}  # drawn in percent
DECIMALS = 3  # of an amount in its own unit, as fine as a tenth of a point
LEAST = 5e-7  # smaller amounts in their own unit are told as 0


def has_points(metric: str) -> bool:
    """Whether hundredths of the metric mean something: not of a loss or an error, of which less is better."""
    return higher_is_better(metric)


def points(fraction: float) -> str:
    """A difference in percentage points with one decimal; a true minus, never '−0.0'."""
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:.1f}".replace("-", "−")


def in_own_unit(value: float, digits: int = 2) -> str:
    """Three decimals, more where fewer than `digits` significant ones would be left, fewer from 10 on; a true minus."""
    if abs(value) < LEAST:
        return "0"
    if not math.isfinite(value):
        return f"{value}".replace("-", "−")
    power = math.floor(math.log10(abs(value)))
    decimals = max(DECIMALS, digits - 1 - power) if power < 1 else max(DECIMALS - power, 0)
    return f"{value:,.{decimals}f}".replace("-", "−")


class Amounts:
    """The words for amounts of a metric that has points."""

    scale = 100.0  # of a change, where it is drawn
    in_unit = " in points"
    differences = "in points"
    column = "loses (points)"
    bound_column = "loses at most, points"
    its_loss = "its loss"
    the_loss = "the loss"

    def __init__(self, metric: str):
        self.metric = metric

    @property
    def change_axis(self) -> str:
        return f"change of test {self.metric} (points)"

    # -- values --------------------------------------------------------------------------------------------------------

    @property
    def level_scale(self) -> float:
        """Of a level, where it is drawn."""
        return 100.0 if self.metric in FRACTIONS else 1.0

    @property
    def drawn_name(self) -> str:
        """The metric with the unit of its levels, for an axis or a column."""
        return f"{self.metric} (%)" if self.metric in FRACTIONS else self.metric

    def level(self, value: float) -> str:
        """A level in a sentence: '69.3%'."""
        return f"{100 * value:.1f}%"

    def drawn(self, value: float) -> str:
        """A level in a picture: '81.5%', of a correlation '0.8150'."""
        return self.level(value) if self.metric in FRACTIONS else f"{value:.4f}"

    def cell(self, value: float) -> str:
        """A level in a column that says its unit."""
        return f"{100 * value:.1f}" if self.metric in FRACTIONS else f"{value:.4f}"

    # -- amounts -------------------------------------------------------------------------------------------------------

    def number(self, value: float) -> str:
        """'5.3', where the unit is known."""
        return points(value)

    def signed(self, value: float) -> str:
        """'+5.3', where the unit is known; a true minus."""
        text = self.number(abs(value))
        return text if float(text.replace(",", "")) == 0 else ("+" if value > 0 else "−") + text

    def change(self, value: float) -> str:
        """'+5.3 points'."""
        return f"{self.signed(value)} points"

    def amount(self, value: float) -> str:
        """'5.3 points'."""
        return f"{points(value)} points"

    def of_metric(self, value: float) -> str:
        """'5.3 points of accuracy'."""
        return f"{self.amount(value)} of {self.metric}"

    def margin(self, margin: float) -> str:
        """'1 point', '0.5 points'."""
        return f"{100 * margin:g} point" + ("" if margin == 0.01 else "s")

    def margin_of(self, margin: float) -> str:
        """A margin where what it is of has not been said: '1 point'."""
        return self.margin(margin)

    def about(self, value: float) -> str:
        """'1.5 points', to two digits."""
        return f"{100 * value:.2g} points"

    # -- what freezing does to it --------------------------------------------------------------------------------------

    def loses(self, loss: float) -> str:
        """'loses 0.4 points'; of a negative loss 'gains 0.4 points'."""
        return f"gains {points(-loss)} points" if points(loss).startswith("−") else f"loses {points(loss)} points"

    def bounded(self, loss: float, bound: float) -> str:
        """'loses 0.4 points, at most 1.1', 'gains 0.4 points, yet may lose up to 0.3'."""
        return f"{self.loses(loss)}, {'at most' if loss >= 0 else 'yet may lose up to'} {points(bound)}"

    def loses_plainly(self, loss: float, bound: float, most: str = "at most") -> str:
        """'loses 0.4 points, at most 1.1': where it is known to lose."""
        return f"loses {points(loss)} points, {most} {points(bound)}"

    def loses_at_most(self, bound: float, *, named: bool = False) -> str:
        """'loses at most 5.3 points', `named`: 'loses at most 5.3 points of accuracy'."""
        return f"loses at most {self.of_metric(bound) if named else self.amount(bound)}"

    def to_lose(self, most: str, *, named: bool = False) -> str:
        """'lose at most 1 point', `named`: 'lose at most 1 point of accuracy'; `most` is a margin in words."""
        return f"lose at most {most}" + (f" of {self.metric}" if named else "")

    def worse_than(self, loss: float) -> str:
        """'2.3 points worse than'."""
        return f"{self.amount(loss)} worse than"

    def on_worse_side(self, loss: float) -> str:
        """'2.3 points below it'."""
        return f"{self.amount(loss)} below it"


class OwnUnit(Amounts):
    """The words for amounts of a loss or an error, in its own unit: freezing raises it."""

    scale = 1.0
    in_unit = ""

    def __init__(self, metric: str):
        super().__init__(metric)
        self.what = f"the {metric}" if metric == "loss" else metric  # that is raised
        self.differences = f"in {metric}"
        self.column, self.bound_column = f"raises {self.what} by", f"raises {self.what} by at most"
        self.its_loss, self.the_loss = f"its rise in {self.what}", f"the rise in {self.what}"

    @property
    def change_axis(self) -> str:
        return f"change of test {self.metric}"

    def level(self, value: float) -> str:
        """'0.693'."""
        return in_own_unit(value, 3)

    drawn = cell = level

    def number(self, value: float) -> str:
        """'0.053'."""
        return in_own_unit(value)

    def change(self, value: float) -> str:
        """'+0.053'."""
        return self.signed(value)

    def amount(self, value: float) -> str:
        """'0.053 of mse'."""
        return f"{self.number(value)} of {self.metric}"

    of_metric = amount

    def margin(self, margin: float) -> str:
        """'0.01'."""
        return f"{margin:g}"

    def margin_of(self, margin: float) -> str:
        """'0.01 of mse'."""
        return f"{margin:g} of {self.metric}"

    def about(self, value: float) -> str:
        """'0.015', to two digits."""
        return self.number(float(f"{value:.2g}"))

    def loses(self, loss: float) -> str:
        """'raises mse by 0.004'; of a negative loss 'lowers mse by 0.004'."""
        return f"{'raises' if loss > -LEAST else 'lowers'} {self.what} by {self.number(abs(loss))}"

    def bounded(self, loss: float, bound: float) -> str:
        """'raises mse by 0.004, at most 0.011', 'lowers mse by 0.004, yet may raise it by up to 0.003'."""
        if math.isnan(bound):
            return self.loses(loss)
        most = "at most" if loss > -LEAST else "yet may raise it by up to" if bound > 0 else "at least"
        return f"{self.loses(loss)}, {most} {self.number(bound if loss > -LEAST else abs(bound))}"

    def loses_plainly(self, loss: float, bound: float, most: str = "at most") -> str:
        """'raises mse by 0.004, at most 0.011'."""
        return self.bounded(loss, bound) if most == "at most" else f"{self.loses(loss)}, {most} {self.number(bound)}"

    def loses_at_most(self, bound: float, *, named: bool = False) -> str:
        """'raises mse by at most 0.053'."""
        return f"raises {self.what} by at most {self.number(bound)}"

    def to_lose(self, most: str, *, named: bool = False) -> str:
        """'raise mse by at most 0.01'."""
        return f"raise {self.what} by at most {most}"

    def worse_than(self, loss: float) -> str:
        """'worse by 0.023 of mse than'."""
        return f"worse by {self.amount(loss)} than"

    def on_worse_side(self, loss: float) -> str:
        """'0.023 above it'."""
        return f"{self.number(loss)} above it"


class Mixed(Amounts):
    """The words above several metrics, some or all of which have no points; each amount is told by its own metric's."""

    def __init__(self, metrics: Iterable[str]):
        self.each = [amounts(metric) for metric in metrics]
        super().__init__(" / ".join(one.metric for one in self.each))
        unit = "points or own unit" if any(has_points(one.metric) for one in self.each) else "own unit"
        self.column, self.bound_column = f"loses ({unit})", f"loses at most, {unit}"
        self.differences = f"in {unit}"

    def margin_of(self, margin: float) -> str:
        """'1 point / 0.01 of mse'."""
        return " / ".join(dict.fromkeys(one.margin_of(margin) for one in self.each))


@cache
def amounts(metric: str) -> Amounts:
    """The words for one metric."""
    return Amounts(metric) if has_points(metric) else OwnUnit(metric)


def amounts_of(metrics: str | Iterable[str]) -> Amounts:
    """The words for one metric or for several together."""
    if isinstance(metrics, str):
        return amounts(metrics)
    different = list(dict.fromkeys(metrics))
    if len(different) == 1 or all(map(has_points, different)):
        return amounts(" / ".join(different))
    return Mixed(different)
