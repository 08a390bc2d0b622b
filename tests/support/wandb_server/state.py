"""What the server knows: projects' runs, sweeps, agents, artifacts and stored bytes. One lock guards it all."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ACTIVE = {"pending", "running", "preempting"}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}Z"


@dataclass
class Run:
    """A W&B run; `name` is what users call its id."""

    name: str
    entity: str
    project: str
    config: dict[str, Any] = field(default_factory=dict)  # {key: {"value": …}}
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)  # JSON lines, by offset
    events: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # name -> key of the stored bytes
    attributes: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, tags, …
    sweep: str | None = None
    agent: str | None = None
    state: str = "pending"
    exitcode: int | None = None
    stopped: bool = False  # the server wants it to end
    preempting: bool = False
    created: str = field(default_factory=now)
    heartbeat: float = field(default_factory=time.monotonic)
    connections: int = 0  # how often a client began or resumed it

    @property
    def id(self) -> str:
        return f"run:{self.project}:{self.name}"

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history if line]

    def values(self, metric: str) -> list[float]:
        """Every logged value of a metric, in order: hyperband's iterations."""
        return [row[metric] for row in self.rows() if isinstance(row.get(metric), int | float)]

    def params(self) -> dict[str, Any]:
        """The configuration without W&B's wrapping."""
        return {key: entry.get("value") if isinstance(entry, dict) else entry for key, entry in self.config.items()}

    def write_lines(self, name: str, offset: int, lines: Iterable[str]) -> None:
        """A chunk of a file stream: lines land at their offset, over whatever is there."""
        target = {"wandb-history.jsonl": self.history, "wandb-events.jsonl": self.events}.get(name, self.output)
        for index, line in enumerate(lines, offset):
            target.extend([""] * (index + 1 - len(target)))
            target[index] = line

    def ended(self, exitcode: int | None) -> None:
        """The client says that it is done, or (None) it is gone without a word."""
        self.exitcode = exitcode
        if exitcode == 0:
            self.state = "finished"
        elif self.preempting:
            self.state = "preempted"
        elif self.stopped:
            self.state = "killed"
        else:
            self.state = "crashed" if exitcode is None else "failed"


@dataclass
class Sweep:
    name: str
    entity: str
    project: str
    config: dict[str, Any]
    text: str
    state: str = "RUNNING"
    runs: list[str] = field(default_factory=list)
    requeue: list[str] = field(default_factory=list)  # preempted runs, waiting for an agent
    created: str = field(default_factory=now)

    @property
    def id(self) -> str:
        return f"sweep:{self.project}:{self.name}"


@dataclass
class Agent:
    id: str
    host: str
    sweep: str
    running: set[str] = field(default_factory=set)
    total: int = 0
    created: str = field(default_factory=now)
    heartbeat: float = field(default_factory=time.monotonic)


@dataclass
class Artifact:
    id: str
    run: str
    type: str
    collection: str
    version: int
    digest: str
    metadata: str | None
    aliases: list[str]
    state: str = "PENDING"
    manifest: str = ""  # key of the stored bytes
    files: dict[str, str] = field(default_factory=dict)  # name -> key
    created: str = field(default_factory=now)


class State:
    def __init__(self, entity: str = "tester"):
        self.entity = entity
        self.lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Agent] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.blobs: dict[str, bytes] = {}
        self._numbers = itertools.count(1)

    def number(self) -> int:
        return next(self._numbers)

    def new_name(self) -> str:
        return secrets.token_hex(4)

    def run(self, name: str | None) -> Run | None:
        """By name, or by storage id."""
        return self.runs.get((name or "").rsplit(":", 1)[-1])

    def sweep(self, name: str | None) -> Sweep | None:
        return self.sweeps.get((name or "").rsplit(":", 1)[-1])

    def runs_of(self, sweep: str) -> list[Run]:
        return [self.runs[name] for name in self.sweeps[sweep].runs]

    def blob_key(self) -> str:
        key = f"blob{self.number()}"
        self.blobs[key] = b""
        return key

    def file_stream(self, run: Run, body: Mapping[str, Any]) -> dict[str, Any]:
        """One POST of a run's file stream; the answer tells the client whether it is wanted any longer."""
        for name, chunk in (body.get("files") or {}).items():
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
            else:
                run.write_lines(name, chunk.get("offset", 0), chunk.get("content", []))
        run.heartbeat = time.monotonic()
        if "preempting" in body:
            run.preempting = bool(body["preempting"])
        if run.state in ACTIVE:
            run.state = "preempting" if run.preempting else "running"
        if body.get("complete"):
            run.ended(body.get("exitcode"))
        return {"stopped": True} if run.stopped else {}
