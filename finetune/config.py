"""TrialConfig: the only place where a knob is declared, checked and documented.

The names are those of transformers' `run_glue_no_trainer.py` where it has one.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from finetune.errors import ConfigError, Problem, did_you_mean
from finetune.values import as_mapping, decode, options_of

# Why a knob is part of the trial_id, or not:
RESULT = "yes"  # it decides the result
CONTENT = "by content"  # what it names is hashed instead: data fingerprint, digest of the weights
NEVER = "no"  # output, cache and tracking


TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio"}  # name: module


def reporters(report_to: str | Sequence[str] | None) -> tuple[str, ...]:
    """The trackers that a `report_to` names; () for none."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or ["wandb"])
    names = [name.strip() for entry in names for name in entry.split(",")]
    return () if names == ["none"] else tuple(dict.fromkeys(names))


def knob(default: Any, doc: str, *, group: str, unit: str = "", in_trial_id: str = RESULT, **limits: Any) -> Any:
    extra = {"group": group, "unit": unit, "in_trial_id": in_trial_id}
    return Field(default, description=doc, json_schema_extra=extra, **limits)


class OptimizerConfig(BaseModel):
    """AdamW's constants, as the nested parameter `optimizer` (dotted on a command line: --optimizer.beta2=0.98)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    beta1: float = knob(0.9, "AdamW's decay of the first moment", group="optimization", ge=0, lt=1)
    beta2: float = knob(0.999, "AdamW's decay of the second moment", group="optimization", ge=0, lt=1)
    epsilon: float = knob(1e-8, "AdamW's epsilon", group="optimization", gt=0, le=1)


class TrialConfig(BaseModel):
    """Every knob of a trial. Build it with `from_mapping`, which reports all violations together."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # what is frozen
    freeze_depth: int | None = knob(
        None,
        "-1 freezes the embeddings, 0 nothing, k >= 1 the embeddings and the first k layers, L the whole backbone",
        group="freezing", unit="layers", ge=-1,
    )
    strategy: str | None = knob(
        None, "the rule that says which parameters train in which epoch, e.g. full, prefix:4, head_only, lp_ft:1; "
        "excludes freeze_depth; neither means full", group="freezing", min_length=1,
    )
    layer_decay: float = knob(
        1.0, "layer-wise learning-rate decay: the factor from each layer to the one below; 1 is none",
        group="freezing", gt=0, le=1,
    )
    reinit_layers: int = knob(
        0, "re-initialise the top n layers before training (Zhang et al. 2021)", group="freezing", unit="layers", ge=0
    )
    frozen_dropout: bool = knob(
        False, "leave dropout on in frozen modules, to measure what it does; forbids reuse", group="freezing"
    )

    # head
    head_size: int = knob(
        0, "hidden width of the classifier; 0 is a single linear layer", group="head", unit="units", ge=0, le=65536
    )
    head_dropout: float = knob(0.1, "dropout before each linear layer of the head", group="head", ge=0, lt=1)
    pooling: Literal["mean", "cls", "pooler", "last"] | None = knob(
        None, "how token vectors become one: mean over real tokens, first token, the pretrained pooler, or the last "
        "real token; default: last for decoders, mean for encoders", group="head",
    )

    # optimization
    learning_rate: float = knob(
        5e-5, "peak learning rate of the backbone's trainable part; acts on nothing when all of it is frozen",
        group="optimization", gt=0, le=10,
    )
    head_learning_rate: float = knob(
        1e-3, "peak learning rate of the head; a frozen backbone needs a larger one", group="optimization", gt=0, le=10
    )
    weight_decay: float = knob(
        0.01, "AdamW's decoupled weight decay, not applied to biases and norms", group="optimization", ge=0, le=10
    )
    num_train_epochs: int = knob(3, "passes over the training rows", group="optimization", unit="epochs", ge=1,
                                 le=10000)
    per_device_train_batch_size: int = knob(
        16, "training rows per process and step", group="optimization", unit="rows", ge=1, le=65536
    )
    gradient_accumulation_steps: int = knob(
        1, "micro-batches per optimizer step", group="optimization", unit="micro-batches", ge=1, le=65536
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = knob(
        "linear", "shape of the learning rate after warm-up", group="optimization"
    )
    warmup_ratio: float = knob(0.1, "share of the steps in which the learning rate rises", group="optimization",
                               unit="share", ge=0, le=1)
    max_grad_norm: float = knob(
        1.0, "gradients are clipped to this norm; 0 turns clipping off", group="optimization", ge=0
    )
    class_weights: Literal["none", "balanced"] = knob(
        "none", "weigh the training loss by inverse class frequency (multi-label: positives by negatives per positive)",
        group="optimization"
    )
    metric_for_best_model: str | None = knob(
        None, "validation metric that picks the epoch; default: the task's own", group="optimization", min_length=1
    )
    optimizer: OptimizerConfig = knob(OptimizerConfig(), "AdamW's constants", group="optimization")

    # randomness
    seed: int = knob(1, "sets head initialisation, data order and dropout, each with its own stream",
                     group="randomness", ge=0, le=2**32 - 1)
    split_seed: int = knob(0, "decides which rows are in which split, where a split has to be made",
                           group="randomness", ge=0, le=2**32 - 1)
    subset_seed: int | None = knob(None, "decides which rows train_size keeps; default: seed",
                                   group="randomness", ge=0, le=2**32 - 1)

    # data
    dataset_name: str = knob(
        "rotten_tomatoes_mini", "a hub id, the bundled rotten_tomatoes_mini or wnut17_mini, or a path to a folder or "
        "file (csv, tsv, jsonl, json, parquet)", group="data", in_trial_id=CONTENT, min_length=1,
    )
    dataset_config_name: str | None = knob(None, "configuration of a hub data set, e.g. mrpc of glue", group="data",
                                           in_trial_id=CONTENT, min_length=1)
    dataset_revision: str | None = knob(None, "branch, tag or commit of a hub data set", group="data",
                                        in_trial_id=CONTENT, min_length=1)
    text_column: str | list[str] | None = knob(
        None, "column with the text, or two columns (a pair); default: found", group="data", in_trial_id=CONTENT
    )
    label_column: str | list[str] | None = knob(
        None, "column with the label, or several 0/1 columns (multi-label); default: found", group="data",
        in_trial_id=CONTENT,
    )
    task: Literal["auto", "classification", "regression", "multilabel", "token_classification"] = knob(
        "auto", "what is predicted; auto reads it off the labels", group="data", in_trial_id=CONTENT
    )
    validation_size: int | float = knob(
        0.1, "rows (a count) or share of the training rows for a validation split that has to be made", group="data",
        unit="rows or share", in_trial_id=CONTENT, gt=0,
    )
    test_size: int | float = knob(
        0.2, "rows (a count) or share of the training rows for a test split that has to be made", group="data",
        unit="rows or share", in_trial_id=CONTENT, gt=0,
    )
    train_size: int | float | None = knob(
        None, "keep this many training rows (a count) or this share; smaller subsets lie inside larger ones",
        group="data", unit="rows or share", gt=0,
    )
    evaluation_size: int | None = knob(
        None, "keep at most this many validation and at most this many test rows (a fixed choice); default: all",
        group="data", unit="rows", ge=1, in_trial_id=RESULT,
    )
    max_length: int = knob(128, "tokens per row; longer rows are truncated, pairs longest first", group="data",
                           unit="tokens", ge=4, le=131072)

    # model
    model_name_or_path: str = knob(
        "sentence-transformers/all-MiniLM-L6-v2", "a hub id or the path of a folder", group="model",
        in_trial_id=CONTENT, min_length=1,
    )
    model_revision: str | None = knob(None, "branch, tag or commit of the model on the hub", group="model",
                                      in_trial_id=CONTENT, min_length=1)
    attn_implementation: Literal["eager", "sdpa"] | None = knob(
        None, "attention kernel; default: what transformers picks", group="model"
    )
    trust_remote_code: bool = knob(
        False, "run code that comes with the model (never for data sets); without it such a model is refused",
        group="model",
    )

    # execution
    per_device_eval_batch_size: int = knob(64, "evaluation rows per process and step", group="execution", unit="rows",
                                           in_trial_id=NEVER, ge=1, le=65536)
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = knob(
        "no", "number format of the forward pass; auto: bf16 where the device computes it fast, else no; recorded as "
        "what it became", group="execution",
    )
    retry_in_float32: bool = knob(
        False, "train a trial whose numbers are not finite in bf16 or fp16 once more in float32; the record says so",
        group="execution", in_trial_id=NEVER,
    )
    gradient_checkpointing: bool = knob(
        False, "recompute activations in the backward pass to save memory", group="execution", in_trial_id=NEVER
    )
    auto_micro_batch: bool = knob(
        False, "on out-of-memory halve the micro-batch and keep the effective batch; recorded", group="execution",
        in_trial_id=NEVER,
    )
    prefix_cache: bool = knob(True, "compute the frozen prefix once and reuse it", group="execution",
                              in_trial_id=NEVER)
    cuda_graphs: Literal["auto", "true", "false"] = knob(
        "auto", "record training steps on a GPU and replay them: auto where that can be done and the trial is long "
        "enough, true whenever it can be done", group="execution", in_trial_id=NEVER,
    )
    checkpointing_steps: int | None = knob(
        None, "checkpoint every so many optimizer steps, besides every epoch", group="execution", unit="steps",
        in_trial_id=NEVER, ge=1,
    )

    # output and tracking
    output_dir: str | None = knob(None, "where results are written; default: runs/<sweep id, or single>",
                                  group="output", in_trial_id=NEVER, min_length=1)
    save_model: bool | Literal["delta"] = knob(
        "delta", "keep the best epoch's model beside the record: delta the tensors that differ from the base, True the "
        "whole as a folder that AutoModel.from_pretrained loads, False nothing", group="output", in_trial_id=NEVER,
    )
    report_to: str | list[str] | None = knob(
        None, "trackers: wandb, tensorboard, mlflow, trackio, several (a list, or with commas between), or none; "
        "default: wandb where this machine is logged in", group="output", in_trial_id=NEVER,
    )
    upload_predictions: bool = knob(True, "send record and predictions to W&B as an artifact", group="output",
                                    in_trial_id=NEVER)
    wandb_project: str | None = knob(None, "W&B project; default: W&B's own rules, else stellar-finetuning",
                                     group="output", in_trial_id=NEVER, min_length=1)
    wandb_entity: str | None = knob(None, "W&B user or team", group="output", in_trial_id=NEVER, min_length=1)
    preemptible: bool = knob(
        False, "on SIGTERM mark the W&B run as preempting, so that an agent requeues and continues it",
        group="output", in_trial_id=NEVER,
    )
    margin: float = knob(
        0.01, "loss of the metric that the report's verdict tolerates; decide it before the sweep", group="output",
        unit="fraction", in_trial_id=NEVER, gt=0, lt=1,
    )

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], *, beside: Sequence[str] = ()) -> TrialConfig:
        """Decode and check knobs from YAML or argv values (nested or dotted). Raises ConfigError with every problem.

        `beside`: what the caller takes besides knobs, which an unknown name may have meant.
        """
        flat, problems = unfold(raw)
        values: dict[str, Any] = {}
        for name, value in flat.items():
            knob_at = KNOBS.get(name)
            if knob_at is None:
                problems.append(Problem(name, value, "no such knob" + did_you_mean(name, [*KNOBS, *beside])))
                continue
            try:
                _put(values, name, decode(value, knob_at.annotation))
            except ValueError as error:
                problems.append(Problem(name, value, f"{error}; allowed: {knob_at.allowed}"))
        problems += _cross_field_problems(values)
        try:
            config = cls(**values)
        except ValidationError as error:
            problems += [_problem_from_pydantic(entry) for entry in error.errors()]
        if problems:
            raise ConfigError(problems)
        return config

    def replace(self, **changes: Any) -> TrialConfig:
        """A checked copy with some knobs changed (dotted names for nested ones)."""
        values = self.model_dump()
        for name, value in changes.items():
            _put(values, name, value)
        return TrialConfig.from_mapping(values)

    def get(self, name: str) -> Any:
        """The value of a knob by its dotted name."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value


@dataclass(frozen=True)
class Knob:
    """One knob's documentation. `name` is dotted for nested knobs."""

    name: str
    annotation: Any
    default: Any
    doc: str
    group: str
    unit: str
    in_trial_id: str
    allowed: str


