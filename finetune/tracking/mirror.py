"""A trial as W&B shows it: record -> config, history and summary of a run, and back.

Config holds the knobs, nested like the YAML, and under `trial` the facts that are no results. History holds one row
per epoch, with the names of the sweep's metrics (validation/accuracy). The summary holds the rest as plain numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from finetune.config import KNOBS, NEVER, TrialConfig
from finetune.results import TrialRecord

TRIAL = "trial"  # the section of a run's config that is not a knob
# Sent back as arguments by an agent that resumes a run, besides the knobs (wandb#4237, wandb#9143).
NOT_KNOBS = ("_wandb", TRIAL)
FACTS = ("trial_id", "setting_id", "sweep", "protocol", "task", "metric", "num_layers", "effective", "freeze_plan",
         "data", "environment")
_SECTIONS = ("metrics", "last_epoch_metrics", "baseline", "cost", "prefix", "parameters", "error")
_PREFIXES = {"last_epoch_metrics": "last_epoch"}
_SPLITS = ("validation", "test")
_NAMED = ("freeze_depth", "strategy", "seed", "model_revision", "dataset_revision")
_NAME_LIMIT, _TAG_LIMIT = 128, 64  # W&B's own


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"validation": {"accuracy": 0.9}} -> {"validation/accuracy": 0.9}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, key = name.split("/")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[key] = value
    return nested


def facts_of(source: Mapping[str, Any]) -> dict[str, Any]:
    return {name: source[name] for name in FACTS if source.get(name) is not None}


def config_of(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config: `config` is that of a record, `facts` a record's or ResolvedTrial.describe()."""
    return {**config, TRIAL: facts_of(facts)}


def row_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch as logged: {"epoch": 1, "train/loss": …, "validation/accuracy": …}."""
    return flatten(entry)


def summary_of(record: TrialRecord) -> dict[str, Any]:
    """What a run's summary says at the end. Validation figures are the best epoch's, as a search sees them."""
    content = record.model_dump(mode="json")
    flat: dict[str, Any] = {"state": record.state, "best_epoch": record.best_epoch,
                            "deepest_trainable_layer": record.deepest_trainable_layer}
    for section in _SECTIONS:
        name = _PREFIXES.get(section, section)
        flat |= flatten(content[section] or {}, "" if section == "metrics" else f"{name}/")
    if record.parameters.get("total"):
        flat["parameters/trainable_share"] = record.parameters["trainable"] / record.parameters["total"]
    return {name: value for name, value in flat.items() if isinstance(value, int | float | str)}


def record_of(config: Mapping[str, Any], summary: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> TrialRecord:
    """The record that a run's config, summary and history rows tell of, without its predictions.

    Raises ValueError when the run is not a finished trial of ours; the message says what is missing.
    """
    facts = config.get(TRIAL)
    if not isinstance(facts, Mapping) or "trial_id" not in facts:
        raise ValueError("it has no `trial` section in its config")
    if "state" not in summary:
        raise ValueError("its summary is not complete")
    told = nest({name: value for name, value in summary.items() if not name.startswith("_")})
    told.get("parameters", {}).pop("trainable_share", None)
    parts = {section: told.get(_PREFIXES.get(section, section)) for section in _SECTIONS}
    parts["metrics"] = {split: told[split] for split in _SPLITS if split in told}
    knobs = {name: config[name] for name in TrialConfig.model_fields if name in config}
    return TrialRecord(
        state=told["state"], config=knobs, history=_history(rows), best_epoch=told.get("best_epoch"),
        deepest_trainable_layer=told.get("deepest_trainable_layer"), **facts_of(facts),
        **{section: part for section, part in parts.items() if part is not None},
    )


def _history(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    told = {row["epoch"]: nest({name: value for name, value in row.items() if not name.startswith("_")})
            for row in rows if "epoch" in row}
    return [told[epoch] for epoch in sorted(told)]


def run_name(config: TrialConfig, strategy: str) -> str:
    """What tells a run from its neighbours: the strategy, every knob that is not at its default, the seed."""
    changed = [f"{name}={_short(config.get(name))}" for name, knob in KNOBS.items()
               if knob.in_trial_id != NEVER and name not in _NAMED and config.get(name) != knob.default]
    seed = f" seed={config.seed}"
    return _clean(" ".join([strategy, *changed]), _NAME_LIMIT - len(seed)) + seed


def tags(config: TrialConfig, strategy: str) -> list[str]:
    """Model, data and strategy, to filter by."""
    data = ":".join(filter(None, (_last_part(config.dataset_name), config.dataset_config_name)))
    found = (_last_part(config.model_name_or_path), data, strategy)
    return list(dict.fromkeys(_clean(tag, _TAG_LIMIT) for tag in found))


def _short(value: Any) -> str:
    return _last_part(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _last_part(path: str) -> str:
    return PurePath(path).name or path


def _clean(text: str, limit: int) -> str:
    """One printable line of at most `limit` characters."""
    return re.sub(r"[^\S ]|[\x00-\x1f\x7f-\x9f]", " ", text)[:limit].strip()
