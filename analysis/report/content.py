"""The report's tables, made from summary.json, so that the page, Markdown and LaTeX say what the summary says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from analysis.amounts import Amounts, amounts, amounts_of, has_points, points
from analysis.findings.curves import Curve
from analysis.findings.verdict import named
from analysis.load.groups import TUNED_KNOBS

DASH = "–"
LOOKS = (" Each depth was looked at several times; its error is spent over the looks, and the bound is a repeated one, "
         "valid whatever made the search stop.")


class Cell(NamedTuple):
    """What is shown, and the number behind it (for sorting, and to be checked against summary.json)."""

    text: str
    value: Any = None


class Table(NamedTuple):
    """A table: `name` is its file's name and its place in the page."""

    name: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(isinstance(row[i].value, int | float) for row in self.rows) for i in range(len(self.columns))]

    def without_empty_columns(self) -> Table:
        full = [i for i in range(len(self.columns)) if any(row[i].text not in ("", DASH) for row in self.rows)]
        rows = [[row[i] for i in full] for row in self.rows]
        return self._replace(columns=[self.columns[i] for i in full], rows=rows)


def make_tables(summary: dict[str, Any], curves: Sequence[Curve]) -> list[Table]:
    found = [*across_tables(summary), curve_table(summary, curves), verdict_table(summary), looks_table(summary),
             comparison_table(summary, curves), kept_table(summary), cost_table(summary), pessimistic_table(summary),
             correlation_table(summary), settings_table(curves)]
    return [table.without_empty_columns() for table in found if table.rows]


def across_tables(summary: dict[str, Any]) -> list[Table]:
    """Over several tasks, and each of them."""
    found = summary["across_tasks"]
    if found is None:
        return []
    kind = found["task_is"]
    unit = "points" if found["unit"] == "points" else "% of the gain"
    rows = [[Cell(e["label"], e["share"]), Cell(_range(e["frozen"])), plain(len(e["losses"])),
             *(_loss(e[k]) for k in ("mean", "low", "high", "at_most", "new_low", "new_high")),
             _of(e["safe"], e["judged"]), _share(e["safe_low"]), _share(e["safe_high"])] for e in found["levels"]]
    over = (f"Mean over {kind}s with its 95% t-interval and one-sided 95% bound; “another” is where another {kind}'s "
            "own loss would lie (95%)") if found["general"] else (
            f"Mean over just these {kind}s: with fewer than five nothing general follows")
    judged = any(level["judged"] for level in found["levels"])
    safe = f"; “safe in” counts the {kind}s that show it by themselves" if judged else ""
    note = f"{over}{safe}. Levels: {found['steps']}."
    columns = ["frozen", "really frozen", f"{kind}s", f"loses ({unit})", "95% low", "95% high", "at most",
               "another low", "another high", "safe in", "share low", "share high"]
    each = [[Cell(task), *(_loss(e["losses"].get(task)) for e in found["levels"])] for task in found["tasks"]]
    return [Table("across-tasks", f"Over {found['n_tasks']} {kind}s", note, columns, rows),
            Table("each-task", f"Each {kind}", f"What it loses at each level ({unit}).",
                  [kind, *(e["label"] for e in found["levels"])], each)]


def _range(frozen: tuple[float, float] | None) -> str:
    if frozen is None:
        return DASH
    low, high = (f"{share:.0%}" for share in frozen)
    return low if low == high else f"{low} to {high}"


def _of(count: int, total: int) -> Cell:
    return Cell(f"{count} of {total}", count / total) if total else Cell(DASH)


