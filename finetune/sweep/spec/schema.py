"""W&B's sweep YAML -> SweepSpec. What `wandb sweep` refuses is refused here, with W&B's reason.

The schema is that of W&B's `sweeps` package (config/schema.json, 0.3.0) plus the check that `wandb sweep` makes itself
(bounds without a distribution must be two integers or two floats). `program` and `command` are W&B's affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.config import KNOBS
from finetune.errors import ConfigError, Problem, did_you_mean
from finetune.files import digest_of
from finetune.sweep.spec.parameters import Parameter, flatten_parameters, is_number, parse_parameter, text_number_hint
from finetune.sweep.spec.yaml_file import parse_yaml, read_yaml
from finetune.training.evaluation import higher_is_better

METHODS = ("grid", "random", "bayes")
_TEXT_KEYS = ("program", "name", "description", "project", "entity", "job", "image_uri", "apiVersion")
TOP_LEVEL_KEYS = (*_TEXT_KEYS, "kind", "controller", "method", "command", "run_cap", "metric", "metrics", "scheduler",
                  "early_terminate", "parameters")
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_CLEARED_WITH_DATASET = ("dataset_config_name", "dataset_revision", "text_column", "label_column")


@dataclass(frozen=True)
class Metric:
    """What a search optimizes. `name` as logged, e.g. validation/accuracy; `key` is its name in a record."""

    name: str
    goal: str = "minimize"
    target: float | None = None

    @property
    def key(self) -> str:
        return self.name.removeprefix("validation/")

    def better(self, a: float, b: float) -> bool:
        return a > b if self.goal == "maximize" else a < b

    def reached(self, value: float) -> bool:
        return self.target is not None and not self.better(self.target, value)


@dataclass(frozen=True)
class Hyperband:
    """`early_terminate: hyperband`. One iteration is one logged value of the metric, i.e. one epoch."""

    eta: float = 3
    min_iter: int | None = None
    max_iter: int | None = None
    s: int | None = None
    strict: bool = False


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep. `as_run` is the YAML with the overrides applied, nested parameters as dotted names."""

    name: str
    method: str
    parameters: tuple[Parameter, ...]
    metric: Metric | None = None
    early_terminate: Hyperband | None = None
    run_cap: int | None = None
    as_run: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def named(self, name: str | None) -> SweepSpec:
        """The same sweep under another name, as `wandb sweep --name` gives it; None and "" leave it."""
        return replace(self, name=name, as_run={**self.as_run, "name": name}) if name else self

    def identity(self, search_seed: int) -> str:
        """A digest of what decides which points are tried and how they are judged: an edited sweep is another study."""
        search = [search_seed] if self.method != "grid" else []
        parts = {parameter.name: [parameter.distribution, parameter.arguments] for parameter in self.parameters}
        judged = [vars(part) if part else None for part in (self.metric, self.early_terminate)]
        return digest_of([self.method, parts, judged, search])


Overrides = Sequence[str] | Mapping[str, Any]  # NAME=VALUE as on a command line, or name -> value


def load_spec(path: Path, overrides: Overrides = ()) -> SweepSpec:
    """Read and check a sweep file. Raises ConfigError with every violation."""
    raw = read_yaml(path)
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{path}: a sweep is a mapping with at least `method` and `parameters`")
    return parse_spec(raw, default_name=path.stem, overrides=overrides)


def parse_spec(raw: Mapping[str, Any], *, default_name: str, overrides: Overrides = ()) -> SweepSpec:
    problems = _check_top_level(raw)
    flat = flatten_parameters(raw.get("parameters"), problems)
    flat = apply_overrides(flat, overrides)
    parameters = [parse_parameter(name, body, problems) for name, body in flat.items()]
    parameters = [parameter for parameter in parameters if parameter is not None]
    metric = _parse_metric(raw["metric"], problems) if "metric" in raw else None
    hyperband = _parse_hyperband(raw["early_terminate"], metric, problems) if "early_terminate" in raw else None
    if raw.get("method") == "grid":
        problems += [_not_for_a_grid(parameter) for parameter in parameters if not parameter.enumerable]
    if raw.get("method") == "bayes" and "metric" not in raw:
        problems.append("method: bayes needs a `metric` section")
    if problems:
        raise ConfigError(problems)
    return SweepSpec(
        name=raw.get("name") or default_name, method=raw["method"], parameters=tuple(parameters), metric=metric,
        early_terminate=hyperband, run_cap=raw.get("run_cap"), as_run={**raw, "parameters": flat},
        warnings=(*_goal_warnings(raw, metric), *(text for p in parameters for text in p.warnings)),
    )