def _walk(model: type[BaseModel], prefix: str = "") -> Iterator[Knob]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _walk(field.annotation, f"{prefix}{name}.")
            continue
        extra = typing.cast(dict, field.json_schema_extra)
        assert field.default is not PydanticUndefined
        yield Knob(
            name=prefix + name, annotation=field.annotation, default=field.default, doc=field.description or "",
            group=extra["group"], unit=extra["unit"], in_trial_id=extra["in_trial_id"],
            allowed=_allowed(field.annotation, field.metadata),
        )


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    """The range of a knob in words, e.g. 'an integer >= 0 or None'."""
    kinds = {int: "an integer", float: "a number", str: "text", bool: "True or False"}
    words, optional = [], False
    for option in options_of(annotation):
        if option is type(None):
            optional = True
        elif typing.get_origin(option) is Literal:
            words.append(" | ".join(str(choice) for choice in typing.get_args(option)))
        elif typing.get_origin(option) is list:
            words.append("a list of names")
        else:
            words.append(kinds[option])
    if {int, float} <= set(options_of(annotation)):  # validation_size and its like
        return "a count (an integer >= 1) or a share (above 0 and below 1)" + (" or None" if optional else "")
    symbols = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{symbols[key]} {value}" for item in metadata for key, value in _limits(item) if key in symbols]
    text = " or ".join(words) + (" " + " and ".join(limits) if limits else "")
    return text + (" or None" if optional else "")


