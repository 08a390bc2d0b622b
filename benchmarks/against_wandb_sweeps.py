"""Our distributions and hyperband against W&B's own `sweeps` package, side by side.

    python -m venv /tmp/sweeps && /tmp/sweeps/bin/pip install sweeps==0.3.0
    PYTHONPATH=. /tmp/sweeps/bin/python benchmarks/against_wandb_sweeps.py

In an environment of its own: `sweeps` needs numpy < 2, which this project's libraries do not work with.
"""

from __future__ import annotations

import random
import warnings

import numpy as np
from sweeps.params import HyperParameter

from finetune.sweep.search.hyperband import should_stop
from finetune.sweep.spec.distributions import quantile
from finetune.sweep.spec.schema import Hyperband
from sweeps import RunState, SweepRun, stop_runs

DISTRIBUTIONS = [
    ("constant", {"value": 3}), ("categorical", {"values": ["a", "b", "c"]}),
    ("categorical_w_probabilities", {"values": ["a", "b"], "probabilities": [0.3, 0.7]}),
    ("uniform", {"min": -1.0, "max": 3.0}), ("int_uniform", {"min": -1, "max": 3}),
    ("q_uniform", {"min": 0, "max": 10, "q": 2}), ("q_uniform", {"min": 0.0, "max": 1.0, "q": 0.25}),
    ("log_uniform", {"min": -11.0, "max": -4.0}), ("log_uniform_values", {"min": 1e-5, "max": 1e-2}),
    ("q_log_uniform", {"min": 0.0, "max": 5.0, "q": 1}), ("q_log_uniform_values", {"min": 1.0, "max": 500.0, "q": 5}),
    ("inv_log_uniform", {"min": 2.0, "max": 6.0}), ("inv_log_uniform_values", {"min": 1e-5, "max": 1e-2}),
    ("normal", {"mu": 2.0, "sigma": 0.5}), ("q_normal", {"mu": 3.0, "sigma": 4.0, "q": 0.5}),
    ("log_normal", {"mu": 1.0, "sigma": 0.3}), ("q_log_normal", {"mu": 0.0, "sigma": 2.0, "q": 1}),
    ("beta", {"a": 2, "b": 5}), ("q_beta", {"a": 2, "b": 2, "q": 0.1}),
]
SITUATIONS = 400


def largest_difference(name: str, arguments: dict) -> float:
    """Of 1000 quantiles (in ascending order), relative to the largest; for choices the share that differs."""
    u = np.linspace(0.0005, 0.9995, 1000)
    theirs = [HyperParameter("x", {"distribution": name, **arguments}).ppf(value) for value in u]
    ours = [quantile(name, arguments)(value) for value in u]
    if isinstance(ours[0], str):
        return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(u)
    ours, theirs = np.sort(np.array(ours, float)), np.sort(np.array(theirs, float))
    return float(np.max(np.abs(ours - theirs)) / max(1e-300, np.max(np.abs(theirs))))


def same_stops(rng: random.Random) -> bool:
    """Both stop the same trials in a random situation."""
    eta, strict, goal = rng.choice([2, 3]), rng.random() < 0.5, rng.choice(["minimize", "maximize"])
    rule = {"eta": eta, "strict": strict, **rng.choice([{"min_iter": rng.randint(1, 3)}, {"max_iter": 27, "s": 2}])}
    histories = [[rng.random() for _ in range(rng.randint(1, 12))] for _ in range(rng.randint(2, 8))]
    config = {"method": "grid", "metric": {"name": "m", "goal": goal}, "parameters": {"a": {"values": [1]}},
              "early_terminate": {"type": "hyperband", **rule}}
    runs = [SweepRun(name=str(index), state=RunState.running, config={}, history=[{"m": value} for value in history],
                     summary_metrics={"m": history[-1]}) for index, history in enumerate(histories)]
    theirs = {run.name for run in stop_runs(config, runs)}
    ours = {str(index) for index, history in enumerate(histories)
            if should_stop(Hyperband(**rule), history, histories, maximize=goal == "maximize")}
    return ours == theirs


def main() -> None:
    warnings.simplefilter("ignore")
    for name, arguments in DISTRIBUTIONS:
        print(f"{name:30} {arguments!s:45} {largest_difference(name, arguments):.1e}")
    rng = random.Random(0)
    print(f"hyperband: {sum(same_stops(rng) for _ in range(SITUATIONS))} of {SITUATIONS} situations agree")


if __name__ == "__main__":
    main()
