"""Our sweep files and our own checker against W&B's schema (schema.json of the `sweeps` package 0.3.0, MIT)."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from finetune.errors import ConfigError
from finetune.sweep.spec.parameters import SCHEMA
from finetune.sweep.spec.schema import METHODS, parse_spec

HERE = Path(__file__).parents[1] / "support"
SWEEPS = sorted((HERE.parent / "sweeps").glob("*.yaml"))
METRIC = {"name": "validation/accuracy", "goal": "maximize"}
RANGES = {"uniform": (0.0, 1.0), "int_uniform": (1, 4), "q_uniform": (0, 4), "log_uniform": (-3.0, 0.0),
          "log_uniform_values": (0.1, 1.0), "q_log_uniform": (0.0, 3.0), "q_log_uniform_values": (1.0, 9.0),
          "inv_log_uniform": (0.5, 2.0), "inv_log_uniform_values": (0.1, 1.0)}


@pytest.fixture(scope="module")
def wandb_accepts():
    """W&B's verdict, with its two formats: Draft7Validator as sweeps.config.schema builds it."""
    formats = jsonschema.FormatChecker()
    formats.checks("float")(lambda value: isinstance(value, float))
    formats.checks("integer")(lambda value: isinstance(value, int))
    schema = json.loads((HERE / "wandb_schema" / "schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema, format_checker=formats)
    return lambda content: not list(validator.iter_errors(content))


def accepts(content):
    try:
        parse_spec(content, default_name="test")
    except ConfigError:
        return False
    return True


def sweep(parameter, method="random"):
    return {"method": method, "metric": METRIC, "parameters": {"learning_rate": parameter}}


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_our_files_pass_wandb_s_validation(wandb_accepts, file):
    content = yaml.safe_load(file.read_text())
    assert wandb_accepts(content) and accepts(content)
    assert all(len(str(token).split()) == 1 for token in content["command"])


def test_every_distribution_of_the_schema_is_known():
    schema = json.loads((HERE / "wandb_schema" / "schema.json").read_text())
    theirs = set()
    for definition in schema["definitions"].values():
        for variant in [definition, *definition.get("anyOf", [])]:
            theirs |= set(variant.get("properties", {}).get("distribution", {}).get("enum", []))
    assert theirs == set(SCHEMA)


@pytest.mark.parametrize("distribution", sorted(SCHEMA))
def test_both_accept_every_distribution(wandb_accepts, distribution):
    body = {"distribution": distribution}
    if distribution in RANGES:
        body |= dict(zip(("min", "max"), RANGES[distribution], strict=True))
    body |= {"constant": {"value": 0.1}, "categorical": {"values": [0.1, 0.2]}, "categorical_w_probabilities": {
        "values": [0.1, 0.2], "probabilities": [0.5, 0.5]}}.get(distribution, {})
    assert wandb_accepts(sweep(body)) and accepts(sweep(body))


@pytest.mark.parametrize("body", [
    {"distribution": "uniform", "min": 0.0}, {"distribution": "unifrom", "min": 0.0, "max": 1.0},
    {"distribution": "normal", "sigma": -1.0}, {"distribution": "q_uniform", "min": 0, "max": 4, "q": 0},
    {"distribution": "beta", "a": -1.0}, {"distribution": "normal", "min": 0.0, "max": 1.0}, {"values": []},
    {"values": 3}, {"values": [1, 2], "probabilities": [-0.5, 1.5]}, {}, {"value": 1, "values": [1]},
    {"distribution": "log_uniform_values", "min": 0, "max": 1.0}, {"parameters": {}}, {"vaules": [1]},
], ids=str)
def test_both_refuse_what_the_schema_refuses(wandb_accepts, body):
    assert not wandb_accepts(sweep(body)) and not accepts(sweep(body))


@pytest.mark.parametrize("change", [
    {"method": "gird"}, {"paramaters": {}}, {"run_cap": 0}, {"metric": {"goal": "maximize"}}, {"kind": "job"},
    {"early_terminate": {"type": "envelope"}}, {"early_terminate": {"type": "hyperband"}}, {"parameters": {}},
], ids=str)
def test_both_refuse_wrong_sections(wandb_accepts, change):
    content = {**sweep({"value": 0.1}), **change}
    assert not wandb_accepts(content) and not accepts(content)


@pytest.mark.parametrize("method", METHODS)
def test_both_accept_a_whole_file(wandb_accepts, method):
    content = {
        "program": "finetune.train", "command": ["accelerate", "launch", "-m", "finetune.train", "${args}"],
        "name": "n", "description": "d", "project": "p", "entity": "e", "method": method, "run_cap": 3,
        "metric": {**METRIC, "target": 0.9, "impute": "worst"}, "controller": {"type": "cloud"}, "kind": "sweep",
        "early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3, "strict": True},
        "parameters": {"seed": {"min": 1, "max": 3}, "optimizer": {"parameters": {"beta2": {"values": [0.9, 0.99]}}}},
    }
    assert wandb_accepts(content) and accepts(content)