def _limits(item: Any) -> list[tuple[str, Any]]:
    return [(key, getattr(item, key)) for key in ("ge", "gt", "le", "lt") if getattr(item, key, None) is not None]


KNOBS: dict[str, Knob] = {entry.name: entry for entry in _walk(TrialConfig)}


def unfold(raw: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[Problem]]:
    """Nested or dotted knobs -> dotted knobs. A knob that is given both ways, or twice, is a problem."""
    flat: dict[str, Any] = {}
    problems: list[Problem] = []
    groups = {name.rsplit(".", 1)[0] for name in KNOBS if "." in name}
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if name in groups:
            nested = as_mapping(value)
            if nested is None:
                problems.append(Problem(name, value, "allowed: a mapping of "
                                        + ", ".join(k for k in KNOBS if k.startswith(name + "."))))
                continue
            inner, inner_problems = unfold(nested, f"{name}.")
            problems += inner_problems
        else:
            inner = {name: value}
        for inner_name, inner_value in inner.items():
            if inner_name in flat:
                problems.append(Problem(inner_name, inner_value, "given twice"))
            flat[inner_name] = inner_value
    return flat, problems


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *groups, name = dotted.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = value


def _cross_field_problems(values: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if values.get("freeze_depth") is not None and values.get("strategy") is not None:
        problems.append(Problem("strategy", values["strategy"],
                                "freeze_depth is also set; set one of the two"))
    columns = values.get("text_column")
    if isinstance(columns, list) and (len(columns) not in (1, 2) or len(set(columns)) != len(columns)):
        problems.append(Problem("text_column", columns, "allowed: one name, or two different names (a pair)"))
    for name in reporters(values.get("report_to")):
        if name not in TRACKERS:
            problems.append(Problem("report_to", name, f"allowed: {', '.join(TRACKERS)}, or none alone"
                                    + did_you_mean(name, TRACKERS)))
    for name in ("validation_size", "test_size", "train_size"):
        size = values.get(name)
        if isinstance(size, float) and not size.is_integer() and size > 1:
            problems.append(Problem(name, size, "allowed: a count (an integer) or a share below 1"))
    return problems


def _problem_from_pydantic(entry: Mapping[str, Any]) -> Problem:
    name = ".".join(str(part) for part in entry["loc"] if isinstance(part, str) and part in _NAME_PARTS)
    declared = KNOBS.get(name)
    return Problem(name, entry["input"], f"allowed: {declared.allowed}" if declared else entry["msg"])


_NAME_PARTS = {part for name in KNOBS for part in name.split(".")}
