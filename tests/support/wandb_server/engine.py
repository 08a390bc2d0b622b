"""The server's side of sweeps: which point an agent gets, which run has to stop, when a sweep is over."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from .state import ACTIVE, Agent, Run, State, Sweep

AGENT_GRACE = 60.0  # seconds of silence after which an agent counts as dead


def grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every point, the last parameter fastest. A nested parameter is a mapping."""
    axes = []
    for name, parameter in parameters.items():
        if "parameters" in parameter:
            values = grid(parameter["parameters"])
        elif "values" in parameter:
            values = parameter["values"]
        elif "value" in parameter:
            values = [parameter["value"]]
        else:
            values = list(range(parameter["min"], parameter["max"] + 1))
        axes.append([(name, value) for value in values])
    return [dict(choice) for choice in itertools.product(*axes)]


def draw(parameters: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """One random point; of the continuous distributions, as many as the repository's sweeps use."""
    point: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if "parameters" in parameter:
            point[name] = draw(parameter["parameters"], rng)
        elif "min" not in parameter:
            point[name] = rng.choice(parameter.get("values") or [parameter["value"]])
        elif parameter.get("distribution") == "log_uniform_values":
            point[name] = parameter["min"] * (parameter["max"] / parameter["min"]) ** rng.random()
        elif parameter.get("distribution") == "int_uniform":
            point[name] = rng.randint(parameter["min"], parameter["max"])
        else:
            point[name] = rng.uniform(parameter["min"], parameter["max"])
    return point


def same_point(point: Any, params: Any) -> bool:
    """A run has a point when its configuration agrees wherever the point says something."""
    if isinstance(point, Mapping) and isinstance(params, Mapping):
        return all(name in params and same_point(value, params[name]) for name, value in point.items())
    return point == params


class Engine:
    def __init__(self, state: State):
        self.state = state
        self.agent_grace = AGENT_GRACE
        self.cancel_kills = False  # a cancelled sweep's agents get `exit` (SIGKILL) instead of `stop` (SIGTERM)

    def heartbeat(self, agent: Agent, run_state: Mapping[str, bool]) -> list[dict[str, Any]]:
        """The commands for an agent that still runs `run_state`."""
        sweep = self.state.sweeps[agent.sweep]
        agent.heartbeat = time.monotonic()
        for name in agent.running - set(run_state):
            self.settle(self.state.runs[name])
        agent.running &= set(run_state)
        self._bury_dead_agents(sweep)
        if sweep.state == "CANCELED":
            return self._cancelled(agent)
        self.stop_by_hyperband(sweep)
        stops = [self._stop(name) for name in sorted(agent.running) if self.state.runs[name].stopped]
        if stops or agent.running:
            return stops
        if sweep.state == "PAUSED":
            return []
        return self._assign(sweep, agent)

    def _assign(self, sweep: Sweep, agent: Agent) -> list[dict[str, Any]]:
        run = kind = None
        if sweep.state == "RUNNING":
            run, kind = self._next(sweep)
        if run is None:
            busy = any(self.state.runs[name].state in ACTIVE for name in sweep.runs)
            if busy and sweep.state == "RUNNING":
                return []  # a run that is still under way may be preempted and come back
            sweep.state = "FINISHED"
            return [{"type": "exit"}]
        run.agent = agent.id
        agent.running.add(run.name)
        agent.total += 1
        return [{"type": kind, "run_id": run.name, "program": sweep.config.get("program", ""),
                 "args": {key: {"value": value} for key, value in run.params().items()}}]

    def _next(self, sweep: Sweep) -> tuple[Run | None, str]:
        if sweep.requeue:
            run = self.state.runs[sweep.requeue.pop(0)]
            run.state, run.preempting, run.stopped = "pending", False, False
            return run, "resume"
        point = self.next_point(sweep)
        if point is None:
            return None, ""
        run = Run(self.state.new_name(), sweep.entity, sweep.project, sweep=sweep.name)
        run.config = {key: {"value": value} for key, value in point.items()}
        self.state.runs[run.name] = run
        sweep.runs.append(run.name)
        return run, "run"

    def next_point(self, sweep: Sweep) -> dict[str, Any] | None:
        """The next point of a grid that no run of the sweep has had, or another random draw; None at the end."""
        runs = self.state.runs_of(sweep.name)
        if sweep.config.get("run_cap") is not None and len(runs) >= sweep.config["run_cap"]:
            return None
        parameters = sweep.config.get("parameters", {})
        if sweep.config["method"] != "grid":
            return draw(parameters, random.Random(f"{sweep.name}:{len(runs)}"))
        taken = [run.params() for run in runs]
        return next((point for point in grid(parameters) if not any(same_point(point, t) for t in taken)), None)

    def settle(self, run: Run) -> None:
        """Its agent no longer has the process: a run that did not say goodbye is crashed, a preempted one waits."""
        if run.state in ACTIVE:
            run.ended(None)
        sweep = self.state.sweeps.get(run.sweep or "")
        if sweep and run.state == "preempted" and run.name not in sweep.requeue:
            sweep.requeue.append(run.name)

    def _bury_dead_agents(self, sweep: Sweep) -> None:
        for agent in self.state.agents.values():
            if agent.sweep == sweep.name and time.monotonic() - agent.heartbeat > self.agent_grace:
                for name in agent.running:
                    self.settle(self.state.runs[name])
                agent.running.clear()

    def _cancelled(self, agent: Agent) -> list[dict[str, Any]]:
        for name in agent.running:
            self.state.runs[name].stopped = True
        if self.cancel_kills or not agent.running:
            return [{"type": "exit"}]
        return [self._stop(name) for name in sorted(agent.running)]

    def _stop(self, name: str) -> dict[str, Any]:
        return {"type": "stop", "run_id": name}

    def stop_by_hyperband(self, sweep: Sweep) -> None:
        """At iteration `band`, stop a run whose best so far is not within the top 1/eta of those that came so far."""
        rule, metric = sweep.config.get("early_terminate"), sweep.config.get("metric", {})
        if not rule:
            return
        sign = -1.0 if metric.get("goal") == "maximize" else 1.0
        losses = {run.name: [sign * value for value in run.values(metric["name"])]
                  for run in self.state.runs_of(sweep.name)}
        eta = rule.get("eta", 3)
        for band in bands(rule, eta):
            best = {name: min(values[:band]) for name, values in losses.items() if len(values) >= band}
            threshold = sorted(best.values())[int(len(best) / eta)] if best else 0.0
            for name, value in best.items():
                if value > threshold and self.state.runs[name].state in ACTIVE:
                    self.state.runs[name].stopped = True


def bands(rule: Mapping[str, Any], eta: int) -> list[int]:
    if "min_iter" in rule:
        return [rule["min_iter"] * eta**power for power in range(10)]
    return sorted(band for power in range(1, rule["s"] + 1) if (band := rule["max_iter"] // eta**power) > 0)


def commands_text(commands: list[dict[str, Any]]) -> str:
    return json.dumps(commands)
