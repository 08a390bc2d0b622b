"""Values as people and W&B write them, in YAML or on a command line -> a knob's type. One decoder for both."""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from finetune.errors import did_you_mean


def decode(value: Any, annotation: Any) -> Any:
    """A YAML or argv value as the knob's type: 4, "4" and "4.0" are one integer; "None" is None.

    Raises ValueError, saying what is wrong, when no reading fits.
    """
    options = options_of(annotation)
    if value is None or (isinstance(value, str) and value.strip() in {"None", "null", "~"}):
        if type(None) in options:
            return None
        raise ValueError("must not be None")
    complaint = "wrong type"
    for option in options:
        if option is type(None):
            continue
        try:
            return _decode_one(value, option)
        except ValueError as error:
            complaint = str(error)
    raise ValueError(complaint)


def _decode_one(value: Any, option: Any) -> Any:
    origin = typing.get_origin(option)
    if origin is Literal:
        return _decode_choice(value, typing.get_args(option))
    if origin is list:
        return _decode_list(value)
    return {bool: _decode_bool, int: _decode_int, float: _decode_float, str: _decode_text}[option](value)


def _decode_choice(value: Any, choices: tuple[str, ...]) -> str:
    # YAML 1.1 reads a bare `no` as False, and W&B's agent writes that as "False"; the user wrote "no".
    text = "no" if (value is False or value == "False") and "no" in choices else value
    if str(value) in {"True", "False"} and str(value).lower() in choices:  # likewise with true and false
        text = str(value).lower()
    if not isinstance(text, str) or text not in choices:
        raise ValueError("not one of the choices" + did_you_mean(str(value), choices))
    return text


def _decode_list(value: Any) -> list[str]:
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())  # as W&B's agent writes a list
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = _flow_list(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of names")
    return list(value)


def _flow_list(text: str) -> Any:
    """YAML's own way without quotes: [fun, sad]."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError("not a list, which is written ['a', 'b']") from error


def _decode_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    raise ValueError("not True or False")


def _decode_int(value: Any) -> int:
    number = _decode_float(value)
    if not number.is_integer() or abs(number) > 2**53:
        raise ValueError("not an integer")
    return int(number)


def _decode_float(value: Any) -> float:
    if isinstance(value, list | tuple):
        raise ValueError("a list, not a number (a sweep writes a list as `values`)")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    if isinstance(value, str) and "_" in value:
        raise ValueError("not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError("not a number") from error
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError("not a finite number")
    return number


def _decode_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("not text")
    text = str(value)
    if text.strip().startswith("["):
        raise ValueError("a list, not text")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("control characters in text")
    return text


def as_mapping(value: Any) -> Mapping[str, Any] | None:
    """W&B sends a nested parameter as Python's repr: --optimizer={'beta2': 0.98}."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if not isinstance(value, Mapping):
        return None
    return {str(key): inner for key, inner in value.items()}


def options_of(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)
