"""`python -m analysis.simulate`: how often our intervals and verdicts are right, where the truth is known.

A row is answered correctly when a latent number is positive: the arm's level + the seed's luck + the row's ease (which
all arms share) + the row's ease for this arm + chance. Levels are set so that the expected accuracy over new seeds and
new rows is exact. A collapsed seed answers with the majority class. docs/statistics.md shows the full tables.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats as distributions

from analysis.statistics import bisection, metrics, stats
from analysis.statistics.stats import Parts

ROWS = 2000
ACCURACY = 0.82
MAJORITY = 0.6  # share of the larger class, and so a collapsed seed's accuracy
SHARED, OWN = math.sqrt(0.5), math.sqrt(0.17)  # of the latent variance of 1: the row's ease, for all arms and for one
CHANCE = math.sqrt(1 - SHARED**2 - OWN**2)
SEED_SHARED = 0.5  # of a seed's luck, the share that all arms have in common
DEPTHS = 6
MARGIN = 0.01
IDEAL_POWER = 0.8
F1_DRAWS = 200
BOOTSTRAP_DRAWS = 200


class World(NamedTuple):
    """What is simulated. seed_sd: standard deviation of the accuracy over seeds, as a fraction."""

    n_seeds: int
    seed_sd: float
    collapse: float = 0.0  # probability that a seed collapses
    rows: int = ROWS

    @property
    def tau(self) -> float:
        """The seed's standard deviation on the latent scale, where accuracy rises with the normal density."""
        return self.seed_sd / float(distributions.norm.pdf(distributions.norm.ppf(ACCURACY)))

    def level(self, accuracy: float) -> float:
        """The latent level of an arm whose seeds that do not collapse have this expected accuracy."""
        return float(special.ndtri(accuracy)) * math.sqrt(1 + self.tau**2)

    def expected_accuracy(self, accuracy: float) -> float:
        return (1 - self.collapse) * accuracy + self.collapse * MAJORITY


