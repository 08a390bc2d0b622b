"""What the report's sentences rest on, and the checks that notice where it does not hold.

Copies instead of seeds, arms that differ in more than what is frozen, a reference that is no good one, a margin that
any constant answer would keep.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from analysis.findings.checks_tuning import LEARNING_RATES, ends_at_best, tried_values
from analysis.findings.curves import Curve, Point, difference
from analysis.findings.words import seeds
from analysis.load.records import Arm, Trial, flatten
from analysis.statistics import stats
from analysis.statistics.metrics import BY_WORD, TAGGED

COLLAPSED = 0.25  # a seed that went less far than this, of the way from the baseline to its siblings
VACUOUS_SHARE = 0.5  # a margin of at least this share of the gain over the baseline means nothing
MEANINGFUL_SHARE = 0.1  # of the gain: what is proposed instead
BALANCED = 0.25  # shares of a value in two arms that differ by less are a mixture that is balanced
LEVEL = 0.05
# What of a record's configuration is a circumstance rather than a question, unless the sweep itself searches over it.
CIRCUMSTANCES = ("mixed_precision", "attn_implementation")
NOT_RECORDED = "not recorded"
IRRELEVANT = ("host_cores",)  # of the environment: changes no number and is told by nothing else


# -- copies instead of seeds -------------------------------------------------------------------------------------------

def copies(point: Point) -> list[int]:
    """Seeds that are left out because another seed of the setting has the same weights or predictions, bit for bit."""
    return [seed for seed in point.choice.setting.seeds if seed not in point.measured.seeds]


def seeds_are_copies(curve: Curve) -> bool:
    """Whether the seed acts on nothing: every setting with several seeds has one result."""
    several = [point for point in curve.points if len(point.choice.setting.seeds) > 1]
    return bool(several) and all(len(point.measured.seeds) == 1 for point in several)


def identical_seeds(curve: Curve) -> Iterator[str]:
    for point in curve.points:
        if left_out := copies(point):
            yield (f"{point.arm.name}: {seeds(left_out)} gave the same weights or predictions as another seed, bit for "
                   f"bit, and count as one with it ({len(point.measured.seeds)} left)")
    if seeds_are_copies(curve):
        yield ("the seed changes nothing at any setting, so that there is one result and no verdict; it decides head "
               "initialisation, data order, dropout and (where subset_seed is not set) the rows of train_size: a "
               "command that does not pass --seed on, or records copied from one trial, would look like this")


# -- arms that differ in more than what is frozen ----------------------------------------------------------------------

def circumstances(trial: Trial) -> dict[str, Any]:
    """Where and how a trial was trained, by dotted name: its environment, number format, attention, processes."""
    record = trial.record
    found = {name.removeprefix("versions."): value for name, value in flatten(record.environment).items()
             if name not in IRRELEVANT}
    found |= {name: record.config.get(name) for name in CIRCUMSTANCES}
    found["processes"] = record.environment.get("processes", record.effective.get("processes"))
    return {name: value for name, value in found.items() if value is not None}


def mixtures(curve: Curve) -> dict[str, dict[Arm, Counter[str]]]:
    """Circumstance -> arm -> how often each value occurs, for those that are not the same everywhere."""
    trials = [(point.arm, circumstances(trial)) for point in curve.points for trial in point.trials]
    names = dict.fromkeys(name for _, known in trials for name in known if name not in curve.protocol.group.tuned)
    found: dict[str, dict[Arm, Counter[str]]] = defaultdict(dict)
    for arm, known in trials:
        for name in names:  # what some records do not say may differ there
            found[name].setdefault(arm, Counter())[str(known.get(name, NOT_RECORDED))] += 1
    return {name: arms for name, arms in found.items() if len(set().union(*arms.values())) > 1}


def is_balanced(arms: Mapping[Arm, Counter[str]]) -> bool:
    """Whether every value occurs in every arm, with about the same share."""
    values = set().union(*arms.values())
    shares = {value: [counts[value] / counts.total() for counts in arms.values()] for value in values}
    return all(min(of_value) > 0 and max(of_value) - min(of_value) < BALANCED for of_value in shares.values())


def confounded(curve: Curve) -> Iterator[str]:
    for name, arms in mixtures(curve).items():
        if not is_balanced(arms):
            yield (f"{name} is not the same in all arms ({_told(arms)}): a difference between them may be its doing, "
                   "not that of what is frozen; train the arms under the same circumstances")


def mixed_circumstances(curve: Curve) -> Iterator[str]:
    for name, arms in mixtures(curve).items():
        if is_balanced(arms):
            values = sorted(set().union(*arms.values()))
            yield f"{name} varies ({', '.join(values)}), about equally in every arm: it widens intervals, no more"


def _told(arms: Mapping[Arm, Counter[str]]) -> str:
    by_values: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for arm, counts in arms.items():
        by_values[tuple(sorted(counts))].append(arm.name)
    return "; ".join(f"{' and '.join(values)} at {', '.join(named)}" for values, named in by_values.items())


def confounds(curve: Curve, point: Point) -> list[str]:
    """The circumstances in which a point differs from full fine-tuning."""
    reference = curve.reference
    if reference is None:
        return []
    return [name for name, arms in mixtures(curve).items() if point.arm in arms and reference.arm in arms
            and not is_balanced({arm: arms[arm] for arm in (point.arm, reference.arm)})]


# -- a reference that is no good one -----------------------------------------------------------------------------------

def better_than_reference(curve: Curve) -> list[Point]:
    """Arms that beat full fine-tuning by more than chance (two-sided, Holm-adjusted at 5%), the best first."""
    others = [point for point in curve.points if point.loss is not None and not math.isnan(point.loss.seeds)]
    adjusted = stats.holm([curve.p_value(point.loss) for point in others])
    better = [point for point, p in zip(others, adjusted, strict=True) if p < LEVEL and point.loss.estimate < 0]
    return sorted(better, key=lambda point: point.loss.estimate)


def weak_reference(curve: Curve) -> Iterator[str]:
    if better := better_than_reference(curve):
        best = better[0]
        yield (f"full fine-tuning is {curve.amounts.worse_than(-best.loss.estimate)} {best.arm.name}, more than "
               f"chance: it may not be as good as it can be, and what freezing loses against it is in doubt"
               f"{_evidence(curve, best)}")


def _evidence(curve: Curve, best: Point) -> str:
    """What the records say of why: rates, learning curve, train loss, collapsed seeds."""
    reference = curve.reference
    assert reference is not None
    told = [*_edges(reference), *_learning(reference), *_losses(reference, best), *_collapsed(curve, reference)]
    return f" ({'; '.join(told)})" if told else " (neither its rates nor its learning curve say why)"


def _edges(reference: Point) -> Iterator[str]:
    for name in LEARNING_RATES:
        tried, value = tried_values(reference.choice, name), reference.choice.setting.example.knobs.get(name)
        if len(tried) == 1:
            yield f"only one {name} was tried for it, {tried[0]:g}"
        elif tried and value in (tried[0], tried[-1]):
            yield f"its {name} {value:g} is at the edge of what was tried"


def _learning(reference: Point) -> Iterator[str]:
    if ends_at_best(reference):
        yield "its best epoch is the last one in most seeds: undertrained"
        return
    first = sum(trial.record.best_epoch == 1 for trial in reference.trials if len(trial.record.history) > 1)
    if 2 * first > len(reference.trials):
        yield "its best epoch is the first one in most seeds: overfit, or too large a rate"


def _losses(reference: Point, best: Point) -> Iterator[str]:
    own, others = _train_loss(reference), _train_loss(best)
    if own is not None and others is not None:
        yield f"its training loss ends at {own:.3g}, that of {best.arm.name} at {others:.3g}"


def _train_loss(point: Point) -> float | None:
    found = [trial.record.history[-1].get("train", {}).get("loss") for trial in point.trials if trial.record.history]
    known = [value for value in found if isinstance(value, int | float)]
    return fmean(known) if known else None


def _collapsed(curve: Curve, reference: Point) -> Iterator[str]:
    if curve.baseline is None:
        return
    gain = curve.sign * (reference.measured.values - curve.baseline)
    if near := sum(value < COLLAPSED * max(gain.max(), 1e-12) for value in gain):
        yield f"{near} of its {len(gain)} seeds stayed near the baseline"


def against_best(curve: Curve, point: Point, best: Point) -> str:
    """'Against depth 4, the best arm, it loses 0.3 points, at most 0.9.'"""
    if best.arm == point.arm:
        return "It is the best of all arms itself."
    found = difference(best.measured.times(curve.sign), point.measured.times(curve.sign))
    if found is None:
        return ""
    bound = curve.upper(found[0])
    return (f"Against {best.arm.name}, the best arm, it "
            f"{curve.amounts.loses_plainly(found[0].estimate, bound)} (95% confidence).")


# -- a margin that means nothing ---------------------------------------------------------------------------------------

def vacuous_margin(curve: Curve, margin: float) -> str | None:
    """Why a verdict at this margin would say nothing, and what would; None where it is clearly below the gain."""
    if curve.reference is None or curve.baseline is None:
        return None
    gain = curve.sign * (curve.reference.interval.estimate - curve.baseline)
    if margin < VACUOUS_SHARE * gain:
        return None
    by_word = curve.baseline_kind == BY_WORD
    if gain <= 0:
        named = f" ({BY_WORD})" if by_word else ""
        below = curve.amounts.on_worse_side(-gain) if gain < 0 else "it gets the same"
        return (f"full fine-tuning does not beat the baseline{named} in {curve.metric} ({below}), so that there is "
                f"nothing that freezing could lose{_other_metric(curve)}")
    answer = "giving each word its most frequent tag" if by_word else "an answer that never reads the text"
    return (f"a margin of {curve.amounts.margin(margin)} is not clearly below what full fine-tuning gains over the "
            f"baseline ({curve.amounts.of_metric(gain)}): {answer} would nearly pass"
            f"{_other_metric(curve)}, or a margin of about {curve.amounts.about(MEANINGFUL_SHARE * gain)} ("
            f"{MEANINGFUL_SHARE:.0%} of the gain); the kept share of the gain is in its own table")


def _other_metric(curve: Curve) -> str:
    record = curve.reference.trials[0].record if curve.reference else None
    known = record.metrics.get("test", {}) if record else {}
    if curve.baseline_kind == BY_WORD:  # no constant answer: it does well in every metric
        return ""
    # Of entities every F1 of "all O" is 0 already; of words it is right where most have no entity.
    tagged = record is not None and record.task == TAGGED and "precision" in known
    names = (("f1",) if curve.metric == "accuracy" else ()) if tagged else ("f1_macro", "matthews")
    better = next((name for name in names if name in known and name != curve.metric), None)
    return f"; take --metric {better}, which a constant answer does not do well in" if better else ""
