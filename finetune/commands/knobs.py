"""Every knob in words: for `finetune train --help`, and the table of docs/knobs.md."""

from __future__ import annotations

import textwrap
import typing

from finetune.config import KNOBS, Knob
from finetune.values import options_of


def knob_help(width: int = 100) -> str:
    """Every knob with its doc, unit, range and default, grouped; for --help."""
    lines = []
    for group in dict.fromkeys(entry.group for entry in KNOBS.values()):
        lines.append(f"\n{group}:")
        for entry in (e for e in KNOBS.values() if e.group == group):
            unit = f" [{entry.unit}]" if entry.unit else ""
            text = f"{entry.doc}{unit}. {entry.allowed}; default: {entry.default}"
            lines.append(f"  --{entry.name}")
            lines += textwrap.wrap(text, width, initial_indent="        ", subsequent_indent="        ")
    return "\n".join(lines)


def knob_table() -> str:
    """The docs' table in Markdown: knob, what it does, range, default, whether it is in the trial_id."""
    rows = ["| knob | what it does | allowed | default | in the trial_id |", "|---|---|---|---|---|"]
    for entry in KNOBS.values():
        unit = f" ({entry.unit})" if entry.unit else ""
        cells = [f"`{entry.name}`", entry.doc + unit, entry.allowed, f"`{entry.default}`", entry.in_trial_id]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


_TYPES_HEAD = '''"""The knobs as keywords, for type checkers and editors; generated (`UPDATE_DOCS=1`)."""

from __future__ import annotations

from os import PathLike
from typing import Literal, TypedDict

'''
_PATHS = ("dataset_name", "model_name_or_path", "output_dir")


def knob_types() -> str:
    """finetune/interface/knobs.py: a TypedDict of all knobs, one of every group of nested ones."""
    groups: dict[str, list[Knob]] = {}
    for entry in KNOBS.values():
        groups.setdefault(entry.name.rpartition(".")[0], []).append(entry)
    nested = [_typed_dict(f"{name.capitalize()}Knobs", entries) for name, entries in groups.items() if name]
    extra = "".join(f"    {name}: {name.capitalize()}Knobs\n" for name in groups if name)
    return _TYPES_HEAD + "\n".join([*nested, _typed_dict("Knobs", groups[""]) + extra])


def _typed_dict(name: str, entries: list[Knob]) -> str:
    lines = [f"\nclass {name}(TypedDict, total=False):"]
    for entry in entries:
        lines.append(f"    {entry.name.rpartition('.')[2]}: {_type_text(entry)}")
        default = "" if "default:" in entry.doc else f" Default: {entry.default}."
        doc = f'"""{entry.doc[0].upper()}{entry.doc[1:]}.{default}"""'
        lines += textwrap.wrap(doc, 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _type_text(entry: Knob) -> str:
    options = ["None" if option is type(None) else option.__name__ if isinstance(option, type) and
               not typing.get_args(option) else str(option).replace("typing.", "").replace("'", '"')
               for option in options_of(entry.annotation)]
    text = " | ".join(options)
    return text.replace("str", "str | PathLike[str]", 1) if entry.name in _PATHS else text
