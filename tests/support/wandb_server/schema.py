"""The GraphQL nodes that wandb 0.31's `wandb sweep`, `wandb agent`, wandb-core and wandb.Api() ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from .artifacts import Artifacts
from .engine import Engine, commands_text
from .filters import matches, ordered
from .graphql import GraphQLError
from .state import Agent, Run, State, Sweep

Node = dict[str, Any]
PROJECT_NUMBER = "1"


def connection(nodes: Sequence[Node], first: int | None = None, after: str | None = None) -> Node:
    """A page of nodes, with cursors that count from the start."""
    start = int(after or 0)
    end = len(nodes) if first is None else min(len(nodes), start + first)
    edges = [{"node": node, "cursor": str(index + 1)} for index, node in enumerate(nodes[start:end], start)]
    page = {"__typename": "PageInfo", "endCursor": str(end) if edges else None, "hasNextPage": end < len(nodes)}
    return {"edges": edges, "pageInfo": page, "totalCount": len(nodes)}


def taking_input(change: Callable[..., Node]) -> Callable[..., Node]:
    """A mutation as GraphQL calls it: with one argument, `input`."""
    return lambda input: change(**input)


class Schema:
    """`roots` is what graphql.execute walks."""

    def __init__(self, state: State, engine: Engine, url: Callable[[str], str]):
        self.state, self.engine, self.url = state, engine, url
        self.artifacts = Artifacts(state, url, self.project_node)
        self.roots = {"query": self._queries(), "mutation": self._mutations()}

    def _queries(self) -> Node:
        return {
            "__typename": "Query",
            "viewer": self.viewer(),
            "serverInfo": {"__typename": "ServerInfo", "features": []},
            "entity": self.entity_node,
            "project": lambda name=None, entityName=None: self.project_node(entityName, name),
            "model": lambda name=None, entityName=None: self.project_node(entityName, name),
            **self.artifacts.queries(),
        }

    def _mutations(self) -> Node:
        changes = {
            "upsertSweep": self.upsert_sweep, "createAgent": self.create_agent, "agentHeartbeat": self.heartbeat,
            "upsertBucket": self.upsert_run, "createRunFiles": self.create_run_files, "stopRun": self.stop_run,
            **self.artifacts.mutations(),
        }
        return {"__typename": "Mutation", **{name: taking_input(change) for name, change in changes.items()}}

    def viewer(self) -> Node:
        return {"__typename": "User", "id": "user:1", "entity": self.state.entity, "username": self.state.entity,
                "name": self.state.entity, "email": "", "flags": "{}", "admin": False, "deletedAt": None,
                "teams": connection([]), "apiKeys": connection([])}

    def entity_node(self, name: str | None = None) -> Node:
        return {"__typename": "Entity", "id": f"entity:{name}", "name": name or self.state.entity,
                "organization": None, "user": None, "isTeam": False, "xxhashDigestsEnabled": False}

    def project_node(self, entity: str | None, name: str | None) -> Node:
        entity, name = entity or self.state.entity, name or "uncategorized"

        def runs() -> list[Run]:
            return [run for run in self.state.runs.values() if (run.entity, run.project) == (entity, name)]

        def chosen(filters: str | None) -> list[Run]:
            return [run for run in runs() if matches(run, json.loads(filters or "{}"))]

        def page(filters: str = "{}", order: str | None = None, **page: Any) -> Node:
            return connection([self.run_node(run) for run in ordered(chosen(filters), order)], **page)

        def run(name: str, missingOk: bool = False) -> Node | None:
            found = self.state.run(name)
            return self.run_node(found) if found and found.connections else None

        def sweeps(first: int | None = None, after: str | None = None, **_: Any) -> Node:
            own = [s for s in self.state.sweeps.values() if (s.entity, s.project) == (entity, name)]
            return connection([self.sweep_node(sweep) for sweep in own], first, after)

        def sweep(sweepName: str) -> Node | None:
            found = self.state.sweep(sweepName)
            return self.sweep_node(found) if found and (found.entity, found.project) == (entity, name) else None

        return {
            "__typename": "Project", "id": f"project:{name}", "internalId": PROJECT_NUMBER, "name": name,
            "entity": self.entity_node(entity), "entityName": entity, "readOnly": False, "createdAt": None,
            "runCount": lambda filters="{}": len(chosen(filters)), "runs": page, "run": run, "bucket": run,
            "totalSweeps": lambda: len(sweeps()["edges"]), "sweeps": sweeps, "sweep": sweep,
            **self.artifacts.project_fields(),
        }

    def run_node(self, run: Run) -> Node:
        own = run.attributes

        def history(samples: int | None = None, minStep: int = 0, maxStep: int = 2**62) -> list[str]:
            return [json.dumps(row) for row in run.rows() if minStep <= row.get("_step", 0) < maxStep][:samples]

        return {
            "__typename": "Run", "id": run.id, "name": run.name, "projectId": PROJECT_NUMBER,
            "project": lambda: self.project_node(run.entity, run.project),
            "displayName": own.get("displayName") or run.name, "sweepName": run.sweep, "state": run.state,
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
            "group": own.get("groupName"), "jobType": own.get("jobType"), "tags": own.get("tags") or [],
            "commit": own.get("commit"), "notes": own.get("notes"), "description": own.get("description"),
            "readOnly": False, "createdAt": run.created, "heartbeatAt": run.created, "user": self.viewer(),
            "exitcode": run.exitcode, "failed": run.state in {"failed", "crashed"}, "stopped": run.stopped,
            "shouldStop": run.stopped, "running": run.state in {"running", "preempting"},
            "historyLineCount": len(run.history), "eventsLineCount": len(run.events), "logLineCount": len(run.output),
            "historyTail": json.dumps(run.history[-1:]), "eventsTail": json.dumps(run.events[-1:]),
            "wandbConfig": lambda keys=None: json.dumps(run.params().get("_wandb", {})),
            "historyKeys": lambda: history_keys(run), "history": history,
            "events": lambda samples=None: run.events[:samples],
            "sampledHistory": lambda specs: [sampled(run, json.loads(spec)) for spec in as_list(specs)],
            "parquetHistory": lambda liveKeys=None: {"parquetUrls": [], "liveData": []},
            "fileCount": len(run.files), "files": lambda **asked: self.run_files(run, **asked),
            "outputArtifacts": lambda first=None, after=None: connection(self.artifacts.of_run(run), first, after),
        }

    def run_files(self, run: Run, names: Sequence[str] = (), first: int | None = None, after: str | None = None,
                  **_: Any) -> Node:
        wanted = [name for name in run.files if not names or name in names]
        return connection([self.file_node(name, run.files[name]) for name in wanted], first, after)

    def file_node(self, name: str, key: str) -> Node:
        url = self.url(key)
        return {"__typename": "File", "id": key, "name": name, "displayName": name, "url": lambda upload=False: url,
                "directUrl": url, "sizeBytes": len(self.state.blobs[key]), "mimetype": "application/octet-stream",
                "updatedAt": None, "md5": None, "digest": None, "storagePath": key}

    def sweep_node(self, sweep: Sweep) -> Node:
        runs = self.state.runs_of(sweep.name)
        agents = [agent for agent in self.state.agents.values() if agent.sweep == sweep.name]
        return {
            "__typename": "Sweep", "id": sweep.id, "name": sweep.name, "displayName": sweep.config.get("name"),
            "method": sweep.config.get("method"), "state": sweep.state, "description": sweep.config.get("description"),
            "config": sweep.text, "createdAt": sweep.created, "updatedAt": sweep.created, "heartbeatAt": sweep.created,
            "earlyStopJobRunning": False, "bestLoss": None, "controller": None, "scheduler": None,
            "controllerRunName": None, "runCount": len(runs), "runCountExpected": None,
            "runs": lambda **_: connection([self.run_node(run) for run in runs]),
            "agents": lambda **_: connection([self.agent_node(agent) for agent in agents]),
            "agent": lambda agentName: next((self.agent_node(a) for a in agents if a.id == agentName), None),
        }

    def agent_node(self, agent: Agent) -> Node:
        return {"__typename": "Agent", "id": agent.id, "name": agent.id, "host": agent.host, "state": "RUNNING",
                "totalRuns": agent.total, "createdAt": agent.created, "heartbeatAt": agent.created}

    def upsert_sweep(self, id: str | None = None, config: str | None = None, state: str | None = None,
                     entityName: str | None = None, projectName: str | None = None,
                     priorRunsFilters: str | None = None, **_: Any) -> Node:
        sweep = self.state.sweep(id) if id else None
        if id and sweep is None:
            raise GraphQLError(f"no sweep {id}", 404)
        if sweep is None:
            sweep = Sweep(self.state.new_name(), entityName or self.state.entity, projectName or "uncategorized",
                          yaml.safe_load(config or "") or {}, config or "")
            self.state.sweeps[sweep.name] = sweep
            self._adopt(sweep, json.loads(priorRunsFilters or "{}"))
        elif config:
            sweep.config, sweep.text = yaml.safe_load(config), config
        sweep.state = state or sweep.state
        return {"sweep": {**self.sweep_node(sweep), "project": self.project_node(sweep.entity, sweep.project)},
                "configValidationWarnings": []}

    def _adopt(self, sweep: Sweep, filters: Mapping[str, Any]) -> None:
        """Runs named with `wandb sweep -R` become the sweep's own."""
        for run in self.state.runs.values() if filters else ():
            if matches(run, filters):
                run.sweep = sweep.name
                sweep.runs.append(run.name)

    def create_agent(self, host: str, sweep: str, **_: Any) -> Node:
        found = self.state.sweep(sweep)
        if found is None:
            raise GraphQLError(f"no sweep {sweep}", 404)
        agent = Agent(f"agent{self.state.number()}", host, found.name)
        self.state.agents[agent.id] = agent
        return {"agent": self.agent_node(agent)}

    def heartbeat(self, id: str, runState: str | None = None, **_: Any) -> Node:
        agent = self.state.agents.get(id)
        if agent is None or agent.sweep not in self.state.sweeps:
            raise GraphQLError(f"no agent {id}", 404)
        commands = self.engine.heartbeat(agent, json.loads(runState or "{}"))
        return {"agent": self.agent_node(agent), "commands": commands_text(commands)}

    def upsert_run(self, id: str | None = None, name: str | None = None, modelName: str | None = None,
                   entityName: str | None = None, config: str | None = None, sweep: str | None = None,
                   summaryMetrics: str | None = None, **attributes: Any) -> Node:
        run = self.state.run(id or name)
        inserted = run is None or run.state == "pending"
        if run is None:
            run = Run(name or self.state.new_name(), entityName or self.state.entity, modelName or "uncategorized")
            self.state.runs[run.name] = run
        if name and run.state not in {"running", "preempting"}:
            run.state, run.stopped, run.preempting = "running", False, False
            run.connections += 1
        if sweep and run.sweep is None and sweep in self.state.sweeps:
            run.sweep = sweep
            self.state.sweeps[sweep].runs.append(run.name)
        run.config = {**run.config, **json.loads(config or "{}")}
        run.summary = json.loads(summaryMetrics) if summaryMetrics else run.summary
        run.attributes.update({key: value for key, value in attributes.items() if value is not None})
        return {"bucket": self.run_node(run), "inserted": inserted}

    def stop_run(self, id: str) -> Node:
        run = self.state.run(id)
        if run is None:
            raise GraphQLError(f"no run {id}", 404)
        run.stopped = True
        return {"success": True, "clientMutationId": None}

    def create_run_files(self, runName: str, files: Sequence[str], **_: Any) -> Node:
        run = self.state.run(runName)
        if run is None:
            raise GraphQLError(f"no run {runName}", 404)
        for name in files:
            run.files.setdefault(name, self.state.blob_key())
        made = [{"name": name, "uploadUrl": self.url(run.files[name])} for name in files]
        return {"runID": run.id, "uploadHeaders": [], "files": made}


def as_list(value: Any) -> list[Any]:
    """GraphQL takes one value where a list is asked for; the agent sends "{}"."""
    return value if isinstance(value, list) else [value]


def history_keys(run: Run) -> Node | None:
    """Which metrics a run has logged, as wandb.Api() wants it before it scans a history."""
    rows = run.rows()
    if not rows:
        return None
    kind = {"typeCounts": [{"type": "number", "count": len(rows)}], "monotonic": False}
    keys = {name: kind for row in rows for name in row}
    return {"sets": [], "lastStep": rows[-1].get("_step", len(rows) - 1), "keys": keys}


def sampled(run: Run, spec: Mapping[str, Any]) -> list[Node]:
    keys = spec.get("keys") or []
    rows = [row for row in run.rows() if all(key in row for key in keys)]
    low, high = spec.get("minStep", 0), spec.get("maxStep", 2**62)
    return [{key: row[key] for key in keys} if keys else row for row in rows if low <= row.get("_step", 0) < high]
