"""The sweep file: what W&B accepts is accepted, what it refuses is refused, and nothing in it executes."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import ConfigError
from finetune.sweep.spec.parameters import SCHEMA, Parameter, parse_parameter
from finetune.sweep.spec.points import MAX_POINTS, grid_points, probe_points, random_points
from finetune.sweep.spec.schema import load_spec, parse_spec
from finetune.sweep.spec.yaml_file import parse_yaml

GRID = {"method": "grid", "parameters": {"freeze_depth": {"values": [0, 2]}, "seed": {"values": [1, 2, 3]}}}


def spec_of(overrides=(), **changes):
    return parse_spec({**GRID, **changes}, default_name="test", overrides=overrides)


def refusal(overrides=(), **changes) -> str:
    with pytest.raises(ConfigError) as error:
        spec_of(overrides, **changes)
    return str(error.value)


def problems_of(body) -> list[str]:
    problems = []
    parse_parameter("learning_rate", body, problems)
    return [str(problem) for problem in problems]


# -- the file ----------------------------------------------------------------------------------------------------------

def test_a_whole_wandb_file_is_accepted(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text("""
program: train.py
command: ["${env}", "accelerate", "launch", "-m", "finetune.train", "${args}"]
name: everything
description: d
project: p
entity: e
method: bayes
metric: {name: validation/accuracy, goal: maximize, target: 0.95, impute: worst}
early_terminate: {type: hyperband, min_iter: 2, eta: 2, strict: true}
run_cap: 30
controller: {type: cloud}
parameters:
  freeze_depth: {values: [0, 2, 4]}
  learning_rate: {distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-3}
  optimizer: {parameters: {beta2: {min: 0.9, max: 0.999}}}
  head_size: {value: 128}
