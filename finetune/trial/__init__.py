"""One trial, from configuration to record. Names are imported on first use: a view needs no torch."""

from importlib import import_module
from typing import Any

_HOME = {
    "TrialOutcome": "state", "run_trial": "recipe",
    "ResolvedTrial": "resolve", "resolve_trial": "resolve",
    "build_classifier": "build", "encode_splits": "build", "audit": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
