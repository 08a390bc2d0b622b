"""What an adaptive sweep says: of a look, of what it is about to do, and in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analysis.amounts import amounts, has_points
from analysis.statistics.sequential import ALPHA, Decision
from finetune.sweep.adaptive.path import Path
from finetune.sweep.adaptive.space import FULL, Space

_GIVEN_UP = {"safe": "safe", "unsafe": "too deep", "futile": "given up, since more seeds would hardly show it safe",
             "undecided": "not shown safe"}


def depth_name(depth: int, num_layers: int) -> str:
    return {FULL: "full fine-tuning", -1: "frozen embeddings"}.get(depth, f"depth {depth} of {num_layers}")


def look_text(depth: int, decision: Decision, num_layers: int, metric: str) -> str:
    """'depth 6 of 12: loses 0.3, at most 1.2 after 5 seeds; 2 more'; of a loss or an error in its own unit."""
    name = depth_name(depth, num_layers)
    if decision.seeds == 0:
        return f"{name}: undecided, since none of its tuning trials has a result"
    if math.isnan(decision.estimate):
        return f"{name}: undecided, since none of its {decision.seeds} fresh seeds has a result"
    text = f"{name}: {_loses(decision, metric)} after {decision.seeds} seeds"
    if not decision.final:
        return f"{text}; {(decision.next_seeds or 0) - decision.seeds} more"
    if decision.lost:
        return (f"{text}; not called safe, since {decision.lost} of them {'has' if decision.lost == 1 else 'have'} no "
                "result")
    return f"{text}; {_GIVEN_UP[decision.state]}"


def _loses(decision: Decision, metric: str) -> str:
    """'loses 0.3, at most 1.2' (points), 'raises mse by 0.003, at most 0.012'."""
    if not has_points(metric):
        return amounts(metric).bounded(decision.estimate, decision.bound)
    bound = "" if math.isnan(decision.bound) else f", at most {_points(decision.bound)}"
    return f"loses {_points(decision.estimate)}{bound}"


def deciding(space: Space, path: Path) -> str:
    """What is in hand."""
    if path.done:
        return ending(space, path)
    assert path.now is not None
    last = path.last(path.now)
    if last is not None:
        return look_text(path.now, last, space.num_layers, space.metric)
    name = depth_name(path.now, space.num_layers)
    if path.now not in path.chosen:
        return f"{name}: tuning among {len(space.tuning[path.now])} settings"
    return f"{name}: {space.looks[0]} fresh seeds"


def ending(space: Space, path: Path) -> str:
    own = amounts(space.metric)
    lose = own.to_lose(f"{_points(space.margin)} points" if has_points(space.metric) else own.margin(space.margin))
    if path.hopeless:
        return "no verdict: full fine-tuning has no complete tuning trial, and every depth is compared with it"
    if path.named is None:
        return f"no depth is shown to {lose}"
    last = path.last(path.named)
    assert last is not None
    return (f"the deepest depth shown to {lose} is {depth_name(path.named, space.num_layers)}: it "
            f"{_loses(last, space.metric)} after {last.seeds} seeds")


def section(space: Space, path: Path) -> dict[str, Any]:
    """`adaptive` of sweep.json, as analysis.statistics.sequential describes it, without what was trained ahead."""
    return {
        "candidates": list(space.candidates), "margin": space.margin, "alpha": ALPHA, "max_seeds": space.max_seeds,
        "metric": space.metric, "population": "new_text", "seeds": list(space.fresh), "num_layers": space.num_layers,
        "decisions": [_entry(depth, decision) for depth, decision in path.decisions],
        "named": path.named, "done": path.done, "says": deciding(space, path),
    }


def _entry(depth: int, decision: Decision) -> dict[str, Any]:
    numbers = {name: _finite(getattr(decision, name)) for name in ("estimate", "lower", "bound", "confidence")}
    return {"freeze_depth": depth, "look": decision.look, "seeds": decision.seeds, "state": decision.state, **numbers,
            "lost": decision.lost, "next_seeds": decision.next_seeds}


def sentences(adaptive: Mapping[str, Any]) -> list[str]:
    """Of every depth's last look, for `finetune status`."""
    last = {entry["freeze_depth"]: entry for entry in adaptive["decisions"]}
    metric = adaptive.get("metric", "")  # an older sweep did not say: its words are those of a share
    return [_sentence(entry, adaptive["num_layers"], metric) for entry in last.values()]


def _sentence(entry: Mapping[str, Any], num_layers: int, metric: str) -> str:
    numbers = {name: math.nan if entry[name] is None else entry[name] for name in ("estimate", "bound", "lower",
                                                                                   "confidence")}
    decision = Decision(entry["state"], numbers["estimate"], numbers["bound"], numbers["lower"], entry["seeds"],
                        entry["look"], numbers["confidence"], entry.get("next_seeds"), entry["lost"])
    return look_text(entry["freeze_depth"], decision, num_layers, metric)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _points(fraction: float) -> str:
    return f"{100 * fraction + 0:.1f}"
