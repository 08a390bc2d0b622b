"""Was the choice fair? Checks of how settings were tuned and chosen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from analysis.findings.curves import Curve, Point
from analysis.findings.words import count, names, seeds
from analysis.load.groups import distinct
from analysis.load.protocol import Choice, Setting, choose
from analysis.load.records import Arm, Trial
from finetune.results import PREDICTIONS_FILE
from finetune.training.evaluation import higher_is_better

LEARNING_RATES = ("learning_rate", "head_learning_rate")


def not_confirmed(curve: Curve) -> Iterator[str]:
    protocol = curve.protocol
    if not protocol.confirmed and any(choice.chosen_by_tuning for choice in protocol.choices):
        yield ("settings were chosen and measured on the same seeds, which favours lucky settings; "
               "`finetune sweep FILE --confirm 10` measures the chosen ones on fresh seeds")
    if protocol.unconfirmed:
        yield (f"{', '.join(arm.name for arm in protocol.unconfirmed)}: tuned, but not confirmed on fresh seeds, "
               "so not on the curve")


def leak(curve: Curve) -> Iterator[str]:
    """Test rows or testifying seeds that had a say in the choice."""
    for choice in curve.protocol.choices:
        tuned = {seed for candidate in choice.candidates for seed in candidate.trials}
        if curve.protocol.confirmed and (both := sorted(tuned & set(choice.setting.trials))):
            yield f"{choice.arm.name}: {seeds(both)} tuned and confirmed: the same models chose and testified"
        yield from _chosen_on_test(choice, curve)
    if rows := _shared_rows(curve):
        yield f"{count(rows, 'row')} of the test split also in the validation split: what chose also testifies"


def _chosen_on_test(choice: Choice, curve: Curve) -> Iterator[str]:
    """The confirmed setting should be the one that is best on validation; being best on test instead is a leak."""
    tuning = [s for s in choice.candidates if s.phase == "tune" and s.trials]
    metric = curve.protocol.group.selection
    own = next((s for s in tuning if s.setting_id == choice.setting.setting_id), None)
    preferred = choose(tuning, metric)
    if not curve.protocol.confirmed or own is None or preferred is None:
        return
    sign = 1 if higher_is_better(metric) else -1
    if sign * own.score("validation", metric) < sign * preferred.score("validation", metric):
        best_on_test = max(tuning, key=lambda s: sign * s.score("test", metric))
        leaked = "it is the best on test" if best_on_test is own else "how it was chosen is unclear"
        yield f"{choice.arm.name}: the confirmed setting is not the one that validation prefers; {leaked}"


def _shared_rows(curve: Curve) -> int:
    trial = curve.points[0].trials[0]
    validation, test = trial.predictions("validation"), trial.predictions("test")
    if validation is None or test is None:
        return 0
    return len(np.intersect1d(validation[2], test[2]))


def edge_of_grid(curve: Curve) -> Iterator[str]:
    edges: dict[tuple[str, str, float], list[Arm]] = defaultdict(list)
    for choice in curve.protocol.choices:
        for name in LEARNING_RATES:
            tried = tried_values(choice, name)
            value = choice.setting.example.knobs.get(name)
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                edges[name, "lowest" if value == tried[0] else "highest", value].append(choice.arm)
    for (name, end, value), arms in edges.items():
        yield (f"{name}: the best value {value:g} is the {end} that was tried at "
               f"{', '.join(arm.name for arm in arms)}; widen the grid")


def tried_values(choice: Choice, name: str) -> list[Any]:
    """What of a knob was tried for an arm, in ascending order; nothing where it acts on nothing there."""
    return distinct(setting.example.knobs.get(name) for setting in choice.candidates)


def not_converged(curve: Curve) -> Iterator[str]:
    late = [point for point in curve.points if ends_at_best(point)]
    if late:
        yield f"{names(late)}: the best epoch is the last one in most seeds (not converged); train longer"


def ends_at_best(point: Point) -> bool:
    """Whether in most seeds the best epoch is the last one."""
    return 2 * sum(map(_last_is_best, point.trials)) > len(point.trials)


def _last_is_best(trial: Trial) -> bool:
    return bool(trial.record.history) and trial.record.best_epoch == trial.record.history[-1].get("epoch")


def unequal_epochs(curve: Curve) -> Iterator[str]:
    epochs = {point.arm: point.choice.setting.example.knobs.get("num_train_epochs") for point in curve.points}
    if len(set(epochs.values())) > 1:
        yield "depths were trained for different numbers of epochs: " + ", ".join(
            f"{arm.name} {number}" for arm, number in epochs.items())


def unequal_budgets(curve: Curve) -> Iterator[str]:
    """Settings tried per depth, as far as the knobs that act there can differ."""
    budgets = {choice.arm: _budget(choice, curve) for choice in curve.protocol.choices}
    if any(tried != fair for tried, fair in budgets.values()):
        yield "settings tried differ between depths: " + ", ".join(
            f"{arm.name} {tried}" for arm, (tried, fair) in budgets.items()) + "; more tries find a better best"


def _budget(choice: Choice, curve: Curve) -> tuple[int, int]:
    """(settings tried at this arm, settings that the most tried arm would make with the knobs that act here)."""
    tuned = curve.protocol.group.tuned
    acting = [name for name in tuned if any(s.example.knobs.get(name) is not None for s in choice.candidates)]
    projected = [len({repr(s.knobs(acting)) for s in other.candidates}) for other in curve.protocol.choices
                 if all(any(s.example.knobs.get(name) is not None for s in other.candidates) for name in acting)]
    return len(choice.candidates), max(projected)


def inert_knobs(curve: Curve) -> Iterator[str]:
    arms: dict[str, list[Arm]] = defaultdict(list)
    for choice in curve.protocol.choices:
        for name in curve.protocol.group.tuned:
            if all(setting.example.knobs.get(name) is None for setting in choice.candidates):
                arms[name].append(choice.arm)
    for name, where in arms.items():
        yield f"{name} acts on nothing at {', '.join(arm.name for arm in where)}: its values are one setting there"
    yield from _without_effect(curve)


def _without_effect(curve: Curve) -> Iterator[str]:
    """Different settings whose predictions are the same to the last bit."""
    seen: dict[tuple[int, str], Setting] = {}
    same: Counter[tuple[str, ...]] = Counter()
    for setting in curve.protocol.settings:
        for seed, trial in setting.trials.items():
            digest = trial.record.files.get(PREDICTIONS_FILE)
            other = seen.setdefault((seed, digest), setting) if digest else setting
            if other.setting_id != setting.setting_id:
                same[_differing(other, setting)] += 1
    for knobs, pairs in same.items():
        yield (f"{' and '.join(knobs) or 'settings'} made no difference at all: {count(pairs, 'pair')} of trials with "
               "different values gave identical predictions")


def _differing(a: Setting, b: Setting) -> tuple[str, ...]:
    return tuple(name for name in a.example.knobs
                 if name != "seed" and a.example.knobs[name] != b.example.knobs.get(name))
