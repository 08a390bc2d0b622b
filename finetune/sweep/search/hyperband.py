"""`early_terminate: hyperband` as W&B means it.

An iteration is one logged value of the metric (one epoch). At the iterations min_iter·eta^i (or max_iter/eta^i) a
trial must be among the best 1/eta of all trials that got there; the threshold is `sorted(values)[int(n / eta)]`.
Between two brackets the last one counts. `strict` compares the value at the bracket instead of the best so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune.sweep.spec.schema import Hyperband

MAX_BRACKETS = 100  # W&B's


def brackets(rule: Hyperband) -> list[int]:
    """The iterations at which trials are compared, ascending."""
    if rule.max_iter is not None and rule.s is not None:
        exact = [rule.max_iter / rule.eta ** (i + 1) for i in range(min(rule.s, MAX_BRACKETS))]
        return sorted(int(value) for value in exact if value >= 1)
    assert rule.min_iter is not None, "a hyperband rule has min_iter, or max_iter and s"
    return [int(rule.min_iter * rule.eta**i) for i in range(MAX_BRACKETS) if rule.eta**i < 1e9]


def should_stop(rule: Hyperband, own: Sequence[float], everyone: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """Whether the trial with the history `own` ends now.

    Histories are values of the metric by iteration; `everyone` holds those of all trials, this one too.
    """
    reached = [bracket for bracket in brackets(rule) if bracket <= len(own)]
    if not reached:
        return False
    bracket, sign = reached[-1], -1 if maximize else 1
    there = sorted(sign * history[bracket - 1] for history in everyone if len(history) >= bracket)
    threshold = there[int(len(there) / rule.eta)]
    value = sign * own[bracket - 1] if rule.strict else min(sign * v for v in own)
    return value > threshold
