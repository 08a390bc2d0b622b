"""Several labels in one cell (`drama|comedy`, `0,1`, `a; b`): decided by evidence over the whole column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

SEPARATORS = ("|", ";", ",")
UNUSUAL = ("|", ";")  # in a class's own name; a comma is usual there ("Washington, DC")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


@dataclass(frozen=True)
class Joined:
    """What may join labels in this column.

    separators  one, or several that are each sure
    example    a cell that holds several
    sure       the column shows that what stands between the separators are labels
    likely     something speaks for it, which is worth a note: a piece that occurs again, or an unusual separator
    number     every joined cell may be a number with a decimal comma: nobody but the user knows
    """

    separators: str
    example: str
    sure: bool
    likely: bool
    number: bool = False


def parts(cell: str, separators: str) -> list[str]:
    """What stands between the separators, without the spaces around it and without empty pieces."""
    return [part.strip() for part in re.split(f"[{separators}]", cell) if part.strip()]


def joined_labels(values: Sequence[Any]) -> Joined | None:
    """The separators that join labels in a column, with their evidence; None where no cell holds one.

    Sure is a column where at least half of the pieces stand alone in a cell of their own, as no piece of
    "Washington, DC" does; and, for the separators that are unusual within a name, one where every piece occurs in
    two different cells on average, as labels do and pieces of one name do not.
    """
    cells = sorted({str(value).strip() for value in values if value is not None})
    found = [evidence for separator in SEPARATORS if (evidence := _evidence(cells, separator)) is not None]
    sure = [evidence for evidence in found if evidence.sure]
    if sure:
        return replace(sure[0], separators="".join(evidence.separators for evidence in sure))
    return found[0] if found else None


def _evidence(cells: Sequence[str], separator: str) -> Joined | None:
    several = [cell for cell in cells if len(parts(cell, separator)) > 1]
    if not several:
        return None
    pieces = [piece for cell in several for piece in set(parts(cell, separator))]
    distinct = set(pieces)
    alone = distinct & (set(cells) - set(several))
    by_themselves = len(distinct) > 1 and 2 * len(alone) >= len(distinct)
    recurring = separator in UNUSUAL and len(several) > 1 and len(pieces) >= 2 * len(distinct)
    number = separator == "," and all(_DECIMAL_COMMA.fullmatch(cell) for cell in several)
    likely = number or bool(alone) or len(pieces) > len(distinct) or separator in UNUSUAL
    return Joined(separator, several[0], (by_themselves or recurring) and not number, likely, number)


def all_decimal_commas(values: Sequence[Any]) -> bool:
    """Whether every value is text such as 0,5."""
    return all(isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()) for value in values)
