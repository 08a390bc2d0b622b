"""All figures of a report, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from analysis.figures import plots, plots_across, plots_cost, plots_detail, plots_tuning, svg
from analysis.findings.across import Across
from analysis.findings.curves import Curve, counted_at_baseline
from analysis.findings.words import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MOST_OVERLAID = 7  # colours that can be told apart
MOST_PANELS = 24
WIDE = 9.6  # inches: the page's width


@dataclass(frozen=True)
class Figure:
    """A figure, drawn when it is asked for: `name` is its file's name, `section` is where the page shows it."""

    name: str
    section: str  # across | curve | cost | detail | tuning
    title: str
    caption: str
    drawing: Callable[[Any], None]  # axes (one, or several with ncols) -> what is drawn on them
    options: dict[str, Any] = field(default_factory=dict)  # of the axes: figsize, nrows, ncols, squeeze, sharey

    @cached_property
    def svg(self) -> str:
        """One <svg> element."""
        with svg.style(self.name):
            return svg.render(self._drawn())

    def plot(self) -> Canvas:
        """A matplotlib Figure of one's own, on white, to be changed and saved. No part of pyplot: it has no backend."""
        with svg.style(self.name):
            drawn = self._drawn()
        drawn.set_facecolor("white")
        return drawn

    def _drawn(self) -> Canvas:
        figure, axes = svg.blank(**self.options)
        self.drawing(axes)
        return figure


def make_figures(curves: Sequence[Curve], margin: float, probes: Sequence[dict[str, Any]] = (),
                 general: Across | None = None) -> list[Figure]:
    return [*_across(general), *_main(curves, margin), *_sizes(curves), *_lost(curves, margin),
            *_differences(curves, margin), *_costs(curves), *_equal_compute(curves), *_classes(curves),
            *_probe(curves, margin, probes), *_learning(curves), *_heatmaps(curves), *_budgets(curves)]


def _across(general: Across | None) -> Iterator[Figure]:
    if general is not None and any(level.share is not None for level in general.levels):
        said = ("95% t-interval over them" if general.enough else "too few for anything general")
        yield draw("across-tasks", "across", f"Over {len(general.tasks)} {general.kind}s",
                   f"A thin line per {general.kind}; thick: their mean ({said}). Below: in how many the freeze is "
                   f"shown safe by itself{_unjudged(general)}. Levels: {general.steps}.",
                   lambda axes: plots_across.draw_across(general, axes), figsize=(WIDE, 5.4), nrows=2, sharex=True,
                   gridspec_kw={"height_ratios": [3.4, 1]})


def _unjudged(general: Across) -> str:
    """What the numbers below the picture leave out."""
    most = max((level.judged for level in general.levels), default=0)
    left = len(general.tasks) - most
    return f", of those that could be judged ({count(left, general.kind)} could not: pale)" if most and left else ""


