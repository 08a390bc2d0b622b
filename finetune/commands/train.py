"""The command line of a trial: what people type, and what `wandb agent` sends through any of W&B's macros."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.commands.knobs import knob_help
from finetune.config import KNOBS
from finetune.errors import EXIT_CODES, ConfigError
from finetune.values import decode, options_of

FLAGS = {"--force": "train even when a complete record exists", "--json": "print the record as JSON on stdout"}
GROUPS = frozenset(name.rsplit(".", 1)[0] for name in KNOBS if "." in name)


def help_text() -> str:
    return "\n".join(["usage: finetune train [--KNOB=VALUE ...] [--force] [--json]\n",
                      *(f"  {name:10} {doc}" for name, doc in FLAGS.items()), knob_help(), EXIT_CODES])


def parse_argv(argv: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """(knobs, flags). Raises ConfigError with every token that is none of what W&B's macros write.

    --name=value (${args}), --name value (${args_no_equals}), --name alone for true (${args_no_boolean_flags}),
    name=value (${args_no_hyphens}), one JSON object (${args_json}), the path of a JSON file (${args_json_file}).
    """
    knobs: dict[str, Any] = {}
    flags: set[str] = set()
    problems: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if token in FLAGS:
            flags.add(token)
            continue
        try:
            given = _many(token) if _is_many(token) else [_one(token, tokens)]
        except ValueError as error:
            problems.append(str(error))
            continue
        for name, value in given:
            if name in knobs and not _same_value(name, knobs[name], value):
                problems.append(f"--{name} is given twice")
            knobs[name] = value
    if problems:
        raise ConfigError(problems)
    return knobs, flags


def _is_many(token: str) -> bool:
    """A JSON object, or the path of a JSON file."""
    return token.lstrip().startswith("{") or (not token.startswith("-") and "=" not in token
                                              and token.endswith(".json"))


def _many(token: str) -> list[tuple[str, Any]]:
    try:
        content = json.loads(token if token.lstrip().startswith("{") else Path(token).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{token!r} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{token!r} is not JSON: {error}; allowed: an object of knobs") from error
    if not isinstance(content, dict):
        raise ValueError(f"{token!r} is no JSON object of knobs, such as {{\"seed\": 1}}")
    return list(content.items())


def _one(token: str, following: list[str]) -> tuple[str, str]:
    """One knob; a value that stands in the next token is taken from `following`. Raises ValueError."""
    if token.startswith(("+", "~")):
        raise ValueError(f"{token!r} is Hydra's syntax (${{args_append_hydra}}, ${{args_override_hydra}}), which is "
                         "not read here; write ${args} in the sweep's command")
    name, equals, value = token.removeprefix("--").partition("=")
    if not name or name.startswith("-") or not (equals or token.startswith("--")):
        raise ValueError(f"{token!r} is not an option; write --name=value")
    if equals:
        return name, value
    if name in KNOBS and bool in options_of(KNOBS[name].annotation):
        return name, following.pop(0) if following and _reads(name, following[0]) else "True"
    if not following or following[0].startswith("--"):
        raise ValueError(f"--{name} has no value; write --{name}=value")
    return name, following.pop(0)


def _reads(name: str, text: str) -> bool:
    """Whether `text` is a value of the knob."""
    try:
        decode(text, KNOBS[name].annotation)
    except ValueError:
        return False
    return True


def _same_value(name: str, first: Any, second: Any) -> bool:
    """An agent that resumes a run passes its whole configuration, what the command itself says included."""
    try:
        return decode(first, KNOBS[name].annotation) == decode(second, KNOBS[name].annotation)
    except (KeyError, ValueError):
        return first == second
