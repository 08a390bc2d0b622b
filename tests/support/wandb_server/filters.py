"""The part of Mongo's filters and of W&B's ordering that wandb.Api() sends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .state import Run

COMPARISONS = {
    "$eq": lambda found, wanted: found == wanted,
    "$ne": lambda found, wanted: found != wanted,
    "$gt": lambda found, wanted: found is not None and found > wanted,
    "$gte": lambda found, wanted: found is not None and found >= wanted,
    "$lt": lambda found, wanted: found is not None and found < wanted,
    "$lte": lambda found, wanted: found is not None and found <= wanted,
    "$in": lambda found, wanted: any(item in wanted for item in found) if isinstance(found, list) else found in wanted,
    "$nin": lambda found, wanted: found not in wanted,
    "$exists": lambda found, wanted: (found is not None) == wanted,
    "$regex": lambda found, wanted: found is not None and re.search(wanted, str(found)) is not None,
}


def lookup(run: Run, key: str) -> Any:
    """The value of a filter's or an ordering's key such as `config.seed.value` or `summary_metrics.loss`."""
    own = {"name": run.name, "sweep": run.sweep, "state": run.state, "created_at": run.created,
           "createdAt": run.created, "heartbeat_at": run.created, "display_name": run.attributes.get("displayName"),
           "displayName": run.attributes.get("displayName"), "group": run.attributes.get("groupName"),
           "jobType": run.attributes.get("jobType"), "job_type": run.attributes.get("jobType"),
           "tags": run.attributes.get("tags") or []}
    if key in own:
        return own[key]
    section, _, rest = key.partition(".")
    if section == "config":
        return dig(run.params(), rest.removesuffix(".value"))
    if section in {"summary_metrics", "summaryMetrics", "summary"}:
        return dig(run.summary, rest)
    return None


def dig(values: Any, key: str) -> Any:
    if isinstance(values, Mapping) and key in values:
        return values[key]
    head, _, rest = key.partition(".")
    return dig(values[head], rest) if rest and isinstance(values, Mapping) and head in values else None


def matches(run: Run, filters: Mapping[str, Any]) -> bool:
    return all(_matches_one(run, key, wanted) for key, wanted in filters.items())


def _matches_one(run: Run, key: str, wanted: Any) -> bool:
    if key == "$and":
        return all(matches(run, part) for part in wanted)
    if key == "$or":
        return any(matches(run, part) for part in wanted)
    if key == "$not":
        return not matches(run, wanted)
    found = lookup(run, key)
    if isinstance(wanted, Mapping):
        return all(COMPARISONS[name](found, operand) for name, operand in wanted.items())
    return wanted in found if isinstance(found, list) else found == wanted


def ordered(runs: list[Run], order: str | None) -> list[Run]:
    """Runs by one key, `-` for descending. What cannot be compared with a number comes last."""
    order = order or "+created_at"
    descending, key = order.startswith("-"), order.lstrip("+-")
    found = [(lookup(run, key), run) for run in runs]
    kind = str if any(isinstance(value, str) for value, _ in found) else int | float
    sortable = [pair for pair in found if isinstance(pair[0], kind)]
    rest = [run for value, run in found if not isinstance(value, kind)]
    return [run for _, run in sorted(sortable, key=lambda pair: pair[0], reverse=descending)] + rest
