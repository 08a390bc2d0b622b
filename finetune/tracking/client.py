"""W&B's client behind a guard: what goes wrong with it is told once and never reaches the training."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError, FinetuneError, Problem, did_you_mean

INIT_SECONDS = 30.0  # to reach the server before the run is recorded offline instead
FINISH_SECONDS = 60.0  # to upload the rest at the end of a run
TRANSMIT_SECONDS = 5.0  # between posts in a sweep, where their answers bring the server's stop
PROJECT = "stellar-finetuning"
MODES = ("online", "offline", "disabled", "dryrun", "run", "shared")  # as wandb.Settings has them

_said: set[str] = set()
_unreachable = threading.Event()  # this process has waited for the server in vain: it does not wait again


def say_once(text: str) -> None:
    """One line to the user, however many trials this process runs."""
    if text not in _said:
        _said.add(text)
        _speak(text)


def _on_stderr(text: str) -> None:
    print(f"finetune: {text}", file=sys.stderr)


_speak: Callable[[str], None] = _on_stderr


def speak_through(speak: Callable[[str], None]) -> None:
    """Where a process's stderr is a log file that nobody watches, lines for the user take another way."""
    global _speak
    _speak = speak


def in_sweep() -> bool:
    """An agent of W&B started this process for one run of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def check_mode() -> None:
    """Before anything asks for W&B's mode: an empty WANDB_MODE is an unset one, for us and for what we start.

    Raises ConfigError for a mode that W&B does not know.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode == "":
        del os.environ["WANDB_MODE"]
    elif mode is not None and mode not in MODES:
        raise ConfigError([Problem("WANDB_MODE", mode, f"allowed: {', '.join(MODES)}{did_you_mean(mode, MODES)}")])


def wanted_mode() -> str:
    """online, offline or disabled. Never asks for a key; says it in one line when there is none."""
    mode = configured_mode()
    if mode == "online" and not has_key():
        say_once("W&B is off: no API key (`wandb login`, or WANDB_MODE=offline to record runs for later)")
        return "disabled"
    return "offline" if mode == "online" and _unreachable.is_set() else mode


def configured_mode() -> str:
    """online, offline or disabled, as WANDB_MODE and W&B's own settings have it. Raises ConfigError."""
    check_mode()
    if os.environ.get("WANDB_MODE") == "disabled":
        return "disabled"  # without a second for importing the client
    from wandb.sdk import wandb_setup

    mode = wandb_setup.singleton().settings.mode
    return {"dryrun": "offline", "offline": "offline", "disabled": "disabled"}.get(mode, "online")


def has_key() -> bool:
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def usual_project() -> str:
    """W&B's own rules (WANDB_PROJECT, what `wandb init` wrote), else ours."""
    with suppress(Exception):
        from wandb.sdk import wandb_setup

        return wandb_setup.singleton().settings.project or PROJECT
    return PROJECT


def output_folder(output_dir: str | None, sweep: str | None = None) -> Path:
    """Where a trial's results lie: its `output_dir`, else runs/ and the sweep's id (by default that of W&B's agent)."""
    return Path(output_dir or Path("runs") / (sweep or os.environ.get("WANDB_SWEEP_ID") or "single"))


