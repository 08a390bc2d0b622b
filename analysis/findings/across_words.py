"""What several tasks say together, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator

from analysis.amounts import Amounts, amounts, points
from analysis.findings.across import KEPT, Across, Level, Test
from analysis.statistics.stats import VERDICT_SEEDS
from analysis.statistics.tasks import FEWEST_TASKS


def headline(found: Across) -> str | None:
    """The general answer; None where there are too few tasks for one."""
    if not found.enough:
        return None
    over = f"over {of_tasks(found, len(found.tasks))}"
    if found.named is None:
        return (f"On average {over}, no share of the layers is shown to lose at most "
                f"{_allowed(found)}{_nearest(found)}.")
    level = _level(found, found.named)
    return (f"On average {over}, freezing {of_level(level)} {loses(found, level.mean)}{_of_what(found)} against full "
            f"fine-tuning, at most {number(found, max(level.at_most, 0.0))} (95% confidence, for "
            f"{found.kind}s like these); {_safe_in(found, level, 'by itself it is')}.")


def details(found: Across) -> list[str]:
    """What to know besides, in one paragraph."""
    told = _general(found) if found.enough else _too_few(found)
    return [" ".join([*told, *_premises(found)])]


def _general(found: Across) -> Iterator[str]:
    level = _told(found)
    if level is not None:
        worst, best = (pick(level.losses, key=level.losses.__getitem__) for pick in (max, min))
        yield (f"Of these, {best} does best there ({loses(found, level.losses[best])}), {worst} worst "
               f"({loses(found, level.losses[worst])}).")
        if found.named is None:
            yield f"{_safe_in(found, level, 'By itself this freeze is')}."
    if found.named is not None and level is not None:
        yield (f"Another such {found.kind} would by itself {_between(found, level.new_low, level.new_high)} there "
               f"(95%, if losses are normally distributed over {found.kind}s).")
    if len(found.tested) > 1:
        order = ", then ".join(_tested(found, test) for test in found.tested)
        yield (f"Tested over {found.kind}s in the order of a bisection, each at "
               f"{100 * found.tested[0].confidence:.1f}%, so that the whole has 95%: {order}.")


def _tested(found: Across, test: Test) -> str:
    bound = "no bound" if math.isnan(test.bound) else f"at most {number(found, test.bound)}"
    return f"{test.label} ({bound}, {'shown' if test.safe else 'not shown'})"


def _too_few(found: Across) -> Iterator[str]:
    left = " left" if found.left_out else ""
    yield (f"{of_tasks(found, len(found.tasks))}{left} where {FEWEST_TASKS} are needed: nothing general follows about "
           f"other {found.kind}s.")
    levels = [level for level in found.levels if level.share is not None]
    if shown := levels[::-max(len(levels) // 3, 1)][:3][::-1]:
        each = [f"{loses(found, level.mean)} ({of_level(level)})" for level in shown]
        told = [text.removeprefix("loses ") if text.split()[0] == before.split()[0] == "loses" else text
                for before, text in zip(["-", *each], each, strict=False)]
        yield f"On average over just these, freezing {', '.join(told)}."


def _premises(found: Across) -> Iterator[str]:
    if found.unit == "gain":
        why = "The metrics differ" if found.metric is None else \
            f"Amounts of {found.metric} are not averaged over {found.kind}s"
        yield (f"{why}, so that a loss is counted as a share of what full fine-tuning gains over the baseline in "
               "each.")
    if found.averaged:
        yield (f"Counted once: {'; '.join(f'{task} ({_names(names)})' for task, names in found.averaged.items())}.")
    if found.left_out:
        each = [f"{', '.join(curves)} ({reason})" for reason, curves in found.left_out_because.items()]
        yield f"Left out: {'; '.join(each)}."
    if found.in_doubt:
        yield f"Full fine-tuning is in doubt as a reference in {', '.join(found.in_doubt)}."


def _names(names: list[str]) -> str:
    return f"the mean of {', '.join(names)}"


def _nearest(found: Across) -> str:
    level = _told(found)
    if level is None:
        return ""
    bound = "" if math.isnan(level.at_most) else f", at most {number(found, level.at_most)} (95% confidence)"
    return f": freezing {of_level(level)} {loses(found, level.mean)}{_of_what(found)}{bound}"


def _safe_in(found: Across, level: Level, subject: str) -> str:
    at = f"at a margin of {_amounts(found).margin(found.margin)}" if found.unit == "points" else \
        f"to keep {KEPT:.0%} of the gain"
    if not level.judged:
        return f"{subject} judged in no {found.kind}, which takes {VERDICT_SEEDS} seeds and none lost"
    rest = "" if level.judged == len(level.losses) else f" that could be judged, of {len(level.losses)}"
    return f"{subject} shown safe {at} in {level.safe} of {level.judged}{rest}"


def _told(found: Across) -> Level | None:
    """The level that the answer speaks about: the named one, else the shallowest."""
    if found.named is not None:
        return _level(found, found.named)
    return next((level for level in found.levels if level.share is not None), None)


def _level(found: Across, label: str) -> Level:
    return next(level for level in found.levels if level.label == label)


def _allowed(found: Across) -> str:
    return f"{_amounts(found).margin(found.margin)} of {found.metric}" if found.unit == "points" else \
        f"{1 - KEPT:.0%} of full fine-tuning's gain"


def of_tasks(found: Across, count: int) -> str:
    return f"{count} {found.kind}{'s' * (count != 1)}"


def of_level(level: Level) -> str:
    """'the embeddings only', 'up to 33% of the layers'."""
    return f"the {level.label}" if level.share == 0 else level.label


def number(found: Across, value: float) -> str:
    """'0.4 points', '3.1% of the gain'."""
    return _amounts(found).amount(value) if found.unit == "points" else f"{points(value)}% of the gain"


def loses(found: Across, loss: float) -> str:
    """'loses 0.4 points'; of a negative loss 'adds 0.4 points'."""
    verb, size = ("adds", -loss) if points(loss).startswith("−") else ("loses", loss)
    return f"{verb} {number(found, size)}"


def _amounts(found: Across) -> Amounts:
    """Tasks are told in points only where all have the one metric, and it has points."""
    return amounts(found.metric or "")


def _of_what(found: Across) -> str:
    return f" of {found.metric}" if found.unit == "points" else " over the baseline"


def _between(found: Across, low: float, high: float) -> str:
    """'lose between 0.1 points and 2.0 points', 'add up to 0.4 points or lose up to 2.0 points'."""
    if low < 0 < high:
        return f"add up to {number(found, -low)} or lose up to {number(found, high)}"
    verb, ends = ("lose", (low, high)) if low >= 0 else ("add", (-high, -low))
    return f"{verb} between {number(found, ends[0])} and {number(found, ends[1])}"