def apply_overrides(parameters: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A list replaces a parameter's values, anything else fixes it.

    Another data set has other columns: setting dataset_name drops the configuration and column knobs of the file.
    """
    asked = dict(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    given = {name: {"values": value} if isinstance(value, list) else {"value": value} for name, value in asked.items()}
    dropped = _CLEARED_WITH_DATASET if "dataset_name" in given else ()
    return {**{name: body for name, body in parameters.items() if name not in dropped}, **given}


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`--set NAME=VALUE`, where VALUE is YAML."""
    given: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError([Problem("--set", text, "allowed: NAME=VALUE, e.g. --set num_train_epochs=2")])
        if name in given:
            raise ConfigError([Problem(f"--set {name}", value, "given twice")])
        given[name] = parse_yaml(value, f"--set {name}")
    return given


def _check_top_level(raw: Mapping[str, Any]) -> list[Problem | str]:
    problems: list[Problem | str] = [
        Problem(str(key), value, "no such key in a sweep" + did_you_mean(str(key), TOP_LEVEL_KEYS)
                + ("; a knob belongs under `parameters`" if key in KNOBS else ""))
        for key, value in raw.items() if key not in TOP_LEVEL_KEYS
    ]
    problems += [Problem(key, raw[key], "allowed: text") for key in _TEXT_KEYS
                 if key in raw and not isinstance(raw[key], str)]
    for key, reason in {"scheduler": "W&B's own custom schedulers", "metrics": "several objectives"}.items():
        if key in raw:
            problems.append(Problem(key, raw[key], f"{reason} are not offered by the embedded engine"))
    problems += _check_method(raw)
    if "kind" in raw and raw["kind"] != "sweep":
        problems.append(Problem("kind", raw["kind"], "allowed: sweep"))
    if "command" in raw and not isinstance(raw["command"], list):
        problems.append(Problem("command", raw["command"], "allowed: a list with one item per token"))
    if "controller" in raw and not (isinstance(raw["controller"], dict)
                                    and raw["controller"].get("type") in ("local", "cloud")):
        problems.append(Problem("controller", raw["controller"], "allowed: {type: local} or {type: cloud}"))
    cap = raw.get("run_cap", 1)
    if not _is_integer(cap) or cap < 1:
        problems.append(Problem("run_cap", cap, "allowed: an integer >= 1"))
    return problems


def _check_method(raw: Mapping[str, Any]) -> list[Problem | str]:
    if "method" not in raw:
        return [f"`method` is missing; allowed: {' | '.join(METHODS)}"]
    if raw["method"] == "custom":
        return [Problem("method", "custom", "needs W&B's scheduler; the embedded engine offers " + " | ".join(METHODS))]
    if raw["method"] not in METHODS:
        return [Problem("method", raw["method"], f"allowed: {' | '.join(METHODS)}"
                        + did_you_mean(str(raw["method"]), METHODS))]
    return []


def _check_keys(section: str, body: Any, allowed: Sequence[str], problems: list[Problem | str]) -> bool:
    """True when `body` is a mapping; its unknown keys become problems."""
    if not isinstance(body, dict):
        problems.append(Problem(section, body, f"allowed: a mapping of {', '.join(allowed)}"))
        return False
    problems += [Problem(f"{section}.{key}", value, "no such key" + did_you_mean(str(key), allowed))
                 for key, value in body.items() if key not in allowed]
    return True


def _parse_metric(body: Any, problems: list[Problem | str]) -> Metric | None:
    if not _check_keys("metric", body, _METRIC_KEYS, problems):
        return None
    before = len(problems)
    name = body.get("name")
    if not isinstance(name, str) or not name.removeprefix("validation/").strip():
        problems.append(Problem("metric.name", name, "allowed: validation/NAME, e.g. validation/accuracy"))
    elif name.startswith(("test/", "test_")):
        problems.append(Problem("metric.name", name, "a search that sees the test split invalidates it; use "
                                f"validation/{_our_name(name[len('test/'):])}"))
    elif not name.startswith("validation/"):
        problems.append(Problem("metric.name", name, "allowed: validation/NAME; did you mean validation/"
                                f"{_our_name(name)}?"))
    choices = {"goal": ("minimize", "maximize"), "impute": ("latest", "best", "worst"),
               "impute_while_running": ("latest", "best", "worst", "false")}
    problems += [Problem(f"metric.{key}", body[key], f"allowed: {' | '.join(allowed)}"
                         + did_you_mean(str(body[key]), allowed))
                 for key, allowed in choices.items() if key in body and body[key] not in allowed]
    target = body.get("target")
    if "target" in body and not is_number(target):
        problems.append(Problem("metric.target", target, "allowed: a number" + text_number_hint(target)))
    if len(problems) > before:
        return None
    return Metric(name, body.get("goal", "minimize"), None if target is None else float(target))


def _parse_hyperband(body: Any, metric: Metric | None, problems: list[Problem | str]) -> Hyperband | None:
    if not _check_keys("early_terminate", body, _HYPERBAND_KEYS, problems):
        return None
    before = len(problems)
    if body.get("type") != "hyperband":
        problems.append(Problem("early_terminate.type", body.get("type"), "allowed: hyperband"))
    if "min_iter" not in body and not {"max_iter", "s"} <= body.keys():
        problems.append(Problem("early_terminate", body, "needs min_iter, or max_iter and s"))
    for key in ("min_iter", "max_iter", "s"):
        if key in body and (not _is_integer(body[key]) or body[key] < 1):
            problems.append(Problem(f"early_terminate.{key}", body[key], "allowed: an integer >= 1"))
    if "eta" in body and not (is_number(body["eta"]) and body["eta"] > 1):
        problems.append(Problem("early_terminate.eta", body["eta"], "allowed: a number > 1"))
    if "strict" in body and not isinstance(body["strict"], bool):
        problems.append(Problem("early_terminate.strict", body["strict"], "allowed: true or false"))
    if metric is None and not any("metric" in str(problem) for problem in problems):
        problems.append("early_terminate: hyperband needs a `metric` section")
    if len(problems) > before:
        return None
    return Hyperband(**{key: value for key, value in body.items() if key != "type"})


def _not_for_a_grid(parameter: Parameter) -> Problem:
    return Problem(parameter.name, parameter.arguments or parameter.distribution,
                   "Grid search requires all parameters to be categorical, constant, int_uniform, or q_uniform; "
                   "probabilities are disallowed in grid search")


def _goal_warnings(raw: Mapping[str, Any], metric: Metric | None) -> list[str]:
    if metric is None or (metric.goal == "maximize") == higher_is_better(metric.name):
        return []
    if "goal" not in raw["metric"]:
        return [f"metric.goal is not given and W&B's default is minimize: the sweep looks for the lowest {metric.name}"]
    better = "more" if higher_is_better(metric.name) else "less"
    return [f"metric.goal is {metric.goal}, but of {metric.name} {better} is better: the sweep looks for the worst"]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What other programs call the same figures: the Trainer eval/loss and eval_loss, Keras val_acc.
_ELSEWHERE = re.compile(r"(?:eval(?:uation)?|valid(?:ation)?|val|dev)[/_.]")
_SHORT = {"acc": "accuracy", "mcc": "matthews", "matthews_correlation": "matthews", "pearsonr": "pearson",
          "spearmanr": "spearman"}


def _our_name(name: str) -> str:
    """The name that a metric of another program has here, without validation/."""
    rest = _ELSEWHERE.sub("", name.strip().lower(), count=1)
    return _SHORT.get(rest, rest)