class Client:
    """At most one W&B run. Every method is harmless when there is none, or none any more."""

    def __init__(self, folder: Path, *, wanted: bool = True):
        self.folder, self.wanted = folder, wanted
        self.run: Any = None
        self._identity: dict[str, Any] | None = None
        self._is_ours = True  # this client has opened the run, and so finishes it
        self.mode = "disabled"
        self.stop_wanted = threading.Event()  # the server asked this run to end
        self._watch: Any = None

    # -- beginning ---------------------------------------------------------------------------------------------------

    def open(self, **arguments: Any) -> None:
        """`arguments` are those of wandb.init, where a `project` of None means the usual one.

        A server that is not there makes it an offline run. Where W&B is not wanted nothing is opened.
        """
        if not self.wanted:
            return
        try:
            if self._join(arguments["config"]):
                return
            self.mode = wanted_mode()
            if self.mode != "disabled":
                self.run = self._init(self.mode, arguments)
                self._identity = self.guarded("naming the run", self._named)
        except FinetuneError:
            raise
        except Exception as error:
            self._open_offline(error, arguments)

    def _join(self, config: Mapping[str, Any]) -> bool:
        """Take part in a run that the caller has opened, as a function of wandb.agent may; it stays the caller's."""
        wandb = sys.modules.get("wandb")
        run = getattr(wandb, "run", None)
        if run is None:
            return False
        self.run, self._is_ours = run, False
        self.mode = "offline" if run.settings._offline else "online"
        run.config.update(dict(config), allow_val_change=True)
        self._identity = self.guarded("naming the run", self._named)
        return True

    def _open_offline(self, error: Exception, arguments: Mapping[str, Any]) -> None:
        if self.mode != "online":
            self.mode = "disabled"
            say_once(f"W&B cannot be started ({reason_of(error)}); training goes on without it")
            return
        _unreachable.set()
        say_once(f"W&B cannot be reached ({reason_of(error)}); runs are recorded in {self.folder / 'wandb'}: send them "
                 f"with `finetune sync {shlex.quote(str(self.folder))}`")
        _forget_service()  # it holds the id of the run that did not begin
        self.open(**arguments)

    def _init(self, mode: str, arguments: Mapping[str, Any]) -> Any:
        import wandb

        own = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        if in_sweep():
            own["x_file_stream_transmit_interval"] = TRANSMIT_SECONDS
        own = {name: value for name, value in own.items() if f"WANDB_{name.upper()}" not in os.environ}
        stop_wanted = self.stop_wanted
        # A function of its own: wandb copies its settings deeply, and an event's method would take its lock along.
        settings = wandb.Settings(stop_fn=lambda: stop_wanted.set(), finish_timeout_raises=True, **own)
        self.folder.mkdir(parents=True, exist_ok=True)
        if "project" in arguments:
            arguments = {**arguments, "project": arguments["project"] or usual_project()}
        # A sweep's run may be one that was preempted: it goes on where it was.
        resume = "allow" if mode == "online" and (arguments.get("id") or "WANDB_RUN_ID" in os.environ) else None
        run = wandb.init(mode=mode, dir=str(self.folder), settings=settings, resume=resume, **arguments)
        if mode == "online":
            self._watch = _look_for_stops(run, self.stop_wanted)
        return run

    # -- in between --------------------------------------------------------------------------------------------------

    def guarded(self, what: str, action: Callable[[Any], Any]) -> Any:
        """`action(run)`; a failure ends the tracking of this run, is told once, and gives None."""
        if self.run is None:
            return None
        try:
            return action(self.run)
        except FinetuneError:
            raise
        except Exception as error:
            self._lost(what, error)
            return None

    def _lost(self, what: str, error: Exception) -> None:
        folder = self.run_folder
        self.run = None
        self._identity = {**self._identity, "lost": what} if self._identity else None
        say_once(f"W&B is lost while {what} ({reason_of(error)}); training goes on, the record on disk is complete"
                 + (f", and `finetune sync {shlex.quote(str(self.folder))}` sends the rest later" if folder else ""))
        _forget_service()  # or its exit hook prints a traceback, and the next run finds this one

    @property
    def run_folder(self) -> Path | None:
        """Where W&B keeps what it has logged of this run."""
        with suppress(Exception):
            return Path(self.run.settings.sync_dir)
        return None

    def identity(self) -> dict[str, Any] | None:
        """What a record says of its run, with `lost` when W&B has not got all of it; None without a run."""
        return self._identity

    def _named(self, run: Any) -> dict[str, Any]:
        return {"id": run.id, "name": run.name, "project": run.project, "entity": run.entity or None,
                "url": run.url if self.mode == "online" else None, "mode": self.mode, "sweep_id": run.sweep_id or None}

    # -- end ---------------------------------------------------------------------------------------------------------

    def finish(self, exit_code: int) -> None:
        if self._watch is not None:
            self._watch.stop_soon()
        if self._is_ours:
            self.guarded("finishing the run", lambda run: run.finish(exit_code=exit_code))
        self.run = None


def _forget_service() -> None:
    import wandb

    with suppress(Exception):
        wandb.teardown()


def _look_for_stops(run: Any, stop_wanted: threading.Event) -> Any:
    """W&B looks every 15 s whether the server wants the run to stop; an agent waits 30 s before it kills.

    Uses W&B's own checker with a shorter period; a version of wandb that has none keeps to its 15 s.
    """
    with suppress(Exception):
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib.run_stopping import RunStopChecker

        checker = RunStopChecker(wandb_setup.singleton().asyncer, run._interface, stop_wanted.set, poll_interval=1.0)
        checker.start()
        return checker
    return None


def reason_of(error: Exception) -> str:
    """The first line of an error, without the addresses' credentials."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
