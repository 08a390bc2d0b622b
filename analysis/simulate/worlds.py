"""Experiments whose truth is known.

A row is answered correctly when a latent number is positive: the arm's level + the seed's luck + the row's ease (which
all arms share) + the row's ease for this arm + chance. Levels are set so that the expected accuracy over new seeds and
new rows is exact. A collapsed seed answers with the majority class. docs/statistics.md shows the full tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy import stats as distributions

ROWS = 2000
ACCURACY = 0.82
MAJORITY = 0.6  # share of the larger class, and so a collapsed seed's accuracy
SHARED, OWN = math.sqrt(0.5), math.sqrt(0.17)  # of the latent variance of 1: the row's ease, for all arms and for one
CHANCE = math.sqrt(1 - SHARED**2 - OWN**2)
SEED_SHARED = 0.5  # of a seed's luck, the share that all arms have in common
SEED_SDS = (0.001, 0.008, 0.02, 0.04)
SEEDS = (3, 4, 5, 10)
COLLAPSES = (0.0, 0.05)


class World(NamedTuple):
    """What is simulated. seed_sd: standard deviation of the accuracy over seeds, as a fraction."""

    n_seeds: int
    seed_sd: float
    collapse: float = 0.0  # probability that a seed collapses
    rows: int = ROWS
    majority: float = MAJORITY

    @property
    def tau(self) -> float:
        """The seed's standard deviation on the latent scale, where accuracy rises with the normal density."""
        return self.seed_sd / float(distributions.norm.pdf(distributions.norm.ppf(ACCURACY)))

    def level(self, accuracy: float) -> float:
        """The latent level of an arm whose seeds that do not collapse have this expected accuracy."""
        return float(special.ndtri(accuracy)) * math.sqrt(1 + self.tau**2)

    def expected_accuracy(self, accuracy: float) -> float:
        return (1 - self.collapse) * accuracy + self.collapse * self.majority


def draw(world: World, accuracies: Sequence[float], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(correct (arms, seeds, rows) of booleans, labels (rows,)): one simulated experiment."""
    arms = len(accuracies)
    labels = (rng.random(world.rows) >= world.majority).astype(np.int64)
    correct = right(world, accuracies, rng)
    correct[collapsed(world, arms, rng)] = labels == 0
    return correct, labels


def right(world: World, accuracies: Sequence[float], rng: np.random.Generator, slots: int | None = None) -> np.ndarray:
    """(arms, seeds, rows) of booleans, as if no seed collapsed; with slots, so many questions per row that share its
    ease: (arms, seeds, rows, slots)."""
    of_seed = luck(world, len(accuracies), rng)
    latent = noise(world, len(accuracies), rng, slots)
    of_seed += np.array([world.level(accuracy) for accuracy in accuracies])[:, None]
    latent += of_seed.reshape(*of_seed.shape, *[1] * (latent.ndim - 2))
    return latent > 0


def luck(world: World, arms: int, rng: np.random.Generator) -> np.ndarray:
    """(arms, seeds): what a seed adds on the latent scale, in part the same in all arms."""
    common, own = rng.standard_normal(world.n_seeds), rng.standard_normal((arms, world.n_seeds))
    return world.tau * (math.sqrt(SEED_SHARED) * common + math.sqrt(1 - SEED_SHARED) * own)


def noise(world: World, arms: int, rng: np.random.Generator, slots: int | None = None) -> np.ndarray:
    """(arms, seeds, rows[, slots]) of variance 1: a row's ease for all arms, for one arm, and chance."""
    found = rng.standard_normal((arms, world.n_seeds, world.rows, *[slots] * (slots is not None)), dtype=np.float32)
    found *= np.float32(CHANCE)
    ease = SHARED * rng.standard_normal(world.rows) + OWN * rng.standard_normal((arms, 1, world.rows))
    found += (ease if slots is None else ease[..., None]).astype(np.float32)
    return found


def collapsed(world: World, arms: int, rng: np.random.Generator) -> np.ndarray:
    """(arms, seeds) of booleans."""
    return rng.random((arms, world.n_seeds)) < world.collapse


def header(*names: str) -> list[str]:
    columns = ("seed sd (points)", "collapsed", "seeds", *names)
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def row(world: World, *cells: str) -> str:
    return f"| {100 * world.seed_sd:g} | {world.collapse:.0%} | {world.n_seeds} | {' | '.join(cells)} |"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def error(repeats: int) -> float:
    """Twice the standard error of a share near 95%, in points."""
    return 200 * math.sqrt(0.95 * 0.05 / repeats)


def worlds(seeds: Sequence[int]) -> Iterator[World]:
    for collapse in COLLAPSES:
        for seed_sd in SEED_SDS:
            yield from (World(n, seed_sd, collapse) for n in seeds)