def _main(curves: Sequence[Curve], margin: float) -> Iterator[Figure]:
    computed = [plots.depth_curve(curve, margin) for curve in curves if curve.depths]
    caption = ("Mean over seeds with its 95% interval; every dot is a seed. An interval says how sure the level is; "
               "for differences between depths, which are paired, see the comparisons. The axis is to scale: a step "
               "for the embeddings, then one for each layer." + _also(curves))
    together = len(computed) > 1 and len({curve.metric for curve in computed}) == 1 and len(computed) <= MOST_OVERLAID
    if together or len(computed) == 1:
        yield draw("curve", "curve", f"Test {computed[0].metric} against frozen layers", caption,
                   lambda ax: plots.draw_depth_curves(computed, ax), figsize=(WIDE, 4.8))
    elif computed:
        shown = computed[:MOST_PANELS]
        columns = 2 if len(shown) in (2, 4) else 3
        rows = -(-len(shown) // columns)
        yield draw("curve", "curve", "Test result against frozen layers", caption,
                   lambda axes: plots.draw_panels(shown, axes.flat), nrows=rows, ncols=columns, squeeze=False,
                   sharey=len({curve.metric for curve in shown}) == 1, figsize=(WIDE, 0.5 + 2.6 * rows))
    for index, curve in enumerate(computed if len(computed) > 1 else [], start=1):
        yield draw(f"curve-{index}", "detail", f"{curve.name}: test {curve.metric} against frozen layers", caption,
                   lambda ax, own=curve: plots.draw_depth_curves([own], ax))


def _also(curves: Sequence[Curve]) -> str:
    """What differs between the curves besides what their names say."""
    also = curves[0].protocol.group.also
    return f" The curves differ in {', '.join(also)} too." if also else ""


def _sizes(curves: Sequence[Curve]) -> Iterator[Figure]:
    lines, grid = plots_detail.by_train_size(curves), plots_detail.size_grid(curves)
    if grid is None:
        return
    metric = curves[0].metric
    yield draw("train-size", "curve", "Depth and training size", "Mean over seeds with its 95% interval.",
               lambda ax: plots_detail.draw_sizes(lines, metric, ax))
    yield draw("train-size-grid", "detail", "Depth × training size", f"Test {metric}, mean over seeds.",
               lambda ax: plots_tuning.draw_grid(grid, metric, ax))


def _lost(curves: Sequence[Curve], margin: float) -> Iterator[Figure]:
    for name, curve in _numbered(curves, "curve-lost-seeds"):
        pessimistic = counted_at_baseline(curve)
        if pessimistic is not None and pessimistic.depths:
            computed = plots.depth_curve(pessimistic, margin)
            yield draw(name, "curve", _titled(curve, "The curve with lost seeds counted at the baseline"),
                       "Seeds without a result (failed, pruned, never run) stand at the baseline.",
                       lambda ax, own=computed: plots.draw_depth_curves([own], ax))


def _differences(curves: Sequence[Curve], margin: float) -> Iterator[Figure]:
    found = [change for curve in curves for change in plots_cost.changes(curve)]
    if found and len({curve.metric for curve in curves}) == 1:
        yield draw("differences", "curve", "Difference to full fine-tuning",
                   "Paired by seed and by test row; 95% intervals, not adjusted for their number. Dotted: the margin.",
                   lambda ax: plots_cost.draw_changes(found, curves[0].metric, margin, curves[0].sign, ax),
                   figsize=(WIDE, 1.3 + 0.36 * len(found)))


def _costs(curves: Sequence[Curve]) -> Iterator[Figure]:
    if len({curve.metric for curve in curves}) > 1:
        return
    for cost in plots_cost.COSTS:
        fronts = [plots_cost.pareto(curve, cost) for curve in curves]
        if any(len(found) > 1 for found in fronts):
            yield draw(f"pareto-{cost.name.replace('_', '-')}", "cost", f"Quality against {cost.axis.split(' (')[0]}",
                       "Filled marks on the line are not beaten in both (the Pareto front); 95% intervals.",
                       lambda ax, found=fronts, own=cost: plots_cost.draw_pareto(found, own, curves[0].metric, ax))


def _equal_compute(curves: Sequence[Curve]) -> Iterator[Figure]:
    for name, curve in _numbered(curves, "equal-compute"):
        found = plots_cost.spent(curve)
        if len(found) > 1:
            yield draw(name, "cost", _titled(curve, "At equal compute"),
                       "What each had reached after so much training time: its best epoch so far on validation, mean "
                       "over the reported seeds. Every schedule is as long as its own training, so that an early epoch "
                       "is not what a shorter run would have ended with.",
                       lambda ax, own=found, m=curve.protocol.group.selection: plots_cost.draw_spent(own, m, ax),
                       figsize=(7.2, _beside(len(found), 4.2)))


def _classes(curves: Sequence[Curve]) -> Iterator[Figure]:
    for name, curve in _numbered(curves, "classes"):
        grid = plots_detail.class_changes(curve)
        if grid is not None and grid.columns:
            yield draw(name, "detail", _titled(curve, "Change of recall per class against full fine-tuning"),
                       "In points; bold where the class's own 95% interval excludes zero (not adjusted for their "
                       "number).", lambda ax, own=grid: plots_tuning.draw_grid(own, "recall", ax, diverging=True),
                       figsize=(WIDE if len(grid.columns) > 12 else 7.2, 1.3 + 0.34 * len(grid.rows)))


def _probe(curves: Sequence[Curve], margin: float, probes: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    if len(curves) == 1 and probes and curves[0].depths and probes[0]["metric"] == curves[0].metric:
        computed = plots.depth_curve(curves[0], margin)
        yield draw("probe", "detail", "Linear probes beside the real curve",
                   f"Dashed: a linear probe on each depth's frozen features ({probes[0]['split']} rows), which is "
                   "nearly free; it sees what the features hold, not what training the rest could add.",
                   lambda ax: plots_detail.draw_probe(computed, probes[0], ax))


def _learning(curves: Sequence[Curve]) -> Iterator[Figure]:
    for name, curve in _numbered(curves, "learning"):
        found = [line for line in plots_tuning.learning(curve) if line.epochs]
        if found:
            yield draw(name, "tuning", _titled(curve, "Learning curves"), "Mean over the reported seeds.",
                       lambda axes, own=found, m=curve.protocol.group.metric: plots_tuning.draw_learning(own, m, axes),
                       ncols=2, figsize=(WIDE, _beside(len(found), 3.6)))


def _heatmaps(curves: Sequence[Curve]) -> Iterator[Figure]:
    for name, curve in _numbered(curves, "grid"):
        for knob in curve.protocol.group.tuned:
            grid = plots_tuning.tuning_grid(curve, knob)
            if min(len(grid.rows), len(grid.columns)) > 1 or not curve.by_strategy and len(grid.rows) > 1:
                yield draw(f"{name}-{knob}", "tuning", _titled(curve, f"{curve.noun.capitalize()} × {knob}"),
                           f"Validation {curve.protocol.group.selection}: the best setting over the other knobs, mean "
                           "over seeds.",
                           lambda ax, own=grid, m=curve.protocol.group.selection: plots_tuning.draw_grid(own, m, ax),
                           figsize=(7.2, 1.4 + 0.42 * len(grid.rows)))


def _budgets(curves: Sequence[Curve]) -> Iterator[Figure]:
    for name, curve in _numbered(curves, "budget"):
        found = plots_tuning.budgets(curve)
        if found:
            yield draw(name, "tuning", _titled(curve, "Expected best validation result against tuning budget"),
                       "Unbiased over the order in which settings could have been tried.",
                       lambda ax, own=found, m=curve.protocol.group.selection: plots_tuning.draw_budgets(own, m, ax),
                       figsize=(7.2, _beside(len(found), 4.2)))


def _beside(entries: int, least: float) -> float:
    """Inches of height that a legend of so many entries needs beside the axes."""
    return max(least, 0.3 + 0.2 * entries)


def _numbered(curves: Sequence[Curve], name: str) -> Iterator[tuple[str, Curve]]:
    for index, curve in enumerate(curves, start=1):
        yield (name if len(curves) == 1 else f"{name}-{index}"), curve


def _titled(curve: Curve, title: str) -> str:
    return f"{curve.name}: {title[0].lower()}{title[1:]}" if curve.name else title


def draw(name: str, section: str, title: str, caption: str, drawing: Callable[[Any], None], **options: Any) -> Figure:
    return Figure(name, section, title, caption, drawing, options)
