"""How this process was started: by hand, by `accelerate launch` or `torchrun`, by an agent of W&B.

Imports torch only where several processes have to agree.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.training.processes import is_main_process, meet_others, process_count

_PR_SET_PDEATHSIG = 1
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set by torchrun, by accelerate launch
_PARAMETERS = "WANDB_SWEEP_PARAM_PATH"  # the file from which wandb.init fills wandb.config in a run of a sweep


def end_with_launcher() -> None:
    """SIGTERM to this process when its launcher dies, or the agent behind the launcher (Linux).

    An agent that stops a run signals only its direct child, and `accelerate launch` passes nothing on. A process that
    was started by hand is left alone: it may outlive its shell.
    """
    if sys.platform != "linux":
        return
    if _PARAMETERS in os.environ:
        _watch(_ancestors_up_to_agent())
    elif any(name in os.environ for name in _LAUNCHERS):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ancestors_up_to_agent() -> list[int]:
    """Process ids from the parent to the agent, which is the first that was not started with this run's parameters."""
    mark = f"{_PARAMETERS}={os.environ[_PARAMETERS]}".encode()
    found: list[int] = []
    process = os.getpid()
    with suppress(OSError, ValueError, IndexError):
        while mark in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            # The name in parentheses may hold anything: the parent is the second field after it.
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if process <= 1:
                break
            found.append(process)
    return found


def _watch(processes: list[int]) -> None:
    """A thread that sleeps until one of `processes` has ended."""
    handles = []
    for process in processes:
        with suppress(OSError):
            handles.append(os.pidfd_open(process))

    def wait() -> None:
        select.select(handles, [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    if handles:
        threading.Thread(target=wait, name="launcher watch", daemon=True).start()


def agreed_knobs(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """`knobs` from argv, completed with what the agent of a sweep drew and the command left out."""
    return agreed(lambda: _with_parameters(knobs))


def agreed(decide: Callable[[], Any]) -> Any:
    """What `decide` says on the main process, on every process: the others may run where there is no agent."""
    told = [decide() if is_main_process() else None]
    if process_count() > 1:
        from accelerate.utils import broadcast_object_list

        meet_others()
        broadcast_object_list(told)
    return told[0]


def _with_parameters(knobs: Mapping[str, Any]) -> dict[str, Any]:
    drawn = sweep_parameters()
    passed = bool(drawn.keys() & knobs.keys())  # then a parameter that is no knob is the command's own affair
    merged = {**{name: value for name, value in drawn.items() if not passed or _is_knob(name, knobs)}, **knobs}
    return {name: value for name, value in merged.items() if name not in _not_knobs(drawn)}


def _is_knob(name: str, given: Mapping[str, Any]) -> bool:
    """Whether it is a knob, or a group of knobs of which the command gives none by itself."""
    from finetune.config import KNOBS

    inside = f"{name}."
    return name in KNOBS or (any(knob.startswith(inside) for knob in KNOBS)
                             and not any(knob.startswith(inside) for knob in given))


def sweep_parameters() -> dict[str, Any]:
    """wandb.config as an agent prepared it for this run; empty outside a sweep."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:  # in a function that called wandb.init itself
        return dict(wandb.run.config)
    path = os.environ.get(_PARAMETERS)
    if not path or not os.path.isfile(path):
        return {}
    import yaml

    content = yaml.safe_load(Path(path).read_text()) or {}
    return {str(name): entry["value"] for name, entry in content.items()
            if isinstance(entry, Mapping) and "value" in entry}


def _not_knobs(drawn: Mapping[str, Any]) -> tuple[str, ...]:
    """A resumed run's own bookkeeping comes back among its arguments (wandb#4237)."""
    if not drawn:
        return ()
    from finetune.tracking.mirror import NOT_KNOBS

    return NOT_KNOBS
