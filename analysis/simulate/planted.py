"""Planted predictions whose metrics are known, for metrics that are no means over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from analysis.simulate.worlds import World, collapsed, draw, luck, noise, right
from analysis.statistics import metrics

ENTITIES = 3  # a sentence holds 0 to 3, each there with probability ½, and room for one that is said and not there
ROWS_PER_SENTENCE = 4  # a sentence answers several questions: there are fewer of them
LABEL_STEP = 0.5  # regression labels are rounded to such steps of their standard deviation, so that ranks are tied
NODES = 40  # of the quadrature over a seed's luck


class Planted(NamedTuple):
    """One kind of task. `plant`: (world, qualities of the arms, rng) -> (logits (arms, seeds, rows, …), labels), as
    `influence.row_values` reads them. `known`: (metric, world, p) -> the metric on endless rows where a seed's chance
    to be right (or its correlation) is p (nodes,)."""

    task: str
    metrics: tuple[str, ...]
    plant: Callable[[World, Sequence[float], np.random.Generator], tuple[np.ndarray, np.ndarray]]
    known: Callable[[str, World, np.ndarray], np.ndarray]
    at_luck: Callable[[World, float, np.ndarray], np.ndarray]
    collapsed: Callable[[str, World], float]

    def expected(self, metric: str, world: World, quality: float) -> float:
        """The metric of an arm on endless rows, in expectation over new seeds (Gauss-Hermite over their luck)."""
        at, weight = np.polynomial.hermite_e.hermegauss(NODES)
        learnt = self.known(metric, world, self.at_luck(world, quality, world.tau * at))
        return float((1 - world.collapse) * (weight @ learnt) / weight.sum()
                     + world.collapse * self.collapsed(metric, world))


def _chance_to_be_right(world: World, accuracy: float, of_seed: np.ndarray) -> np.ndarray:
    return special.ndtr(world.level(accuracy) + of_seed)


# -- two classes -------------------------------------------------------------------------------------------------------

def _plant_classes(world: World, accuracies: Sequence[float], rng: np.random.Generator
                   ) -> tuple[np.ndarray, np.ndarray]:
    correct, labels = draw(world, accuracies, rng)
    said = np.where(correct, labels, 1 - labels)
    return np.stack([1 - said, said], axis=-1), labels


def _known_of_classes(metric: str, world: World, p: np.ndarray) -> np.ndarray:
    true = np.array([world.majority, 1 - world.majority])[:, None]
    hits = true * p
    said = hits + true[::-1] * (1 - p)
    if metric == "matthews":
        return (p - (true * said).sum(axis=0)) / np.sqrt((1 - (true**2).sum()) * (1 - (said**2).sum(axis=0)))
    f1 = 2 * hits / (true + said)
    return f1[1] if metric == "f1" else f1.mean(axis=0)


def _collapsed_classes(metric: str, world: World) -> float:
    return world.majority / (1 + world.majority) if metric == "f1_macro" else 0.0


# -- a number ----------------------------------------------------------------------------------------------------------

def _plant_numbers(world: World, correlations: Sequence[float], rng: np.random.Generator
                   ) -> tuple[np.ndarray, np.ndarray]:
    y, arms = rng.standard_normal(world.rows), len(correlations)
    of_seed = luck(world, arms, rng)
    r = np.stack([_correlation(world, one, each) for one, each in zip(correlations, of_seed, strict=True)])
    x = y + np.sqrt(1 / r**2 - 1)[..., None] * noise(world, arms, rng)
    x[collapsed(world, arms, rng)] = 0.0
    return x[..., None], _rounded(y)


def _rounded(y: np.ndarray) -> np.ndarray:
    return np.round(y / LABEL_STEP) * LABEL_STEP


def _correlation(world: World, middle: float, of_seed: np.ndarray) -> np.ndarray:
    """A seed's Pearson correlation with the labels before they are rounded: Fisher's z moves with its luck, so that
    its standard deviation is about the world's."""
    to_z = world.seed_sd / world.tau / (1 - middle**2)
    return np.tanh(np.arctanh(middle) + to_z * of_seed)


def _known_of_numbers(metric: str, world: World, p: np.ndarray) -> np.ndarray:
    """Of a normal pair whose y is rounded: x given y is normal, the rest one integral over y."""
    y = special.ndtri((np.arange(20000) + 0.5) / 20000)
    if metric == "pearson":
        return p * np.corrcoef(y, _rounded(y))[0, 1]
    middle = (_rounded(y)[:, None] + LABEL_STEP / 2 * np.array([-1, 1]))
    rank = special.ndtr(middle).mean(axis=1)  # of the rounded label, tied values in their middle
    rank_of_x = np.stack([special.ndtr(r * y / np.sqrt(2 - r**2)) for r in p])  # expected, given y
    return ((rank_of_x * rank).mean(axis=1) - 0.25) / np.sqrt(rank.var() / 12)


# -- sentences with entities -------------------------------------------------------------------------------------------

def _plant_sentences(world: World, recalls: Sequence[float], rng: np.random.Generator
                     ) -> tuple[np.ndarray, np.ndarray]:
    world = world._replace(rows=world.rows // ROWS_PER_SENTENCE)
    there = rng.random((world.rows, ENTITIES)) < 0.5
    correct = right(world, recalls, rng, ENTITIES + 1)
    hits, extra = correct[..., :-1] & there, ~correct[..., -1]
    silent = collapsed(world, len(recalls), rng)
    hits[silent], extra[silent] = False, False
    found, true = hits.sum(axis=-1), there.sum(axis=-1)
    entities = np.stack(np.broadcast_arrays(found, found + extra, true), axis=-1).astype(np.float64)
    words = np.ones_like(entities)  # the last kind holds the words, which the F1 of entities does not read
    return np.stack([entities, words], axis=-2), true


def _known_of_sentences(metric: str, world: World, p: np.ndarray) -> np.ndarray:
    true = ENTITIES / 2
    return 2 * true * p / (true * p + (1 - p) + true)


PLANTED = (
    Planted("classification", ("f1", "f1_macro", "matthews"), _plant_classes, _known_of_classes, _chance_to_be_right,
            _collapsed_classes),
    Planted("regression", ("pearson", "spearman"), _plant_numbers, _known_of_numbers, _correlation,
            lambda metric, world: 0.0),
    Planted(metrics.TAGGED, ("f1",), _plant_sentences, _known_of_sentences, _chance_to_be_right,
            lambda metric, world: 0.0),
)