def _share(value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(f"{value:.0%}", value)


def metric_of(summary: dict[str, Any]) -> str:
    metric = summary["metric"]
    return metric if isinstance(metric, str) else " / ".join(dict.fromkeys(metric))


def _metric_column(summary: dict[str, Any]) -> list[str]:
    """The name of the column of levels, where curves differ in the metric after one that says which it is."""
    metric = summary["metric"]
    if isinstance(metric, list):
        return ["metric", "test result"]
    return [amounts(metric).drawn_name]


def _metric_cell(summary: dict[str, Any], entry: dict[str, Any]) -> list[Cell]:
    metric = summary["metric"]
    return [Cell(metric[summary["curves"].index(entry["curve"])])] if isinstance(metric, list) else []


def _amounts(summary: dict[str, Any], entry: dict[str, Any]) -> Amounts:
    """How amounts of an entry's curve are told."""
    metric = summary["metric"]
    return amounts(metric[summary["curves"].index(entry["curve"])] if isinstance(metric, list) else metric)


def level(summary: dict[str, Any], entry: dict[str, Any], name: str) -> Cell:
    """A metric's level: percent where it is a fraction, and all curves have the one metric."""
    value, own = entry[name], _amounts(summary, entry)
    if value is None:
        return Cell(DASH)
    together = amounts_of(metric_of(summary)) if has_points(own.metric) else own
    return Cell(together.cell(value), value)


def change(own: Amounts, value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(own.signed(value), value)


def p_cell(value: float | None) -> Cell:
    if value is None:
        return Cell(DASH)
    return Cell("<0.001" if value < 0.001 else f"{value:.3f}", value)


def plain(value: Any) -> Cell:
    if value is None:
        return Cell(DASH)
    return Cell(f"{value:g}" if isinstance(value, float) else str(value), value)


def scaled(divisor: float, digits: int) -> Callable[[float | None], Cell]:
    """Cells of a quantity in another unit."""
    def cell(value: float | None) -> Cell:
        return Cell(DASH) if value is None else Cell(f"{value / divisor:,.{digits}f}", value)
    return cell


def arm_cell(entry: dict[str, Any], by_strategy: bool = False) -> Cell:
    """The depth as a sortable cell; strategies come after the depths, or stand by their names where there are any."""
    depth = entry["freeze_depth"]
    if depth is None or by_strategy:
        return Cell(entry["strategy"], entry["strategy"])
    return Cell({0: "0 (full)", -1: "emb"}.get(depth, str(depth)), depth)


def _curve_column(summary: dict[str, Any]) -> list[str]:
    return ["curve"] if len(summary["curves"]) > 1 else []


def _curve_cell(entry: dict[str, Any]) -> list[Cell]:
    return [Cell(entry["curve"], entry["curve"])] if "curve" in entry else []


def curve_table(summary: dict[str, Any], curves: Sequence[Curve]) -> Table:
    knobs = [name for name in TUNED_KNOBS if any(name in curve.protocol.group.tuned for curve in curves)]
    together = amounts_of(summary["metric"])
    by_strategy, order = any(curve.by_strategy for curve in curves), _order(curves)
    word = "strategy" if by_strategy else "depth"
    columns = [*_curve_column(summary), "strategy" if by_strategy else "frozen", *_metric_column(summary),
               "95% low", "95% high", "seeds", together.column, "at most", *knobs, "trainable (M)", "training (s)",
               "alone (s)", "memory (GB)"]
    seconds = scaled(1, 1)
    rows = [[
        *_curve_cell(e), arm_cell(e, by_strategy), *_metric_cell(summary, e),
        *(level(summary, e, k) for k in ("estimate", "low", "high")),
        Cell(str(len(e["values"])), len(e["values"])),
        *(_loss(e[k], _amounts(summary, e)) for k in ("loss", "loss_at_most")),
        *(plain(e.get(k)) for k in knobs), scaled(1e6, 2)(e["trainable_parameters"]),
        seconds(e["train_seconds"]), seconds(e["alone_seconds"]), scaled(1e9, 2)(e["peak_memory_bytes"]),
    ] for e in sorted(summary["curve"], key=lambda e: order[e.get("curve", ""), e["strategy"]])]
    note = (f"Each {word}'s setting, chosen on validation, measured on test. “at most” is the one-sided 95% bound of "
            f"{together.the_loss} against full fine-tuning. “alone” is the training time of a trial that shares no "
            "activations.")
    return Table("curve", "The curve", note, columns, rows)


def _order(curves: Sequence[Curve]) -> dict[tuple[str, str], int]:
    """(curve, strategy) -> place in the order in which the curves show their points."""
    shown = [(curve.name, point.arm.strategy) for curve in curves for point in curve.shown]
    return {key: place for place, key in enumerate(shown)}


def _loss(value: float | None, own: Amounts | None = None) -> Cell:
    """Over tasks in points or in percent of the gain, of one curve as its metric is told."""
    return Cell(DASH) if value is None else Cell(own.number(value) if own else points(value), value)


def verdict_table(summary: dict[str, Any]) -> Table:
    rows = [[*_curve_cell(e), Cell(_amounts(summary, e).margin(e["margin"]), e["margin"]),
             Cell(DASH) if e["reason"].startswith("no verdict") else _depth(e["freeze_depth"]),
             _tests(e, _amounts(summary, e)),
             Cell(e["reason"])] for e in summary["deepest_safe_freeze"]]
    together = amounts_of(summary["metric"])
    note = (f"The deepest depth that is shown to {together.to_lose('the margin')}. Depths are tested in the order of a "
            "bisection, each with a one-sided bound at 5% divided by the number of tests that may be made: all "
            "together are wrong in at most 5%." + (LOOKS if summary["adaptive"] else ""))
    columns = [*_curve_column(summary), "margin", "freeze", f"tested ({together.bound_column})", "why not deeper"]
    return Table("verdict", "Deepest safe freeze", note, columns, rows)


def looks_table(summary: dict[str, Any]) -> Table:
    """Every look of an adaptive sweep."""
    rows = [[*_curve_cell(search), _depth(e["freeze_depth"]), Cell(str(e["seeds"]), e["seeds"]),
             *(_loss(e[k], _amounts(summary, search)) for k in ("estimate", "lower", "bound")),
             Cell(f"{100 * e['confidence']:.2f}%", e["confidence"]),
             Cell("too deep" if e["state"] == "unsafe" else e["state"])]
            for search in summary["adaptive"] for e in search["decisions"]]
    return Table("looks", "What each look said", "In the order in which depths were looked at. “level” is the nominal "
                 "one of the look; over all looks of a depth together the bounds hold at the level of its test.",
                 [*_curve_column(summary), "frozen", "seeds", amounts_of(summary["metric"]).column, "at least",
                  "at most", "level", "decision"], rows)


def _tests(entry: dict[str, Any], own: Amounts) -> Cell:
    """'depth 3 (0.6, safe), then depth 5 (1.7, not shown)'."""
    told = [f"{_depth(test['freeze_depth']).text} ({DASH if test['bound'] is None else own.number(test['bound'])}, "
            f"{'safe' if test['safe'] else 'not shown'})" for test in entry["tested"]]
    return Cell(", then ".join(told) or DASH)


def _depth(depth: int | None) -> Cell:
    return Cell("none shown") if depth is None else Cell("emb" if depth == -1 else str(depth), depth)


def kept_table(summary: dict[str, Any]) -> Table:
    rows = [[*_curve_cell(e), Cell(f"{e['share']:.0%}", e["share"]), _depth(e["freeze_depth"]), Cell(e["reason"])]
            for e in summary["kept_gain"] if not e["reason"].startswith("no verdict")]
    return Table("kept-gain", "Share of the gain that is kept", "Of what full fine-tuning gains over the baseline; "
                 "bounds and tests as for the deepest safe freeze.",
                 [*_curve_column(summary), "keeps", "freeze", "why not deeper"], rows)


def comparison_table(summary: dict[str, Any], curves: Sequence[Curve]) -> Table:
    told = {named(curve, point.arm): curve.amounts for curve in curves for point in curve.points}
    rows = [[
        Cell(e["a"]), Cell(e["b"]), *(change(told[e["a"]], e[k]) for k in ("difference", "low", "high")),
        p_cell(e["p_value"]), p_cell(e["p_adjusted"]),
        *(change(told[e["a"]], e[k]) for k in ("bootstrap_low", "bootstrap_high")),
        p_cell(e["mcnemar_p"]), Cell(e["note"] or DASH)] for e in summary["comparisons"]]
    differences = amounts_of(summary["metric"]).differences
    return Table("comparisons", "Comparisons", f"Differences {differences}, a minus b. p is two-sided and agrees with "
                 "the interval; Holm's adjustment is over the family. The crossed bootstrap is a cross-check, "
                 "McNemar's test is for two single checkpoints only.",
                 ["a", "b", "difference", "95% low", "95% high", "p", "p (Holm)", "bootstrap low", "bootstrap high",
                  "McNemar p", "note"], rows)


def cost_table(summary: dict[str, Any]) -> Table:
    hours = scaled(3600, 2)
    rows = [[*_curve_cell(e), Cell(f"{e['trials']:,}", e["trials"]), hours(e["train_seconds"]),
             hours(e["evaluation_seconds"]), hours(e["saved_seconds"])] for e in summary["cost"]]
    return Table("cost", "What the sweep cost", "All trials, as executed.",
                 [*_curve_column(summary), "trials", "training (h)", "evaluation (h)", "saved by reuse (h)"], rows)


def pessimistic_table(summary: dict[str, Any]) -> Table:
    rows = [[*_curve_cell(e), arm_cell(e), *_metric_cell(summary, e),
             *(level(summary, e, k) for k in ("estimate", "low", "high"))]
            for e in summary["lost_seeds_at_baseline"]]
    return Table("lost-seeds", "Lost seeds counted at the baseline", "Seeds that failed, were pruned or never ran.",
                 [*_curve_column(summary), "frozen", *_metric_column(summary), "95% low", "95% high"], rows)


def correlation_table(summary: dict[str, Any]) -> Table:
    rows = [[*_curve_cell(e), arm_cell(e), Cell(str(e["seeds"]), e["seeds"]),
             Cell(DASH) if e["correlation"] is None else Cell(f"{e['correlation']:.2f}", e["correlation"])]
            for e in summary["seed_correlation"]]
    return Table("seed-correlation", "Do seeds go together?", "Correlation over seeds with full fine-tuning. Pairing "
                 "by seed narrows an interval where it is positive.",
                 [*_curve_column(summary), "frozen", "seeds", "correlation"], rows)


def settings_table(curves: Sequence[Curve]) -> Table:
    """Every setting that was tried, with its mean on validation."""
    many, rows = len(curves) > 1, []
    knobs = [name for name in TUNED_KNOBS if any(name in curve.protocol.group.tuned for curve in curves)]
    for curve in curves:
        chosen = {choice.setting.setting_id for choice in curve.protocol.choices}
        metric = curve.protocol.group.selection
        for setting in sorted(curve.protocol.settings, key=lambda s: (s.arm.order, s.phase, s.setting_id)):
            score = setting.score("validation", metric)
            rows.append([
                *([Cell(curve.name)] if many else []),
                arm_cell({"freeze_depth": setting.arm.freeze_depth, "strategy": setting.arm.strategy},
                         setting.arm.by_strategy),
                Cell(setting.phase), *(plain(setting.example.knobs.get(name)) for name in knobs),
                Cell(DASH if score != score else f"{score:.4f}", None if score != score else score),
                Cell(str(len(setting.trials)), len(setting.trials)),
                Cell(", ".join(f"{seed} {why}" for seed, why in sorted(setting.lost.items())) or DASH),
                Cell("chosen" if setting.setting_id in chosen else ""),
            ])
    frozen = "strategy" if any(curve.by_strategy for curve in curves) else "frozen"
    columns = [*(["curve"] if many else []), frozen, "phase", *knobs, "validation", "seeds", "lost", ""]
    return Table("settings", "Settings tried",
                 "Validation metric: mean over seeds; a lost seed counts as the baseline.", columns, rows)
