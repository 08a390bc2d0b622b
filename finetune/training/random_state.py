"""The state of every global random generator: taken, put back, and a trial's own while it runs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.randomness import stream_seed


def random_states() -> dict[str, Tensor]:
    """Every global generator that a model's code may draw from: torch, its GPU, Python's, NumPy's legacy one."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": torch.tensor(words, dtype=torch.int64),
              "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
              "normals": torch.tensor([math.nan if gauss is None else gauss, cached], dtype=torch.float64)}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    gauss, cached = states["normals"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def same_randomness_afterwards() -> Iterator[None]:
    """Put every global generator back as it was."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Dropout knows only the global generators: seeded here, and put back as they were afterwards."""
    with same_randomness_afterwards(), torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        own = stream_seed(seed, "dropout")
        torch.manual_seed(own)
        random.seed(own)
        np.random.seed(own % 2**32)
        yield


def generator_state(device: torch.device) -> Tensor:
    """Of torch's global generator on a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


@contextmanager
def same_generator_afterwards(device: torch.device) -> Iterator[None]:
    before = generator_state(device)
    try:
        yield
    finally:
        set_generator_state(device, before)


@dataclass
class Drawn:
    on_host: bool = False


@contextmanager
def draws_undone(device: torch.device) -> Iterator[Drawn]:
    """Put every generator back, and say whether one of the host's was used while the batch lay on a GPU."""
    before, drawn = random_states(), Drawn()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield drawn
        after = random_states()
    on_host = ("torch", "python", "numpy") if device.type == "cuda" else ("python", "numpy")
    drawn.on_host = any(not torch.equal(before[name], after[name]) for name in on_host)
    set_random_states(before)
