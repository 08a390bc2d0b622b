"""The modelled bound: layer forwards and backwards that no implementation can avoid, in floating-point operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    inner: int


def layer_operations(lengths: np.ndarray, shape: Shape) -> float:
    """One layer's forward over rows of these lengths, without padding: products and attention."""
    tokens, squares = float(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
    return tokens * (8 * shape.width**2 + 4 * shape.width * shape.inner) + 4 * squares * shape.width


def trial_operations(depth: int, epochs: int, lengths: Mapping[str, np.ndarray], shape: Shape) -> float:
    """What a trial at a depth must compute when its prefix is known: suffix forward, and backward (twice a forward)."""
    suffix = shape.layers - max(depth, 0)
    train = 3 * epochs * layer_operations(lengths["train"], shape)
    evaluate = epochs * layer_operations(lengths["validation"], shape) + layer_operations(lengths["test"], shape)
    return suffix * (train + evaluate)


def sweep_operations(depths: Iterable[int], epochs: int, lengths: Mapping[str, np.ndarray], shape: Shape) -> float:
    """All trials, and one pass over all texts up to the deepest frozen layer."""
    depths = list(depths)
    fill = max(max(depths), 0) * sum(layer_operations(rows, shape) for rows in lengths.values())
    return fill + sum(trial_operations(depth, epochs, lengths, shape) for depth in depths)
