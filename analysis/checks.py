"""What a reader must know before the curve: every departure from the protocol, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from analysis.curves import Curve
from analysis.load import Loaded


class Warning(NamedTuple):
    """`kind` is stable and machine-readable; `text` is a sentence."""

    kind: str
    text: str


def all_warnings(loaded: Loaded, curves: Sequence[Curve]) -> list[Warning]:
    found = [Warning("damaged-record", text) for text in loaded.problems]
    for curve in curves:
        for warning in check_curve(curve):
            found.append(Warning(warning.kind, f"{curve.name}: {warning.text}" if curve.name else warning.text))
    return list(dict.fromkeys(found))


def check_curve(curve: Curve) -> Iterator[Warning]:
    for arm, missing in curve.missing.items():
        seeds = ", ".join(f"seed {seed} {reason}" for seed, reason in missing.items())
        yield Warning("missing-seeds", f"{arm.name}: {seeds}")
