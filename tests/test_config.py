"""TrialConfig: one strict decoder for YAML and argv, every violation reported together."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune.commands.knobs import knob_help, knob_table
from finetune.config import KNOBS, NEVER, TrialConfig
from finetune.errors import ConfigError
from finetune.train import parse_argv

DOCS = Path(__file__).parents[1] / "docs"
KNOBS_PAGE = f"""# Knobs

Every knob of a trial, for `finetune train --NAME=VALUE`, for `parameters:` of a sweep file and for
`finetune sweep FILE --set NAME=VALUE`. This page is generated from `TrialConfig` (`finetune/config.py`);
`UPDATE_DOCS=1 make test` writes it anew.

The last column says whether a knob is part of the `trial_id`, which decides whether two trials are one: `yes`; `by
content` (what it names is hashed instead: the data's fingerprint, the digest of the weights); `no` (output, tracking,
and whatever changes no result).

{knob_table()}"""


def problems_of(**knobs):
    with pytest.raises(ConfigError) as caught:
        TrialConfig.from_mapping(knobs)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("written", "name", "value"), [
    ("freeze_depth: 4", "freeze_depth", 4),
    ('freeze_depth: "4"', "freeze_depth", 4),
    ("freeze_depth: 4.0", "freeze_depth", 4),
    ("freeze_depth: None", "freeze_depth", None),
    ("learning_rate: 1e-5", "learning_rate", 1e-5),  # PyYAML reads this as text
    ("learning_rate: 1", "learning_rate", 1.0),
    ("prefix_cache: false", "prefix_cache", False),
    ('prefix_cache: "True"', "prefix_cache", True),
    ("mixed_precision: no", "mixed_precision", "no"),  # YAML 1.1 reads this as False
    ("text_column: [question, answer]", "text_column", ["question", "answer"]),
    ("text_column: \"['question', 'answer']\"", "text_column", ["question", "answer"]),
    ("train_size: 0.5", "train_size", 0.5),
    ("train_size: 100", "train_size", 100),
    ("dataset_name: 20", "dataset_name", "20"),
    ("optimizer: {beta2: 0.98}", "optimizer.beta2", 0.98),
    ("optimizer.beta2: 0.98", "optimizer.beta2", 0.98),
    ("optimizer: \"{'beta2': 0.98}\"", "optimizer.beta2", 0.98),  # as wandb agent sends it
])
def test_yaml_and_argv_mean_the_same(written, name, value):
    raw = yaml.safe_load(written)
    argv = [f"--{key}={item}" for key, item in raw.items()]  # Python's str(), as wandb agent sends it

    from_yaml, from_argv = TrialConfig.from_mapping(raw), TrialConfig.from_mapping(parse_argv(argv)[0])

    assert from_yaml == from_argv
    assert from_yaml.get(name) == value and type(from_yaml.get(name)) is type(value)


@pytest.mark.parametrize(("knob", "value"), [
    ("freeze_depth", -2), ("freeze_depth", 1.5), ("freeze_depth", True), ("freeze_depth", "four"),
    ("learning_rate", 0), ("learning_rate", math.nan), ("learning_rate", "inf"), ("learning_rate", "1_0"),
    ("num_train_epochs", 0), ("num_train_epochs", None), ("pooling", "max"), ("seed", -1), ("seed", 2**32),
    ("train_size", 1.5), ("train_size", 0), ("prefix_cache", "yes"), ("prefix_cache", 1),
    ("text_column", ["a", "b", "c"]), ("text_column", ["a", "a"]), ("dataset_name", ""), ("dataset_name", "a\nb"),
    ("optimizer", 3), ("optimizer.beta1", 1),
])
def test_a_wrong_value_names_its_knob_and_what_is_allowed(knob, value):
    (problem,) = problems_of(**{knob: value})

    assert problem.startswith(f"{knob} = ") and "allowed" in problem and "\n" not in problem


@pytest.mark.parametrize("written", ["[fun, sad]", "['fun', 'sad']", ["fun", "sad"]])
def test_a_list_of_names_with_and_without_quotes(written):
    assert TrialConfig.from_mapping({"label_column": written}).label_column == ["fun", "sad"]


@pytest.mark.parametrize(("knob", "value", "reason"), [
    ("label_column", "[fun, sad", "a list, which is written ['a', 'b']"), ("label_column", "[1, 2]", "names"),
    ("freeze_depth", [0, 6], "a sweep writes a list as `values`"),
    ("test_size", 0, "a count (an integer >= 1) or a share"), ("test_size", 1.5, "a share below 1"),
])
def test_a_wrong_value_says_how_it_is_written(knob, value, reason):
    (problem,) = problems_of(**{knob: value})
    assert reason in problem


def test_all_violations_come_together_with_the_nearest_name():
    found = problems_of(freez_depth=2, learning_rate=-1, seed="x", pooling="men")

    assert len(found) == 4
    assert any("did you mean freeze_depth?" in problem for problem in found)
    assert any("did you mean mean?" in problem for problem in found)


def test_freeze_depth_and_strategy_exclude_each_other():
    assert "set one of the two" in problems_of(freeze_depth=2, strategy="full")[0]


def test_a_knob_given_twice_is_refused():
    assert "given twice" in problems_of(**{"optimizer": {"beta1": 0.8}, "optimizer.beta1": 0.9})[0]
    with pytest.raises(ConfigError, match="--seed is given twice"):
        parse_argv(["--seed=1", "--seed=2"])


def test_no_abbreviations():
    assert "no such knob" in problems_of(freeze=2)[0]


def test_a_replaced_copy_is_checked():
    config = TrialConfig().replace(freeze_depth=3, **{"optimizer.beta2": 0.95})

    assert (config.freeze_depth, config.optimizer.beta2) == (3, 0.95)
    with pytest.raises(ConfigError, match="seed = -1"):
        config.replace(seed=-1)


def test_every_knob_is_documented():
    text = knob_help()

    for knob in KNOBS.values():
        assert knob.doc and f"--{knob.name}\n" in text and f"default: {knob.default}" in " ".join(text.split())
    assert KNOBS["output_dir"].in_trial_id == NEVER


def test_help_names_every_knob_and_loads_no_torch(tmp_path):
    """Under a second is measured, not tested; that nothing heavy is imported is what makes it so."""
    code = ("import sys; from finetune.cli import main; main(['train', '--help']); "
            "print('HEAVY', sorted({'torch', 'transformers', 'datasets', 'wandb', 'pandas'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(DOCS.parent)})

    assert done.stdout.endswith("HEAVY []\n")
    assert all(f"--{name}" in done.stdout for name in KNOBS)


def test_the_docs_table_is_the_code_s():
    page = DOCS / "knobs.md"
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(KNOBS_PAGE, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == KNOBS_PAGE
