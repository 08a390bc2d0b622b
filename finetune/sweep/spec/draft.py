"""A sweep file for a data set, ready to run: depths spread over the model, rates, seeds, a fitting max_length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, Problem, shown

if TYPE_CHECKING:
    from finetune.data.task_data import TaskData

DEFAULT_SEEDS = [1, 2, 3, 4, 5]
LEARNING_RATES = [2e-5, 1e-4]
MOST_DEPTHS = 7  # points that the default spreads over a model


def draft_sweep(answers: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep as W&B's YAML has it. Loads the data set, so that what is written runs.

    Raises ConfigError for a value that no trial could take, DataError or EnvironmentProblem for the data set.
    """
    from finetune.config import TrialConfig
    from finetune.data.load import load_task_data
    from finetune.training.evaluation import default_metric, higher_is_better

    fixed = {name: answers[name] for name in ("dataset_name", "dataset_config_name", "text_column", "label_column",
                                              "model_name_or_path") if name in answers}
    base = TrialConfig.from_mapping(fixed)
    data = load_task_data(base)
    metric = default_metric(data.task, data.num_outputs, data.glue_metric, data.scheme)
    grid = {
        "freeze_depth": _values(answers, "freeze_depth") or default_depths(base.model_name_or_path),
        "seed": _values(answers, "seed") or DEFAULT_SEEDS,
        "learning_rate": _values(answers, "learning_rate") or LEARNING_RATES,
        "head_learning_rate": _values(answers, "head_learning_rate") or [base.head_learning_rate],
    }
    _check_depths(grid["freeze_depth"], base.model_name_or_path)
    knobs = {name: getattr(base, name) for name in {**fixed, "dataset_name": 0, "model_name_or_path": 0}}
    return {
        "name": file_name(answers["name"]) if "name" in answers else default_name(base.model_dump()),
        "program": "finetune.train",
        "command": ["accelerate", "launch", "-m", "finetune.train", "${args}"],
        "method": "grid",
        "metric": {"name": f"validation/{metric}", "goal": "maximize" if higher_is_better(metric) else "minimize"},
        "parameters": {**{name: {"value": value} for name, value in sorted(knobs.items())},
                       **{name: {"values": values} if len(values) > 1 else {"value": values[0]}
                          for name, values in grid.items()},
                       "max_length": {"value": _max_length(data)},
                       "save_model": {"value": False}},  # a delta per trial would fill the disk
    }


def _values(answers: Mapping[str, Any], name: str) -> list[Any] | None:
    """The list given for a knob, each value decoded and checked as a trial's. Raises ConfigError."""
    from finetune.config import TrialConfig

    if name not in answers:
        return None
    text = str(answers[name]).strip()
    items = [item for item in (part.strip() for part in text.strip("[]").split(",")) if item]
    if not items:
        raise ConfigError([Problem(name, text, "allowed: a list, e.g. [1, 2, 3]")])
    values = [getattr(TrialConfig.from_mapping({name: item}), name) for item in items]
    return list(dict.fromkeys(values))


def default_depths(model: str) -> list[int]:
    """Depths spread over the model, both ends included. Raises ConfigError when nobody knows how many layers it has."""
    layers = layer_count(model)
    if layers is None:
        raise ConfigError(f"how many layers {shown(model)} has is not known here; give --freeze_depth, e.g. [0, 2, 4]")
    step = -(-layers // (MOST_DEPTHS - 1))
    return [*range(0, layers, step), layers]


def layer_count(model: str) -> int | None:
    """Layers as the model's config.json says; None when it is not on this machine and cannot be fetched."""
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"):
        count = _model_config(model).get(name)
        if isinstance(count, int):
            return count
    return None


def _model_config(model: str) -> dict[str, Any]:
    from finetune.config import TrialConfig
    from finetune.errors import FinetuneError
    from finetune.models.sources import find_model

    folder = Path(model).expanduser()
    try:
        file = folder / "config.json" if folder.is_dir() else _hub_config(model)
        if file is None:
            file = find_model(TrialConfig(model_name_or_path=model)).folder / "config.json"
        return json.loads(file.read_bytes())
    except (OSError, ValueError, FinetuneError):
        return {}


def _hub_config(model: str) -> Path | None:
    """config.json alone, from the hub's cache or the hub: weights are not needed to count layers."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from finetune.data.sources.hub import hub_is_reachable

    try:
        cached = try_to_load_from_cache(model, "config.json")
        if isinstance(cached, str):
            return Path(cached)
        return Path(hf_hub_download(model, "config.json")) if hub_is_reachable() else None
    except (HFValidationError, HfHubHTTPError, OSError):
        return None


def _check_depths(depths: list[int], model: str) -> None:
    layers = layer_count(model)
    wrong = [depth for depth in depths if layers is not None and depth > layers]
    if wrong:
        raise ConfigError([Problem("freeze_depth", depth, f"{model} has {layers} layers; allowed: -1 to {layers}")
                           for depth in wrong])


def default_name(answers: Mapping[str, Any]) -> str:
    """From data set, configuration and model."""
    parts = [Path(answers["dataset_name"]).stem, answers.get("dataset_config_name") or "",
             Path(answers["model_name_or_path"]).name]
    return file_name("_".join(part for part in parts if part).lower())


def file_name(name: str) -> str:
    """`name` with what a file's name should not have replaced, so that it stays in its folder."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "_" for c in name).strip("._-") or "sweep"


def _max_length(data: TaskData) -> int:
    """Tokens that hold nearly every row, guessed from words: a power of two from 32 to 512."""
    import numpy as np

    from finetune.data.schema.columns import word_count

    words = [sum(map(word_count, row)) for row in data.splits["train"].texts]
    needed = 1.5 * float(np.quantile(words, 0.99)) + 3
    return int(min(512, max(32, 2 ** np.ceil(np.log2(needed)))))


def render(sweep: Mapping[str, Any], path: Path) -> str:
    """YAML with a header that says what the sweep asks and what it costs. Numbers as W&B reads them (1.0e-05)."""
    import yaml

    from finetune.display import plain

    parameters = sweep["parameters"]
    trials = 1
    for body in parameters.values():
        trials *= len(body.get("values", [None]))
    model, dataset = (plain(parameters[name]["value"]) for name in ("model_name_or_path", "dataset_name"))
    metric = sweep["metric"]["name"].removeprefix("validation/")
    header = (
        f"# Asks     how much {metric} a frozen prefix of {model} costs on {dataset}.\n"
        f"# Cost     at most {trials} trials; `finetune sweep {plain(path)} --dry_run` estimates time and disk.\n"
        f"# Expect   the curve, its intervals and the deepest safe freeze from `finetune report`.\n"
        f"# Run      finetune sweep {plain(path)}     or     wandb sweep {plain(path)}\n"
    )
    return header + yaml.safe_dump(dict(sweep), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
