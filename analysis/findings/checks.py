"""What a reader must know before the curve: every departure from the protocol, by name."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from analysis.findings import checks_tuning, looks, premises
from analysis.findings.across import Across
from analysis.findings.curves import Curve
from analysis.findings.words import count, names, seeds
from analysis.load.groups import distinct
from analysis.load.records import Loaded
from analysis.statistics import stats
from analysis.statistics.tasks import FEWEST_TASKS


class Warning(NamedTuple):
    """`kind` is stable and machine-readable; `text` is a sentence."""

    kind: str
    text: str


def all_warnings(loaded: Loaded, curves: Sequence[Curve], margins: Sequence[float] = ()) -> list[Warning]:
    """Every warning, the gravest kinds first, each once."""
    found = [Warning("damaged-record", text) for text in loaded.problems]
    found += [Warning("unfinished", text) for text in unfinished(loaded)]
    for kind, check in [*CHECKS, *((kind, partial(check, margins=margins)) for kind, check in MARGIN_CHECKS)]:
        where: dict[str, list[str]] = defaultdict(list)
        for curve in curves:
            for text in check(curve):
                where[text].append(curve.name)
        found += [Warning(kind, _located(text, found_at, len(curves))) for text, found_at in where.items()]
    return list(dict.fromkeys(found))


def _located(text: str, names: Sequence[str], curves: int) -> str:
    """Where there are several curves, which of them a warning is about."""
    if curves == 1:
        return text
    return f"{'all curves' if len(names) == curves else '; '.join(names)}: {text}"


def across_warnings(general: Across | None) -> list[Warning]:
    """What a reader must know before the answer over several tasks."""
    if general is None:
        return []
    found = [] if general.enough else [Warning("few-tasks", (
        f"{count(len(general.tasks), general.kind)} where {FEWEST_TASKS} are needed: nothing general follows"))]
    found += [Warning("task-left-out", f"{', '.join(curves)} {'says' if len(curves) == 1 else 'say'} nothing over "
                                       f"{general.kind}s: {reason}")
              for reason, curves in general.left_out_because.items()]
    return found + [Warning("same-task", f"{', '.join(names)} are one {general.kind} ({task}) and count once, with "
                                         "their mean") for task, names in general.averaged.items()]


def no_reference(curve: Curve) -> Iterator[str]:
    if curve.reference is None:
        yield "full fine-tuning (freeze_depth 0) is not among the results: what freezing loses cannot be said"


def other_metric(curve: Curve) -> Iterator[str]:
    if curve.asked is not None:
        yield f"its task has no {curve.asked}: its own metric, {curve.metric}, is reported"


def missing_seeds(curve: Curve) -> Iterator[str]:
    for arm, missing in curve.missing.items():
        lost = ", ".join(f"seed {seed} {reason}" for seed, reason in missing.items())
        means = "no verdict while a seed has no result" if curve.looks is None or arm.is_reference else \
            "it is not called safe"
        yield f"{arm.name}: {lost}; {means}"
    for arm, reason in curve.protocol.without_result.items():
        yield f"{arm.name} is not on the curve: no trial has a result ({reason})"


def few_seeds(curve: Curve) -> Iterator[str]:
    if curve.n_seeds < stats.VERDICT_SEEDS:
        meaning = {1: "the interval is that of one checkpoint, not of the method", 2: "dots, no interval"}.get(
            curve.n_seeds, "the interval is wide and there is no verdict")
        yield f"{count(curve.n_seeds, 'seed')} where {stats.VERDICT_SEEDS} are needed: {meaning}"


def fewer_seeds(curve: Curve) -> Iterator[str]:
    most = max(len(point.measured.seeds) for point in curve.points)
    fewer = [point for point in curve.points if len(point.measured.seeds) < most]
    if fewer and curve.looks is None:
        yield (f"{names(fewer)} {'has' if len(fewer) == 1 else 'have'} fewer seeds than the rest "
               f"({', '.join(str(len(p.measured.seeds)) for p in fewer)} where others have {most})")


def unpaired(curve: Curve) -> Iterator[str]:
    apart = [point for point in curve.points if point.loss is not None and not point.paired]
    if apart:
        yield f"{names(apart)} shares no seed with full fine-tuning: compared as independent seeds"


def collapsed_seeds(curve: Curve) -> Iterator[str]:
    """Seeds that stayed near the baseline while most of their siblings learnt."""
    if curve.baseline is None:
        return
    for point in curve.points:
        gain = curve.sign * (point.measured.values - curve.baseline)
        typical = float(np.median(gain))
        lost = [seed for seed, g in zip(point.measured.seeds, gain, strict=True) if g < premises.COLLAPSED * typical]
        if typical > 0 and lost:
            yield (f"{point.arm.name}: {seeds(lost)} collapsed to the baseline "
                   f"({curve.amounts.level(curve.baseline)}) while the median seed did not; counted as they are")


def failed_trials(curve: Curve) -> Iterator[str]:
    """Lost trials while tuning; those of chosen settings are named above."""
    reasons = Counter(reason for s in curve.protocol.settings for reason in s.lost.values() if reason != "pruned")
    total = sum(len(s.trials) + len(s.lost) for s in curve.protocol.settings)
    if reasons:
        yield (f"{count(sum(reasons.values()), 'trial')} of {total} without a result "
               f"({', '.join(f'{n} {reason}' for reason, n in reasons.items())}); "
               "while choosing, each counts as the baseline")


def unfinished(loaded: Loaded) -> Iterator[str]:
    planned = frozenset().union(*(plan.trial_ids for plan in loaded.plans
                                    if plan.method == "grid" and plan.adaptive is None))
    if waiting := len(planned - {trial.record.trial_id for trial in loaded.trials}):
        yield f"the sweep is not finished: {waiting:,} of {len(planned):,} planned trials have no record yet"


def outside_plan(curve: Curve) -> Iterator[str]:
    if curve.protocol.outside_plan:
        yield (f"{count(curve.protocol.outside_plan, 'trial')} in the directory not used: the sweep as it stands does "
               "not ask for them (left by an earlier version of the YAML)")


def repeated_trials(curve: Curve) -> Iterator[str]:
    for setting in curve.protocol.settings:
        if setting.duplicates:
            yield (f"{setting.arm.name}: {seeds(setting.duplicates)} trained more than once with different trial_ids "
                   "(number of processes?); the first by trial_id is used")


def mixed_devices(curve: Curve) -> Iterator[str]:
    devices = {str(trial.record.environment.get("device")) for point in curve.points for trial in point.trials}
    if len(devices) > 1:
        yield f"trials ran on different devices ({', '.join(sorted(devices))}): times do not compare"


def halved_batches(curve: Curve) -> Iterator[str]:
    halved = [trial for point in curve.points for trial in point.trials
              if trial.record.micro_batch]
    if halved:
        yield (f"in {count(len(halved), 'trial')} memory ran out and auto_micro_batch went on with smaller passes: the "
               "effective batch is the same, but with dropout the result is not")


def measuring(curve: Curve) -> Iterator[str]:
    yield from curve.notes


def planned_margins(curve: Curve) -> list[float]:
    """What the trials that testify were run with, ascending: of a confirmed sweep those on fresh seeds, since a margin
    that was named before them was named unseen; else all of them."""
    protocol = curve.protocol
    trials = [t for p in curve.points for t in p.trials] if protocol.confirmed else protocol.group.trials
    return distinct(t.record.config.get("margin") for t in trials)


def margin_changed(curve: Curve, margins: Sequence[float]) -> Iterator[str]:
    planned = planned_margins(curve)
    if len(planned) > 1:
        yield (f"the trials were run with different margins ({', '.join(f'{m:g}' for m in planned)}); the smallest "
               "counts")
    if planned and (later := [margin for margin in margins if margin not in planned]):
        yield (f"margin {', '.join(f'{m:g}' for m in later)} was chosen after the run (the sweep says "
               f"{', '.join(f'{m:g}' for m in planned)}): a verdict at it is exploratory")


def margin_is_vacuous(curve: Curve, margins: Sequence[float]) -> Iterator[str]:
    for margin in margins:
        if reason := premises.vacuous_margin(curve, margin):
            yield reason


CHECKS: list[tuple[str, Callable[[Curve], Iterator[str]]]] = [
    ("unfinished", looks.unfinished), ("decisions", looks.differing),
    ("no-reference", no_reference), ("other-metric", other_metric), ("missing-seeds", missing_seeds),
    ("identical-seeds", premises.identical_seeds),
    ("confounded", premises.confounded), ("reference-in-doubt", premises.weak_reference),
    ("test-leak", checks_tuning.leak),
    ("predictions", measuring), ("not-confirmed", checks_tuning.not_confirmed), ("few-seeds", few_seeds),
    ("fewer-seeds", fewer_seeds), ("unpaired-seeds", unpaired), ("collapsed-seeds", collapsed_seeds),
    ("failed-trials", failed_trials), ("unequal-budgets", checks_tuning.unequal_budgets),
    ("unequal-epochs", checks_tuning.unequal_epochs), ("edge-of-grid", checks_tuning.edge_of_grid),
    ("not-converged", checks_tuning.not_converged), ("inert-knob", checks_tuning.inert_knobs),
    ("outside-plan", outside_plan), ("repeated-trials", repeated_trials), ("mixed-devices", mixed_devices),
    ("mixed-circumstances", premises.mixed_circumstances),
    ("halved-batches", halved_batches),
]

MARGIN_CHECKS: list[tuple[str, Callable[..., Iterator[str]]]] = [  # with the margins that are asked about
    ("vacuous-margin", margin_is_vacuous), ("margin", margin_changed),
]