def draw(world: World, accuracies: Sequence[float], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(correct (arms, seeds, rows) of booleans, labels (rows,)): one simulated experiment."""
    arms, seeds, rows = len(accuracies), world.n_seeds, world.rows
    labels = (rng.random(rows) >= MAJORITY).astype(np.int64)
    common, own = rng.standard_normal(seeds), rng.standard_normal((arms, seeds))
    luck = world.tau * (math.sqrt(SEED_SHARED) * common + math.sqrt(1 - SEED_SHARED) * own)
    latent = rng.standard_normal((arms, seeds, rows), dtype=np.float32) * np.float32(CHANCE)
    latent += (SHARED * rng.standard_normal(rows) + OWN * rng.standard_normal((arms, 1, rows))).astype(np.float32)
    latent += (np.array([world.level(accuracy) for accuracy in accuracies])[:, None] + luck)[..., None]
    correct = latent > 0
    correct[rng.random((arms, seeds)) < world.collapse] = labels == 0
    return correct, labels


class Coverage(NamedTuple):
    """Shares of experiments in which 95% intervals hold the truth; width against Satterthwaite's interval."""

    split_t: float
    width_ratio: float
    others: dict[str, float]
    repeats: int


def accuracy_coverage(world: World, repeats: int, rng: np.random.Generator, *, of: str = "difference",
                      cross_checks: int = 0) -> Coverage:
    """Intervals of a difference of two equal arms, or of one arm's level. `cross_checks`: repeats of the bootstraps."""
    truth = 0.0 if of == "difference" else world.expected_accuracy(ACCURACY)
    hits, widths = [], []
    others: dict[str, list[bool]] = {"Satterthwaite": [], "t over seeds": [], "bootstrap of seeds": [],
                                     "crossed bootstrap": []}
    for repeat in range(repeats):
        correct, _ = draw(world, [ACCURACY, ACCURACY] if of == "difference" else [ACCURACY], rng)
        d = correct[0].astype(np.float64) - correct[1] if of == "difference" else correct[0].astype(np.float64)
        parts = stats.split_parts(d)
        half, reference = stats.half_width(parts, 0.975), satterthwaite(d)
        hits.append(abs(parts.estimate - truth) <= half)
        widths.append((half, reference))
        others["Satterthwaite"].append(abs(parts.estimate - truth) <= reference)
        others["t over seeds"].append(abs(parts.estimate - truth) <= stats.half_width(parts, 0.975, "this_test_set"))
        if repeat < cross_checks:
            low, high = np.quantile(rng.choice(d.mean(axis=1), (BOOTSTRAP_DRAWS, len(d))).mean(axis=1), [0.025, 0.975])
            others["bootstrap of seeds"].append(low <= truth <= high)
            low, high = stats.crossed_bootstrap(d, rng, BOOTSTRAP_DRAWS)
            others["crossed bootstrap"].append(low <= truth <= high)
    ours, reference = np.mean(widths, axis=0)
    return Coverage(float(np.mean(hits)), float(ours / reference),
                    {name: float(np.mean(found)) for name, found in others.items() if found}, repeats)


def satterthwaite(d: np.ndarray) -> float:
    """Half-width of the classical 95% interval of a crossed random-effects mean: t on Satterthwaite's degrees.

    The variance of the mean is estimated by a + b - e (Satterthwaite 1946); d (seeds, rows).
    """
    seeds, rows = d.shape
    a, b = d.mean(axis=1).var(ddof=1) / seeds, d.mean(axis=0).var(ddof=1) / rows
    e = stats.residual_part(d)
    total = max(a + b - e, 1e-300)
    degrees = total**2 / (a**2 / (seeds - 1) + b**2 / (rows - 1) + e**2 / ((seeds - 1) * (rows - 1)) + 1e-300)
    return float(distributions.t.ppf(0.975, max(degrees, 1.0)) * math.sqrt(total))


def f1_coverage(world: World, repeats: int, rng: np.random.Generator, *, of: str = "difference") -> Coverage:
    """The same for macro-F1, which is no mean over rows."""
    truth = 0.0 if of == "difference" else expected_f1(world)
    hits, widths = [], []
    for _ in range(repeats):
        correct, labels = draw(world, [ACCURACY] * (2 if of == "difference" else 1), rng)
        weights = metrics.row_weights(world.rows, rng, F1_DRAWS)
        values, draws = zip(*(_f1(arm, labels, weights) for arm in correct), strict=True)
        value = values[0] - values[1] if of == "difference" else values[0]
        parts = stats.replicate_parts(value, (draws[0] - draws[1] if of == "difference" else draws[0]).mean(axis=0))
        hits.append(abs(parts.estimate - truth) <= stats.half_width(parts, 0.975))
        widths.append(stats.half_width(parts, 0.975))
    return Coverage(float(np.mean(hits)), math.nan, {}, repeats)


def _f1(correct: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """macro-F1 of each seed (seeds,), and of each seed on bootstrapped rows (seeds, draws)."""
    with_all = np.vstack([np.ones((1, len(labels)), np.float32), weights])
    answers = np.where(correct, labels, 1 - labels)
    found = np.stack([metrics.weighted("f1_macro", "classification", np.eye(2)[answer], labels, with_all)
                      for answer in answers])
    return found[:, 0], found[:, 1:]


def expected_f1(world: World, nodes: int = 64) -> float:
    """macro-F1 on endless rows, in expectation over seeds (Gauss-Hermite over the seed's luck)."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    right = special.ndtr(world.level(ACCURACY) + world.tau * at)

    def macro(hit: np.ndarray) -> np.ndarray:
        shares = np.array([MAJORITY, 1 - MAJORITY])
        true, wrong = shares[:, None] * hit, shares[::-1, None] * (1 - hit)
        return (2 * true / (shares[:, None] + true + wrong)).mean(axis=0)

    learnt = float(weight @ macro(right) / weight.sum())
    return (1 - world.collapse) * learnt + world.collapse * (2 * MAJORITY / (1 + MAJORITY)) / 2


class Verdicts(NamedTuple):
    """`wrong`: experiments in which any depth is called safe although all lie at the margin.

    `power`: mean place of the named depth, as a share of all, where none loses anything, at the margin at which the
    ideal fixed sequence, which knows the variance, gets 80% of the way. `sequence`: the same for our bounds tested from
    shallow to deep at 5% each instead of in the order of a bisection.
    """

    wrong: float
    power: float
    sequence: float
    repeats: int


def verdicts(world: World, repeats: int, rng: np.random.Generator, depths: int = DEPTHS) -> Verdicts:
    margin = (1 - world.collapse) * MARGIN
    at_margin = _losses(world, repeats, [ACCURACY] + [ACCURACY - MARGIN] * depths, rng)
    wrong = float(np.mean(_named(at_margin.strict <= margin) > 0))
    nothing_lost = _losses(world, repeats, [ACCURACY] * (depths + 1), rng)
    ideal = distributions.norm.ppf(0.95) * float(nothing_lost.estimate.std())
    needed = ideal + float(np.quantile(np.maximum.accumulate(nothing_lost.estimate, axis=1), IDEAL_POWER))
    return Verdicts(wrong, float(_named(nothing_lost.strict <= needed).mean() / depths),
                    float(_in_sequence(nothing_lost.bound <= needed).mean() / depths), repeats)


class Losses(NamedTuple):
    """(repeats, depths) each: the estimated loss against the first arm, its one-sided 95% bound, and the bound at the
    level of a bisection's single test."""

    estimate: np.ndarray
    bound: np.ndarray
    strict: np.ndarray


def _losses(world: World, repeats: int, accuracies: Sequence[float], rng: np.random.Generator) -> Losses:
    found = np.empty((3, repeats, len(accuracies) - 1))
    confidence = 1 - bisection.level(len(accuracies) - 1)
    for repeat in range(repeats):
        correct, _ = draw(world, accuracies, rng)
        full = correct[0].astype(np.float64)
        for depth, arm in enumerate(correct[1:]):
            parts: Parts = stats.split_parts(full - arm)
            found[:, repeat, depth] = (parts.estimate, stats.upper_bound(parts),
                                       stats.upper_bound(parts, confidence=confidence))
    return Losses(*found)


def _named(safe: np.ndarray) -> np.ndarray:
    """The depth (1 … n; 0 none) that a bisection names; safe (repeats, depths) -> (repeats,)."""
    return np.array([1 + (-1 if (found := bisection.deepest(bisection.bisect(len(row), row.__getitem__))) is None
                          else found) for row in safe])


def _in_sequence(safe: np.ndarray) -> np.ndarray:
    """The same for a fixed sequence from shallow to deep."""
    return np.array([stats.fixed_sequence(row) for row in safe])


class Shape(NamedTuple):
    """How losses run with depth, as shares of the margin; `safe`: the places (from 1) that may be named."""

    name: str
    losses: list[float]

    @property
    def unsafe(self) -> list[int]:
        return [place for place, loss in enumerate(self.losses, start=1) if loss >= 1]


def shapes(layers: int) -> list[Shape]:
    half = layers // 2
    return [
        Shape("nothing is lost", [0.0] * layers), Shape("all at the margin", [1.0] * layers),
        Shape("a knee in the middle", [0.0] * half + [1.0 + 0.5 * i for i in range(layers - half)]),
        Shape("every second depth at the margin", [float(i % 2) for i in range(layers)]),
        Shape("only the deepest is safe", [1.0] * (layers - 1) + [0.0]),
    ]


def bisections(world: World, shape: Shape, repeats: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """(share of experiments that name an unsafe depth, mean named depth, that of the fixed sequence)."""
    found = _losses(world, repeats, [ACCURACY] + [ACCURACY - MARGIN * loss for loss in shape.losses], rng)
    named, sequence = _named(found.strict <= MARGIN), _in_sequence(found.bound <= MARGIN)
    return float(np.isin(named, shape.unsafe).mean()), float(named.mean()), float(sequence.mean())


SEED_SDS = (0.001, 0.008, 0.02, 0.04)
SEEDS = (3, 4, 5, 10)
COLLAPSES = (0.0, 0.05)


def _difference_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    return _coverage_table("difference", repeats, rng, cross_checks=repeats // 10)


def _level_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    return _coverage_table("level", repeats, rng, cross_checks=0)


def _coverage_table(of: str, repeats: int, rng: np.random.Generator, cross_checks: int) -> Iterator[str]:
    """Lines of Markdown, as they are computed."""
    yield f"\n### Coverage of 95% intervals, accuracy, {of} (%, ± {_error(repeats):.1f})\n"
    names = ["Satterthwaite", "t over seeds", *(["bootstrap of seeds", "crossed bootstrap"] if cross_checks else [])]
    yield from _header("split-t", "width / Satterthwaite's", *names)
    for world in _worlds(SEEDS):
        found = accuracy_coverage(world, repeats, rng, of=of, cross_checks=cross_checks)
        yield _row(world, _percent(found.split_t), f"{found.width_ratio:.2f}", *map(_percent, found.others.values()))


def _verdict_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    yield f"\n### Verdicts over {DEPTHS} depths (%, ± {_error(repeats):.1f})\n"
    yield from _header("wrong where all lie at the margin", "power", "of the ideal's", "from shallow to deep")
    for world in _worlds([n for n in SEEDS if n >= stats.VERDICT_SEEDS]):
        v = verdicts(world, repeats, rng)
        yield _row(world, *map(_percent, (v.wrong, v.power, v.power / IDEAL_POWER, v.sequence)))


def _bisection_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    yield f"\n### Bisection, 10 seeds, {ROWS:,} rows, seed sd 0.8 points, margin 1 point (± {_error(repeats):.1f})\n"
    yield "| layers | losses | wrong (%) | named depth, bisection | named depth, from shallow to deep |"
    yield "|---|---|---|---|---|"
    for layers in (6, 12, 24):
        for shape in shapes(layers):
            wrong, named, sequence = bisections(World(10, 0.008), shape, repeats, rng)
            yield f"| {layers} | {shape.name} | {_percent(wrong)} | {named:.1f} | {sequence:.1f} |"


def _f1_table(repeats: int, rng: np.random.Generator) -> Iterator[str]:
    yield f"\n### Coverage of 95% intervals, macro-F1 (%, ± {_error(repeats):.1f})\n"
    yield from _header("difference", "level")
    for world in _worlds(SEEDS):
        found = [f1_coverage(world, repeats, rng, of=of) for of in ("difference", "level")]
        yield _row(world, *(_percent(coverage.split_t) for coverage in found))


def _header(*names: str) -> list[str]:
    columns = ("seed sd (points)", "collapsed", "seeds", *names)
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _row(world: World, *cells: str) -> str:
    return f"| {100 * world.seed_sd:g} | {world.collapse:.0%} | {world.n_seeds} | {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _error(repeats: int) -> float:
    """Twice the standard error of a share near 95%, in points."""
    return 200 * math.sqrt(0.95 * 0.05 / repeats)


def _worlds(seeds: Sequence[int]) -> Iterator[World]:
    for collapse in COLLAPSES:
        for seed_sd in SEED_SDS:
            yield from (World(n, seed_sd, collapse) for n in seeds)


TABLES = {"difference": _difference_table, "level": _level_table, "verdict": _verdict_table,
          "bisection": _bisection_table, "f1": _f1_table}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.simulate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=2000, help="experiments per line of the tables (default: 2000)")
    parser.add_argument("--table", choices=list(TABLES), action="append", help="only this table (repeatable)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    for name in args.table or TABLES:
        for line in TABLES[name](args.repeats, np.random.default_rng(args.seed)):
            print(line, flush=True)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
