"""An offline sweep as a sweep of W&B, which agents continue where it stopped.

Runs that were recorded offline go up with `wandb sync`; trials that W&B never saw, or not whole, are told from their
records. Then `wandb sweep -R RUN …` makes a sweep of the same YAML with these runs in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.config import TrialConfig
from finetune.errors import ConfigError, EnvironmentProblem
from finetune.files import atomic_write
from finetune.results import RecordStore, TrialRecord

STATE_FILE = Path("wandb") / "synced.json"
COMMAND = ["accelerate", "launch", "-m", "finetune.train", "${args}"]
PROGRAM = "finetune.train"


def own_project(records: Sequence[TrialRecord]) -> str:
    """The project that the sweep named, else the one that a trial would go to."""
    from finetune.tracking.client import usual_project

    return next((r.config["wandb_project"] for r in records if r.config.get("wandb_project")), None) or usual_project()


class State:
    """What has been sent: DIR/wandb/synced.json, written after every run."""

    def __init__(self, directory: Path):
        self.path = directory / STATE_FILE
        content = self._read()
        self.runs: dict[str, str] = content.get("runs", {})  # trial_id -> W&B run id
        self.sweep: str | None = content.get("sweep")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) and isinstance(content.get("runs"), dict) else {}

    def remember(self, record: TrialRecord, run_id: str) -> None:
        self.runs[record.trial_id] = run_id
        self._write()

    def remember_sweep(self, sweep: str) -> None:
        self.sweep = sweep
        self._write()

    def _write(self) -> None:
        atomic_write(self.path, json.dumps({"runs": self.runs, "sweep": self.sweep}, indent=1) + "\n", "what was sent")


# -- runs --------------------------------------------------------------------------------------------------------------

def send(record: TrialRecord, store: RecordStore, *, project: str, entity: str | None) -> str:
    """Bring one trial to W&B; returns the id of its run."""
    run = record.wandb_run or {}
    if run.get("mode") == "online" and "lost" not in run:
        return run["id"]
    folder = recorded_run(store.root, run) if run.get("mode") == "offline" else None
    if folder is not None and "lost" not in run:
        options = ["--project", project, *(["--entity", entity] if entity else [])]
        wandb_command("sync", *options, str(folder))
        return run["id"]
    return replay(record, store, run.get("id") or record.trial_id[:16], project=project, entity=entity)


def recorded_run(directory: Path, run: Mapping[str, Any]) -> Path | None:
    """The folder of a run that was recorded offline."""
    if not re.fullmatch(r"[\w-]+", str(run.get("id"))):
        return None
    return next(iter(sorted((directory / "wandb").glob(f"offline-run-*-{run['id']}"))), None)


def replay(record: TrialRecord, store: RecordStore, run_id: str, *, project: str, entity: str | None) -> str:
    from finetune.tracking import Tracker

    knobs = {name: value for name, value in record.config.items() if name in TrialConfig.model_fields}
    knobs |= {"output_dir": str(store.root), "wandb_project": project, "wandb_entity": entity}
    tracker = Tracker(TrialConfig.from_mapping(knobs), sweep=record.sweep, protocol=record.protocol)
    tracker.replay(record, store.predictions(record) if record.files else {}, run_id)
    identity = tracker.client.identity()
    if identity is None or identity["mode"] != "online" or "lost" in identity:
        raise EnvironmentProblem(f"trial {record.trial_id[:12]} did not reach W&B; run the same command again to go on")
    return run_id


def check_login() -> None:
    """Raises EnvironmentProblem when W&B is switched off or this process has no API key."""
    from finetune.tracking.client import configured_mode, has_key

    mode = configured_mode()
    if mode != "online":
        remedy = "unset WANDB_MODE" if "WANDB_MODE" in os.environ else "run `wandb online`"
        raise EnvironmentProblem(f"W&B's mode is {mode}: nothing can be sent; {remedy}")
    if not has_key():
        raise EnvironmentProblem("no API key for W&B: run `wandb login`, or set WANDB_API_KEY")


# -- the sweep ---------------------------------------------------------------------------------------------------------

def make_sweep(plan: Mapping[str, Any], records: Sequence[TrialRecord], state: State, directory: Path, *, project: str,
               entity: str | None) -> str:
    """`wandb sweep -R …`; returns ENTITY/PROJECT/SWEEP. Failed trials are left out: agents try them again."""
    content = sweep_of(plan, records)
    path = directory / "wandb" / "sweep.yaml"
    atomic_write(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "the sweep's YAML")
    settled = [state.runs[record.trial_id] for record in records if record.state != "failed" and _belongs(record)]
    options = ["--project", project, *(["--entity", entity] if entity else [])]
    output = wandb_command("sweep", *options, *(part for run in settled for part in ("-R", run)), str(path))
    found = re.search(r"wandb agent (\S+)", output)
    if not found:
        raise EnvironmentProblem(f"`wandb sweep` did not say which sweep it made:\n{output}")
    return found.group(1)


def _belongs(record: TrialRecord) -> bool:
    """Confirmation runs are no points of the sweep."""
    return record.protocol.get("phase", "tune") == "tune"


def sweep_of(plan: Mapping[str, Any], records: Sequence[TrialRecord]) -> dict[str, Any]:
    """The YAML as it was run: overrides applied, nested again, and the directory in which its trials are.

    With `output_dir` an agent on this machine finds the trials that are on disk; the runs have the same value.
    """
    spec = dict(plan["spec"])
    parameters = nested(spec.pop("parameters"))
    parameters.setdefault("output_dir", {"value": records[0].config.get("output_dir")})
    return {"program": PROGRAM, "command": COMMAND, **spec, "name": plan["name"], "parameters": parameters}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"optimizer.beta2": body} -> {"optimizer": {"parameters": {"beta2": body}}}, as W&B compares nested configs."""
    parameters: dict[str, Any] = {}
    for name, body in flat.items():
        *groups, last = name.split(".")
        target = parameters
        for group in groups:
            target = target.setdefault(group, {"parameters": {}})["parameters"]
        target[last] = dict(body)
    return parameters


def read_plan(directory: Path) -> dict[str, Any] | None:
    """DIR/sweep.json, or None where no sweep was run (single trials)."""
    path = directory / "sweep.json"
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content["spec"]["parameters"], dict) and content["name"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a sweep's plan ({type(error).__name__}); --runs_only sends the runs") from error


def wandb_command(*arguments: str) -> str:
    """Run W&B's own command line; returns what it printed. Raises EnvironmentProblem with its last line."""
    done = subprocess.run([sys.executable, "-m", "wandb", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        last = (output.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"`wandb {arguments[0]}` failed: {last}")
    return output
