"""How much loss a design can detect, and what it would take to detect less."""

from __future__ import annotations

import math

from scipy import stats

from analysis.statistics.stats import INTERVAL_SEEDS, VERDICT_SEEDS, Parts, Population

# Of the variance p(1-p) of a row's correctness, the share that the difference of two depths keeps when it is averaged
# over ever more seeds: two depths of one backbone mostly fail on the same rows. With accuracy .82 and 2,000 rows it
# makes 1.1 points the least that unlimited seeds can detect.
ROW_SHARE = 0.265
POWER = 0.8
MOST_SEEDS = 1000


def detectable_margin(
    n_seeds: int, n_examples: int, accuracy: float = 0.82, seed_sd: float = 0.008, *, confidence: float = 0.95,
    power: float = POWER,
) -> float:
    """The margin that this many seeds and test rows show to be kept, with 80% power, when nothing is lost.

    accuracy is the expected level, seed_sd the standard deviation of one depth's accuracy over seeds; both, and the
    result, as fractions. inf with fewer than three seeds, which carry no bound.
    """
    if n_seeds < INTERVAL_SEEDS or n_examples < 2:
        return math.inf
    spread = accuracy * (1 - accuracy)
    parts = Parts(0.0, 2 * seed_sd**2 / n_seeds, ROW_SHARE * spread / n_examples, n_seeds, n_seeds - 1)
    return realised_margin(parts, confidence=confidence, power=power)


def realised_margin(
    parts: Parts, population: Population = "new_text", *, confidence: float = 0.95, power: float = POWER
) -> float:
    """The margin that a difference with these parts would be shown to keep with this power, if nothing were lost."""
    if parts.n_seeds < INTERVAL_SEEDS:
        return math.inf
    rows = parts.rows if population == "new_text" else 0.0
    t, z = stats.t.ppf(confidence, parts.degrees), stats.norm.ppf(confidence)
    return float(math.sqrt(t**2 * parts.seeds + z**2 * rows) + stats.norm.ppf(power) * math.sqrt(parts.seeds + rows))


def planned(n_seeds: int, n_examples: int, **expected: float) -> str:
    """`detectable_margin` as a sentence for `finetune sweep --dry_run`."""
    if n_seeds < INTERVAL_SEEDS:
        return f"{n_seeds} seed{'s' * (n_seeds != 1)}: no interval over seeds, so no margin can be detected"
    margin = detectable_margin(n_seeds, n_examples, **expected)
    floor = detectable_margin(10**6, n_examples, **expected)
    few = f"; the report gives no verdict with fewer than {VERDICT_SEEDS} seeds" if n_seeds < VERDICT_SEEDS else ""
    return (f"{n_seeds} seeds and {n_examples:,} test rows detect a margin of about {100 * margin:.1f} points with "
            f"{POWER:.0%} power (unlimited seeds: {100 * floor:.1f}){few}")


def what_would_show(parts: Parts, n_examples: int, margin: float, population: Population = "new_text",
                    confidence: float = 0.95) -> str:
    """What it would take to show that the loss is below `margin`, as half a sentence; `parts` of the loss.

    Planned for 80% power if the loss is what was estimated.
    """
    room = margin - parts.estimate
    if parts.n_seeds < 2:
        return "more seeds would show more"
    if room <= 0:
        return "the estimate itself is not below the margin, so more data would hardly show it"
    seeds = _seeds_needed(parts, room, population, confidence)
    if seeds is not None:
        return f"to show it would take about {seeds} seeds"
    rows = math.ceil(n_examples * (_floor(parts, confidence) / room) ** 2)
    return f"no number of seeds would show it; about {_round_up(rows):,} test examples would"


def _seeds_needed(parts: Parts, room: float, population: Population, confidence: float) -> int | None:
    """The fewest seeds whose bound stays below `room` with 80% power, or None when no number does."""
    one_seed = parts.seeds * parts.n_seeds

    def enough(seeds: int) -> bool:
        planned = Parts(0.0, one_seed / seeds, parts.rows, seeds, seeds - 1)
        return realised_margin(planned, population, confidence=confidence) <= room

    if not enough(MOST_SEEDS):
        return None
    return next(seeds for seeds in range(max(parts.n_seeds, VERDICT_SEEDS), MOST_SEEDS + 1) if enough(seeds))


def _floor(parts: Parts, confidence: float) -> float:
    """The margin that unlimited seeds detect."""
    return float((stats.norm.ppf(confidence) + stats.norm.ppf(POWER)) * math.sqrt(parts.rows))


def _round_up(count: int) -> int:
    """To two significant digits: an order of magnitude, not a promise."""
    step = 10 ** max(len(str(count)) - 2, 0)
    return math.ceil(count / step) * step