""")
    spec = load_spec(path)
    assert (spec.name, spec.method, spec.run_cap) == ("everything", "bayes", 30)
    assert [(p.name, p.distribution) for p in spec.parameters] == [
        ("freeze_depth", "categorical"), ("learning_rate", "log_uniform_values"), ("optimizer.beta2", "uniform"),
        ("head_size", "constant")]
    assert spec.metric.key == "accuracy" and spec.metric.target == 0.95
    assert spec.early_terminate.strict and spec.early_terminate.eta == 2


@pytest.mark.fault("input", "YAML tags, alias bombs, duplicate keys, deep nesting",
                   "refused with file and line; nothing runs")
@pytest.mark.parametrize(("text", "reason"), [
    ("!!python/object/apply:os.system ['touch {marker}']", "only plain values"),
    ("method: !!python/name:os.system", "only plain values"),
    ("method: grid\nmethod: random", "appears twice"),
    ("method: grid\nparameters:\n  seed: {value: 1}\n  seed: {value: 2}", "line 4: the key 'seed' appears twice"),
    ("method: [grid", "not YAML"),
    ("a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
     "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
     "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e, *e]", "aliases"),
    ("a: &a [*a]", "contains itself"),
    ("[" * 5000, "nested too deeply"),
    ("when: 2024-01-01", "only plain values"),
    ("? [1, 2]\n: x", "a key must be text"),
    ("--- 1\n--- 2", "not YAML"),
])
def test_hostile_yaml_is_refused(text, reason, tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ConfigError, match="bad.yaml") as error:
        load_spec(path)
    assert reason in str(error.value)
    assert not marker.exists()


def test_an_alias_that_stays_small_is_fine():
    assert parse_yaml("a: &a [1, 2]\nb: *a", "x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.fault("input", "a random YAML tree as a sweep (fuzz)", "a valid sweep or a clean error")
@settings(max_examples=150, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["grid", "random", "bayes", "validation/loss", "hyperband", "uniform", "1e-5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["method", "metric", "parameters", "freeze_depth", "values", "value", "min", "max", "distribution", "q", "name",
         "run_cap", "early_terminate", "type", "min_iter", "probabilities", "sigma", "optimizer"]), inner, max_size=4),
    max_leaves=20))
def test_any_mapping_gives_a_sweep_or_a_clean_error(raw):
    raw = raw if isinstance(raw, dict) else {"method": "grid", "parameters": raw}
    try:
        spec = parse_spec(raw, default_name="fuzz")
        random_points(spec, 0, 2, {}) if spec.method != "grid" else grid_points(spec, {})
    except ConfigError as error:
        assert str(error)


# -- refusals ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("changes", "reason"), [
    ({"method": "gird"}, "did you mean grid"),
    ({"method": "custom"}, "W&B's scheduler"),
    ({"paramaters": {}}, "did you mean parameters"),
    ({"learning_rate": 1e-5}, "belongs under `parameters`"),
    ({"run_cap": 0}, "an integer >= 1"),
    ({"run_cap": True}, "an integer >= 1"),
    ({"command": "accelerate launch"}, "one item per token"),
    ({"parameters": {}}, "at least one knob"),
    ({"metric": {"name": "test/accuracy"}}, "invalidates it; use validation/accuracy"),
    ({"metric": {"name": "accuracy"}}, "did you mean validation/accuracy"),
    ({"metric": {"name": "validation/accuracy", "gaol": "maximize"}}, "did you mean goal"),
    ({"metric": {"name": "validation/accuracy", "goal": "max"}}, "minimize | maximize"),
    ({"metric": {"name": "validation/accuracy", "target": "1e-5"}}, "write 1.0e-05"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "needs a `metric`"),
    ({"early_terminate": {"type": "envelope", "min_iter": 1}, "metric": {"name": "validation/loss"}}, "hyperband"),
    ({"early_terminate": {"type": "hyperband"}, "metric": {"name": "validation/loss"}}, "needs min_iter"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}, "metric": {"name": "validation/loss"}}, "> 1"),
    ({"scheduler": {"engine": "optuna"}}, "custom schedulers"),
    ({"method": "bayes"}, "needs a `metric`"),
])
def test_a_wrong_section_is_refused_with_the_reason(changes, reason):
    assert reason in refusal(**changes)


def test_all_problems_are_reported_together():
    text = refusal(method="gird", run_cap=-1, parameters={"seed": {"vaules": [1]}, "head_size": {"min": 1, "max": 1}})
    assert text.count("\n") == 3
    assert "did you mean values" in text and "min 1 is not less than max 1" in text


@pytest.mark.parametrize(("body", "reason"), [
    ({"min": 0, "max": 0.1}, "ambiguous, please specify bounds as both floats"),
    ({"min": "1e-5", "max": 0.1}, "ambiguous"),
    ({"min": "1e-5", "max": 0.1}, "write 1.0e-05"),
    ({"min": 0.2, "max": 0.1}, "min 0.2 is not less than max 0.1"),
    ({"min": 0.0, "max": 0.1, "q": 0.01}, "cannot tell its distribution"),
    ({"distribution": "uniform", "min": "1e-5", "max": 1.0}, "YAML reads 1e-5 as text, write 1.0e-05"),
    ({"distribution": "uniform", "min": 0.0}, "needs `max`"),
    ({"distribution": "unifrom", "min": 0.0, "max": 1.0}, "did you mean uniform"),
    ({"distribution": "int_uniform", "min": 0.0, "max": 1.0}, "an integer"),
    ({"distribution": "log_uniform_values", "min": 0, "max": 1.0}, "> 0"),
    ({"distribution": "log_uniform", "min": 0.001, "max": 1000.0}, "overflow"),
    ({"distribution": "normal", "sigma": -1.0}, ">= 0"),
    ({"distribution": "q_uniform", "min": 0, "max": 4, "q": 0}, "> 0"),
    ({"distribution": "beta", "a": 0.0}, "> 0"),
    ({"distribution": "normal", "min": 0.0, "max": 1.0}, "not an argument of normal"),
    ({"values": []}, "at least one value"),
    ({"values": 3}, "at least one value"),
    ({"values": [1, 2], "probabilities": [0.5]}, "same length"),
    ({"values": [1, 2], "probabilities": [0.5, 0.4]}, "do not sum to 1"),
    ({"values": [1, 2], "probabilities": [-0.5, 1.5]}, ">= 0"),
    ({"distribution": "uniform", "min": float("-inf"), "max": 1.0}, "a number"),
    ({}, "cannot tell its distribution"),
    (3e-5, "allowed: a mapping"),
])
def test_a_wrong_parameter_is_refused_with_wandb_s_reason(body, reason):
    assert any(reason in problem for problem in problems_of(body)), problems_of(body)


@pytest.mark.parametrize(("body", "distribution"), [
    ({"value": 1}, "constant"), ({"values": [1]}, "categorical"), ({"min": 0, "max": 3}, "int_uniform"),
    ({"min": 0.0, "max": 3.0}, "uniform"),
    ({"values": [1, 2], "probabilities": [0.3, 0.7]}, "categorical_w_probabilities"),
    ({"distribution": "uniform", "min": 0, "max": 3}, "uniform"), ({"distribution": "normal"}, "normal"),
    ({"distribution": "q_beta", "q": 0.1}, "q_beta"),
])
def test_the_distribution_is_inferred_as_wandb_does(body, distribution):
    problems = []
    assert parse_parameter("x", body, problems).distribution == distribution
    assert not problems


def test_a_grid_refuses_what_cannot_be_enumerated():
    text = refusal(parameters={"learning_rate": {"min": 0.1, "max": 0.2},
                               "head_size": {"values": [1, 2], "probabilities": [0.5, 0.5]}})
    assert text.count("Grid search requires all parameters to be categorical, constant, int_uniform, or q_uniform") == 2
    assert "learning_rate = {'min': 0.1, 'max': 0.2}: " in text  # as it was written


@pytest.mark.parametrize("name, goal, better", [("mse", "maximize", "less"), ("accuracy", "minimize", "more"),
                                                ("loss", "maximize", "less")])
def test_a_goal_that_looks_for_the_worst_is_a_warning(name, goal, better):
    (warning,) = spec_of(metric={"name": f"validation/{name}", "goal": goal}).warnings
    assert warning == (f"metric.goal is {goal}, but of validation/{name} {better} is better: the sweep looks for the "
                       "worst")
    other = "minimize" if goal == "maximize" else "maximize"
    assert not spec_of(metric={"name": f"validation/{name}", "goal": other}).warnings


def test_traps_are_accepted_with_a_warning():
    spec = spec_of(method="random", metric={"name": "validation/accuracy"},
                   parameters={"learning_rate": {"distribution": "log_uniform", "min": -10.0, "max": -5.0}})
    assert "W&B's default is minimize" in spec.warnings[0]
    assert "min/max specify base-e exponents. Use log_uniform_values" in spec.warnings[1]


# -- overrides ---------------------------------------------------------------------------------------------------------

def test_set_fixes_replaces_and_adds():
    spec = spec_of(["seed=[4, 5]", "freeze_depth=-1", "num_train_epochs=2", "optimizer.beta2=0.98"])
    configs = [point.config for point in grid_points(spec, {})]
    assert [config.seed for config in configs] == [4, 5]
    assert {(c.freeze_depth, c.num_train_epochs, c.optimizer.beta2) for c in configs} == {(-1, 2, 0.98)}
    assert spec.as_run["parameters"]["seed"] == {"values": [4, 5]}


def test_set_reaches_a_nested_parameter():
    nested = {"optimizer": {"parameters": {"beta1": {"value": 0.8}, "beta2": {"values": [0.9, 0.99]}}}}
    (point,) = grid_points(spec_of(["optimizer.beta2=0.5"], parameters=nested), {})
    assert (point.config.optimizer.beta1, point.config.optimizer.beta2) == (0.8, 0.5)


def test_setting_the_data_set_clears_its_configuration_and_columns():
    parameters = {"dataset_name": {"value": "glue"}, "dataset_config_name": {"value": "mrpc"},
                  "text_column": {"values": [["a", "b"]]}, "label_column": {"value": "label"}}
    (point,) = grid_points(spec_of(["dataset_name=other", "label_column=y"], parameters=parameters), {})
    assert (point.config.dataset_config_name, point.config.text_column, point.config.label_column) == (None, None, "y")
    (pair,) = grid_points(spec_of(["text_column=[[x, y]]"], parameters=parameters), {})
    assert pair.config.text_column == ["x", "y"]


@pytest.mark.parametrize(("override", "reason"), [
    ("seed", "NAME=VALUE"), ("=3", "NAME=VALUE"), ("seed=[1", "not YAML"),
    ("seed=!!python/none x", "only plain values"),
])
def test_a_wrong_override_is_refused(override, reason):
    assert reason in refusal([override])


def test_an_unknown_knob_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        grid_points(spec_of(["lerning_rate=1e-5"]), {})


@pytest.mark.parametrize(("parameters", "sentence"), [
    ({"freez_depth": [0, 6]}, "freez_depth = 0, 6: no such knob; did you mean freeze_depth?"),
    ({"freeze_depth": [0, 6], "strategy": ["full", "bitfit"]},
     "strategy = 'full', 'bitfit': freeze_depth is also set; set one of the two"),
])
def test_one_mistake_is_one_sentence_however_many_points_have_it(parameters, sentence):
    spec = spec_of(parameters={name: {"values": values} for name, values in parameters.items()})
    with pytest.raises(ConfigError) as error:
        grid_points(spec, {})
    assert str(error.value) == sentence


# -- points ------------------------------------------------------------------------------------------------------------

def test_a_grid_has_every_point_once_and_keeps_neighbours_together():
    parameters = {"seed": {"values": [1, 2]}, "learning_rate": {"values": ["1e-5", 1e-5, 0.00001, 3e-5]},
                  "freeze_depth": {"min": 0, "max": 2},
                  "weight_decay": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.5}}
    points = grid_points(spec_of(parameters=parameters), {})
    configs = [(p.config.freeze_depth, p.config.seed, p.config.learning_rate, p.config.weight_decay) for p in points]
    expected = {(d, s, lr, w) for d in (0, 1, 2) for s in (1, 2) for lr in (1e-5, 3e-5) for w in (0.0, 0.5)}
    assert len(configs) == len(expected) and set(configs) == expected
    depths = [config[0] for config in configs]
    assert depths == sorted(depths)


def test_every_bad_point_is_reported_once():
    spec = spec_of(parameters={"freeze_depth": {"values": [-2, 0]}, "seed": {"values": list(range(50))}})
    with pytest.raises(ConfigError) as error:
        grid_points(spec, {})
    assert str(error.value).count("freeze_depth = -2") == 1


def test_a_huge_grid_is_refused_before_it_is_listed():
    with pytest.raises(ConfigError, match=f"at most {MAX_POINTS}"):
        grid_points(spec_of(parameters={"seed": {"min": 0, "max": 2**32 - 1}}), {})


RANDOM = {"freeze_depth": {"values": [0, 2, 4]},
          "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}}


def test_random_points_are_those_of_the_seed_whatever_the_order_of_the_file():
    first = random_points(spec_of(method="random", parameters=RANDOM), 7, 8, {})
    again = random_points(spec_of(method="random", parameters=dict(reversed(RANDOM.items()))), 7, 8, {})
    other = random_points(spec_of(method="random", parameters=RANDOM), 8, 8, {})
    assert [p.config for p in first] == [p.config for p in again]
    assert [p.config for p in random_points(spec_of(method="random", parameters=RANDOM), 7, 3, {})] == [
        p.config for p in first[:3]]
    assert {p.config for p in first}.isdisjoint(p.config for p in other)


def test_probes_reach_both_ends_and_every_choice():
    probes = probe_points(spec_of(method="random", parameters=RANDOM), {})
    assert {p.config.freeze_depth for p in probes} == {0, 2, 4}
    rates = [p.config.learning_rate for p in probes]
    assert min(rates) == pytest.approx(1e-5, rel=1e-3) and max(rates) == pytest.approx(1e-3, rel=1e-3)


def test_a_range_that_leaves_the_knob_is_found_by_its_ends():
    spec = spec_of(method="random", parameters={"head_dropout": {"min": 0.0, "max": 1.5}})
    with pytest.raises(ConfigError, match="head_dropout = 1.49"):
        probe_points(spec, {})


def test_the_identity_changes_with_the_search_and_not_with_its_name():
    spec = spec_of()
    assert spec_of(name="other", description="d", project="p").identity(0) == spec.identity(0)
    assert spec_of(["seed=[1]"]).identity(0) != spec.identity(0)
    assert spec_of(method="random").identity(1) != spec_of(method="random").identity(2)


def test_the_schema_covers_wandb_s_eighteen_distributions():
    assert len(SCHEMA) == 18
    example = {"value": 1, "values": [1, 2], "probabilities": [0.5, 0.5], "min": 1, "max": 2}
    for distribution, (required, _) in SCHEMA.items():
        problems = []
        body = {"distribution": distribution, **{key: example[key] for key in required}}
        assert isinstance(parse_parameter("x", body, problems), Parameter), problems
        assert yaml.safe_load(yaml.safe_dump(body)) == body
