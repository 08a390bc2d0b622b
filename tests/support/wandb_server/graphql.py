"""As much of GraphQL as W&B's clients use: parse a document, then walk a tree of nodes with it.

A node is a mapping of field names to values or to functions of the field's arguments; `__typename` names its type.
A field that a node does not have is an error, as on a real server: the clients fall back to older queries then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(
    r"""[\s,]+|\#[^\n]*|(\.\.\.|[{}()\[\]:!=$@|]|\"(?:\\.|[^"\\])*\"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[_A-Za-z]\w*)"""
)
# Types that a fragment's condition accepts besides the type of its own name.
INTERFACES = {"ArtifactCollection": {"ArtifactSequence", "ArtifactPortfolio"}}
NOTHING = object()


class GraphQLError(Exception):
    """The query cannot be answered; the client gets the message with status 400 (or `status`)."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass
class Selection:
    """A field, or (with `fragment` or `inline` set) what a fragment brings in."""

    name: str = ""
    alias: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    selections: list[Selection] | None = None
    fragment: str | None = None
    condition: str | None = None


@dataclass
class Document:
    kind: str  # query or mutation
    name: str
    selections: list[Selection]
    fragments: dict[str, tuple[str, list[Selection]]]


class Parser:
    def __init__(self, text: str, variables: Mapping[str, Any]):
        self.tokens = [token for token in TOKEN.findall(text) if token]
        self.position = 0
        self.variables = dict(variables)

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def next(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1]

    def skip(self, token: str) -> bool:
        if self.peek() == token:
            self.position += 1
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.skip(token):
            raise GraphQLError(f"Syntax Error: expected {token!r}, found {self.peek()!r}")

    def document(self) -> Document:
        document, fragments = None, {}
        while self.peek():
            kind = self.next() if self.peek() != "{" else "query"
            if kind == "fragment":
                name, _, condition = self.next(), self.next(), self.next()
                fragments[name] = (condition, self.selection_set())
                continue
            name = self.next() if self.peek() not in "({" else ""
            self.declare_variables()
            selections = self.selection_set()
            document = document or Document(kind, name, selections, fragments)
        if document is None:
            raise GraphQLError("Syntax Error: no operation")
        return document

    def declare_variables(self) -> None:
        if not self.skip("("):
            return
        while not self.skip(")"):
            self.expect("$")
            name = self.next()
            self.expect(":")
            while self.peek() in {"[", "]", "!"} or re.match(r"[_A-Za-z]", self.peek()):
                self.next()
            if self.skip("="):
                self.variables.setdefault(name, self.value())

    def selection_set(self) -> list[Selection]:
        self.expect("{")
        selections = []
        while not self.skip("}"):
            selection, included = self.selection()
            if included:
                selections.append(selection)
        return selections

    def selection(self) -> tuple[Selection, bool]:
        if self.skip("..."):
            return self.spread()
        name = alias = self.next()
        if self.skip(":"):
            name = self.next()
        arguments = self.arguments()
        included = self.directives()
        inner = self.selection_set() if self.peek() == "{" else None
        return Selection(name, alias, arguments, inner), included

    def spread(self) -> tuple[Selection, bool]:
        if self.peek() not in {"on", "{", "@"}:
            name = self.next()
            return Selection(fragment=name), self.directives()
        condition = None
        if self.skip("on"):
            condition = self.next()
        included = self.directives()
        return Selection(condition=condition, selections=self.selection_set(), fragment=""), included

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        if self.skip("("):
            while not self.skip(")"):
                name = self.next()
                self.expect(":")
                given[name] = self.value()
        return {name: value for name, value in given.items() if value is not NOTHING}

    def directives(self) -> bool:
        included = True
        while self.skip("@"):
            name = self.next()
            condition = bool(self.arguments().get("if"))
            included = included and (condition if name == "include" else not condition)
        return included

    def value(self) -> Any:
        token = self.next()
        if token == "$":
            return self.variables.get(self.next(), NOTHING)
        if token == "[":
            return self.list_value()
        if token == "{":
            return self.object_value()
        constants = {"null": None, "true": True, "false": False}
        if token in constants:
            return constants[token]
        return token if re.match(r"[_A-Za-z]", token) else json.loads(token)

    def list_value(self) -> list[Any]:
        items = []
        while not self.skip("]"):
            items.append(self.value())
        return items

    def object_value(self) -> dict[str, Any]:
        content: dict[str, Any] = {}
        while not self.skip("}"):
            name = self.next()
            self.expect(":")
            content[name] = self.value()
        return {name: value for name, value in content.items() if value is not NOTHING}


def execute(text: str, variables: Mapping[str, Any], roots: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The `data` of an answer. `roots` has a node for "query" and one for "mutation"."""
    document = Parser(text, variables).document()
    return _walk(document.selections, roots[document.kind], document.fragments)


def _walk(selections: list[Selection], node: Mapping[str, Any], fragments: Mapping[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for selection in selections:
        if selection.fragment is not None:
            condition, inner = fragments.get(selection.fragment, (selection.condition, selection.selections))
            if _applies(condition, node):
                answer = _merge(answer, _walk(inner, node, fragments))
            continue
        value = _resolve(selection, node)
        answer = _merge(answer, {selection.alias: _project(selection, value, fragments)})
    return answer


def _applies(condition: str | None, node: Mapping[str, Any]) -> bool:
    typename = node.get("__typename")
    return condition is None or typename is None or typename == condition or typename in INTERFACES.get(condition, ())


def _resolve(selection: Selection, node: Mapping[str, Any]) -> Any:
    if selection.name not in node:
        raise GraphQLError(f'Cannot query field "{selection.name}" on type "{node.get("__typename", "?")}".')
    value = node[selection.name]
    return value(**selection.arguments) if callable(value) else value


def _project(selection: Selection, value: Any, fragments: Mapping[str, Any]) -> Any:
    if value is None or selection.selections is None:
        return value
    if isinstance(value, list):
        return [_project(selection, item, fragments) for item in value]
    return _walk(selection.selections, value, fragments)


def _merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Two selections of one field are one: fragments often repeat parts of each other."""
    merged = dict(left)
    for key, value in right.items():
        if isinstance(merged.get(key), dict) and isinstance(value, dict):
            value = _merge(merged[key], value)
        merged[key] = value
    return merged
