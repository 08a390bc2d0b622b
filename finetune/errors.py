"""Every error that a user can cause, with the exit code that tells a script what happened."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

EXIT_CODES = (
    "exit codes: 0 done; 1 the trial failed; 2 wrong command or configuration; 3 the sweep ended with failed trials; "
    "4 wrong data; 5 environment (disk, missing model, no network); 130, 143 interrupted"
)


class FinetuneError(Exception):
    """A problem that is told in a sentence; the command line prints it without a traceback."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One violation: which field, what it was, what is allowed."""

    field: str
    value: object
    allowed: str

    def __str__(self) -> str:
        return f"{inert(self.field)} = {shown(self.value)}: {inert(self.allowed)}"


def too_small(least: Mapping[str, int], values: Mapping[str, Any], dashes: str = "") -> list[Problem]:
    """A problem for each of the `values` that is no integer of at least `least`; named with `dashes` before it."""
    return [Problem(dashes + name, values[name], f"allowed: an integer >= {low}") for name, low in least.items()
            if name in values and (isinstance(values[name], bool) or not isinstance(values[name], int)
                                   or values[name] < low)]


class ConfigError(FinetuneError):
    """The command or the configuration is wrong. Holds every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem | str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(FinetuneError):
    """The data is wrong."""

    exit_code = 4


class EnvironmentProblem(FinetuneError):
    """Disk, missing model, no network: not the configuration's fault."""

    exit_code = 5


class TrialFailed(FinetuneError):
    """The trial ran and failed; `kind` is machine-readable: non-finite, leak, out-of-memory, timeout, crash."""

    exit_code = 1

    def __init__(self, kind: str, message: str, record: Any = None):
        self.kind = kind
        self.record = record  # the published TrialRecord, where there is one
        super().__init__(message)


class Interrupted(FinetuneError):
    """A signal ended the work; `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int, note: str = ""):
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}" + (f"; {note}" if note else ""))


def inert(text: str) -> str:
    """`text` without what would move a terminal's cursor or hide: control and format characters are escaped."""
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
                   for char in text)


def shown(value: object, limit: int = 80) -> str:
    """`value` as it can safely stand in one line of a message: quoted, control characters escaped, cut."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(name: str, valid: Iterable[str], count: int = 1) -> str:
    """'; did you mean X?' for the nearest of `valid`, or an empty string."""
    near = difflib.get_close_matches(str(name), [str(v) for v in valid], n=count, cutoff=0.55)
    return f"; did you mean {' or '.join(near)}?" if near else ""
