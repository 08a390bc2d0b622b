"""How far a sweep is, from its records and from what its coordinator last wrote."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.errors import ConfigError

FRESH = 30.0  # seconds; a coordinator writes every two
_SHOWN_FAILURES = 20


def state_of(output_dir: Path) -> dict[str, Any]:
    """Everything known about a sweep. Raises ConfigError when there is none in the directory."""
    from finetune.results import CorruptRecord, RecordStore

    plan, live = _read(output_dir / "sweep.json"), _read(output_dir / "status.json")
    store = RecordStore(output_dir)
    ids = store.trial_ids()
    if plan is None and not ids:
        if any((output_dir / name).exists() for name in ("study.journal", "study.db", "logs")):
            raise ConfigError(f"{output_dir}: a sweep was stopped here before its first trial; the same "
                              "`finetune sweep` command starts it")
        raise ConfigError(f"{output_dir}: no sweep here (neither sweep.json nor trials/)")
    plan = plan or {}
    asked = [trial_id for phase in plan.get("trials", {}).values() for trial_id in phase]
    states: Counter[str] = Counter()
    failures = []
    growing = bool(plan.get("open_ended") or plan.get("adaptive"))  # how many trials there will be is not known
    for trial_id in ids if growing or not asked else [i for i in asked if i in set(ids)]:
        try:
            record = store.load(trial_id)
        except CorruptRecord as error:
            states["damaged"] += 1
            failures.append({"trial": trial_id[:12], "reason": str(error)})
            continue
        if record is not None:
            states[record.state] += 1
            if record.state == "failed":
                failures.append({"trial": _label(record.config, plan), "reason": _reason(record.error)})
    return {
        "output_dir": str(output_dir), "name": plan.get("name"), "running": _is_running(live), "live": live,
        "adaptive": plan.get("adaptive"),
        "total": None if growing else len(asked) or None, "states": dict(states), "failures": failures,
    }


def text_of(state: dict[str, Any]) -> str:
    from finetune.sweep.view.board import duration, shown_value

    counts = ", ".join(f"{count} {name}" for name, count in sorted(state["states"].items())) or "no trial has ended"
    of = f" of {state['total']}" if state["total"] else ""
    lines = [f"{state['name'] or state['output_dir']}: {sum(state['states'].values())}{of} trials ended ({counts})"]
    live = state["live"] or {}
    if live.get("best"):
        lines.append(f"best {live['metric']} {shown_value(live['best']['value'])} ({live['best']['trial']})")
    if state.get("adaptive"):
        lines += _adaptive(state["adaptive"])
    if state["running"]:
        left = f", about {duration(live['seconds_left'])} left" if live["seconds_left"] is not None else ""
        lines.append(f"running in process {live['pid']} on {live['host']}, phase {live['phase']}{left}")
        lines += [f"  worker {trial['worker']}: {trial['label']}, epoch {trial['epoch']}/{trial['epochs'] or '?'}"
                  + (f", loss {trial['loss']:.4f}" if trial["loss"] is not None else "") for trial in live["running"]]
    elif live.get("elsewhere"):
        lines.append(f"not running; {live['elsewhere']} more trials ended on other machines, whose directories "
                     "`finetune report` reads beside this one")
    else:
        lines.append("not running; the same `finetune sweep` command goes on where it stopped")
    lines += [f"  failed: {failure['trial']}: {failure['reason']}" for failure in state["failures"][:_SHOWN_FAILURES]]
    more = len(state["failures"]) - _SHOWN_FAILURES
    return "\n".join([*lines, f"  … and {more} more"] if more > 0 else lines)


def _adaptive(section: dict[str, Any]) -> list[str]:
    """Where every visited depth stands, and what is being decided or was found."""
    from finetune.sweep.adaptive.words import sentences

    known = [f"  {text}" for text in sentences(section)]
    if section["done"]:
        return [*known, section["says"]]
    return [*known, *([] if known and known[-1] == f"  {section['says']}" else [f"  {section['says']}"])]


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else None
    return None


def _is_running(live: dict[str, Any] | None) -> bool:
    """Its last word is recent, and on this machine its process exists."""
    if live is None or live.get("ended") or time.time() - live.get("updated", 0) > FRESH:
        return False
    if live.get("host") != socket.gethostname():
        return True
    import psutil

    return psutil.pid_exists(live["pid"])


def _label(config: dict[str, Any], plan: dict[str, Any]) -> str:
    from finetune.sweep.view.board import label_of

    return label_of(config, plan.get("searched", ["freeze_depth", "strategy", "learning_rate", "seed"]))


def _reason(error: dict[str, str] | None) -> str:
    return f"{(error or {}).get('kind', 'error')}: {(error or {}).get('message', '')}"
