"""Reads YAML that somebody else may have written: no tags that build objects, no duplicate keys, no alias bombs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import ConfigError, shown

MAX_BYTES = 1_000_000
MAX_NODES = 100_000  # after aliases are expanded
MAX_DEPTH = 100

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def read_yaml(path: Path) -> Any:
    """The value of a YAML file. Raises ConfigError naming the file, and the line where there is one."""
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    if len(payload) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(payload)} bytes; a sweep file has at most {MAX_BYTES}")
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text, made of dict, list, str, int, float, bool and None only."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, source)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        where = _where(getattr(error, "problem_mark", None))
        raise ConfigError(f"{source}{where}: not YAML: {_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{source}: not YAML: {shown(str(error))}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _reason(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _where(mark: Any) -> str:
    return f", line {mark.line + 1}" if mark is not None else ""


def _check_nodes(root: yaml.Node, source: str) -> None:
    """Refuse what a sweep never needs, before any value is built: the expanded size is known from the node graph."""
    sizes: dict[int, float] = {}

    def size(node: yaml.Node, ancestors: frozenset[int]) -> float:
        if id(node) in ancestors:
            raise ConfigError(f"{source}{_where(node.start_mark)}: an alias that contains itself")
        if len(ancestors) > MAX_DEPTH:
            raise ConfigError(f"{source}{_where(node.start_mark)}: nested more than {MAX_DEPTH} deep")
        if id(node) not in sizes:
            _check_tag(node, source)
            children = _children(node, source)
            inside = ancestors | {id(node)}
            sizes[id(node)] = 1 + math.fsum(size(child, inside) for child in children)
        return sizes[id(node)]

    if size(root, frozenset()) > MAX_NODES:
        raise ConfigError(f"{source}: more than {MAX_NODES} values once its aliases are expanded")


def _check_tag(node: yaml.Node, source: str) -> None:
    if node.tag not in _PLAIN_TAGS:
        name = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise ConfigError(f"{source}{_where(node.start_mark)}: {shown(name)}: only plain values "
                          "(text, numbers, true, false, null, lists, mappings) are allowed")


def _children(node: yaml.Node, source: str) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{source}{_where(key.start_mark)}: a key must be text")
        if key.value in seen:
            raise ConfigError(f"{source}{_where(key.start_mark)}: the key {shown(key.value)} appears twice")
        seen.add(key.value)
    return [child for pair in node.value for child in pair]
