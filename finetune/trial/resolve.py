"""A configuration checked against its data and its backbone: ResolvedTrial, with the ids that decide what is reused."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from finetune.config import KNOBS, RESULT, TRACKERS, TrialConfig, reporters
from finetune.data import TaskData, limit_evaluation, load_task_data, subset_train
from finetune.data.task_data import TAGGED
from finetune.errors import ConfigError, Problem, did_you_mean
from finetune.files import digest_of
from finetune.freezing import resolve_strategy
from finetune.models import Backbone, check_pooling, chosen_pooling, load_backbone
from finetune.models.poolers import pooling_of
from finetune.prefix.reuse import PrefixSource
from finetune.results import SCHEMA
from finetune.training.evaluation import default_metric, metric_names
from finetune.training.precision import decided
from finetune.trial.memo import Memo

_rows_memo = Memo(4)  # trials of one sweep, in one worker, see the same rows again and again


@dataclass(frozen=True)
class ResolvedTrial:
    """A configuration checked against its data and its backbone, with its ids."""

    config: TrialConfig
    data: TaskData
    backbone: Backbone
    strategy: Any
    metric: str
    processes: int = 1
    asked_precision: str | None = None  # of a second attempt in float32, which stands for the first one's trial

    @property
    def max_length(self) -> int:
        """The model's own limit where max_length is beyond it, as run_glue_no_trainer's tokenizer has it."""
        return min(self.config.max_length, self.backbone.max_tokens or self.config.max_length)

    @cached_property
    def effective(self) -> dict[str, Any]:
        """What decides the result: knobs that act on nothing are None, names are replaced by digests."""
        knobs = {name: self.config.get(name) for name, knob in KNOBS.items() if knob.in_trial_id == RESULT}
        knobs |= {"strategy": self.strategy.canonical, "freeze_depth": self.strategy.freeze_depth,
                  "metric_for_best_model": self.metric, "max_length": self.max_length,
                  "pooling": chosen_pooling(self.config.pooling, self.backbone.stack)}
        knobs["mixed_precision"] = self.asked_precision or self.config.mixed_precision
        if self.data.task == TAGGED:
            knobs["pooling"] = None
        knobs.pop("split_seed")  # the fingerprint holds the rows that it chose
        if self.config.train_size is None:
            knobs["subset_seed"] = None
        if self.strategy.freeze_depth == self.backbone.num_layers:
            knobs |= {"learning_rate": None, "layer_decay": None}
        return {**knobs, "data": self.data.fingerprint, "model": self.backbone.digest, "processes": self.processes,
                "schema": SCHEMA}

    @property
    def trial_id(self) -> str:
        return digest_of(self.effective)

    @property
    def setting_id(self) -> str:
        return digest_of({name: value for name, value in self.effective.items() if name != "seed"})

    def describe(self) -> dict[str, Any]:
        config, rows = self.config, {name: len(split) for name, split in self.data.splits.items()}
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * self.processes
        return {
            "trial_id": self.trial_id, "setting_id": self.setting_id, "effective": self.effective,
            "strategy": self.strategy.canonical, "freeze_depth": self.strategy.freeze_depth,
            "num_layers": self.backbone.num_layers, "metric": self.metric, "task": self.data.task,
            "metrics": metric_names(self.data.task, self.data.num_outputs, self.data.scheme), "rows": rows,
            "notes": list(self.data.notes), "rejected": len(self.data.rejected),
            "total_epochs": config.num_train_epochs,
            "total_steps": config.num_train_epochs * -(-rows["train"] // per_step),
            "prefix_id": self.prefix.prefix_id, "prefix_boundaries": self.prefix_boundaries,
        }

    @cached_property
    def prefix(self) -> PrefixSource:
        """What decides the activations of a frozen prefix, besides the texts."""
        config, layers = self.config, self.backbone.num_layers
        deciding = [self.backbone.digest, config.attn_implementation, config.mixed_precision,
                    pooling_of(config.pooling, self.backbone.stack, self.data.task)]
        rows = [self.effective[name] for name in ("data", "train_size", "subset_seed", "evaluation_size")]
        if config.train_size is not None and config.subset_seed is None:
            rows.append(config.seed)
        return PrefixSource(*deciding, pristine_layers=layers - config.reinit_layers,
                            prefix_id=digest_of([*deciding, *rows, self.max_length]))

    @property
    def prefix_boundaries(self) -> list[int]:
        """The boundary at which this trial will reuse activations, where that is known beforehand."""
        depth, config = self.strategy.freeze_depth or 0, self.config
        reused = min(depth, self.prefix.pristine_layers)
        return [reused] if config.prefix_cache and not config.frozen_dropout and reused >= 1 else []


def resolve_trial(config: TrialConfig, processes: int = 1) -> ResolvedTrial:
    """Load data and backbone and check the configuration against them. Raises ConfigError with every problem."""
    config = decided(config)
    data = rows_of(config)
    if data.task == TAGGED:
        config = config.model_copy(update={"pooling": None})  # it acts on nothing
    backbone = load_backbone(config)
    if data.task == TAGGED and backbone.stack.causal:
        data = replace(data, notes=[*data.notes, f"{backbone.name} is a decoder: the tag of a word is told from what "
                                    "stands before it, since it sees nothing of what follows; an encoder sees both"])
    problems: list[Problem | str] = []
    try:
        strategy = resolve_strategy(config, backbone.num_layers)
    except ConfigError as error:
        strategy, problems = None, list(error.problems)
    names = metric_names(data.task, data.num_outputs, data.scheme)
    metric = config.metric_for_best_model or default_metric(
        data.task, data.num_outputs, data.glue_metric, data.scheme)
    if metric not in names:
        problems.append(Problem("metric_for_best_model", metric,
                                f"allowed for this task: {', '.join(names)}{did_you_mean(metric, names)}"))
    problems += check_pooling(config.pooling, backbone)
    if config.class_weights != "none" and data.task == "regression":
        problems.append(Problem("class_weights", config.class_weights, "a regression has no classes; allowed: none"))
    if config.reinit_layers > backbone.num_layers:
        problems.append(Problem("reinit_layers", config.reinit_layers, f"the model has {backbone.num_layers} layers"))
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        problems.append(Problem("mixed_precision", "fp16", "needs a GPU (on a CPU Accelerate trains in float32 and "
                                                           "does not say so); allowed on a CPU: no, bf16"))
    problems += [Problem("report_to", name, f"it is not installed here: pip install 'stellar-finetuning[{name}]'")
                 for name in reporters(config.report_to) if importlib.util.find_spec(TRACKERS[name]) is None]
    if config.gradient_checkpointing and not backbone.pristine.supports_gradient_checkpointing:
        problems.append(Problem("gradient_checkpointing", True,
                                f"{type(backbone.pristine).__name__} does not offer it"))
    if problems:
        raise ConfigError(problems)
    return ResolvedTrial(config, data, backbone, strategy, metric, processes)


def rows_of(config: TrialConfig) -> TaskData:
    """The data set of a configuration, cut to its train_size and evaluation_size."""
    subset_seed = config.seed if config.subset_seed is None else config.subset_seed
    whole = load_task_data(config)

    def chosen() -> TaskData:
        data = whole if config.train_size is None else subset_train(whole, config.train_size, subset_seed)
        return limit_evaluation(data, config.evaluation_size)

    return _rows_memo.get((whole,), (config.train_size, subset_seed, config.evaluation_size), chosen)
