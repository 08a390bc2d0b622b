"""Every knob in words: for `finetune train --help`, and the table of docs/knobs.md."""

from __future__ import annotations

import textwrap

from finetune.config import KNOBS


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
