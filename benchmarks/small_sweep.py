"""What a small sweep costs beside its training: how long until it trains, and what one more head costs.

    python benchmarks/speed.py --only start                             the first step against bare imports, in turns
    python benchmarks/speed.py --only marginal --baseline_trials 2      600 heads against 60, and a baseline trial
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import measure
import psutil

WAIT_SECONDS = 600.0
# What nobody can do without, by itself: the libraries, and the weights as a model.
IMPORTS = """
import sys
import torch, transformers, accelerate
transformers.AutoModel.from_pretrained(sys.argv[1])
"""


def bare_start(model: Path) -> dict[str, float]:
    """Importing torch, transformers and accelerate and loading the weights, in a process of its own."""
    before = measure.children_cpu()
    seconds = measure.run([sys.executable, "-c", IMPORTS, str(model)], {"HF_HUB_OFFLINE": "1"}).seconds
    return {"seconds": seconds, "cpu_seconds": measure.children_cpu() - before}


def first_step(spec: Path, work: Path) -> dict[str, float]:
    """`finetune sweep` from the command to the end of the first optimizer step, nothing cached; then it is ended.

    `worker_cpu`: processor seconds of the worker that was born first, until then. On a machine that does other work as
    well, seconds say how many shared it; this says what the way to the first step costs.
    """
    folder = Path(tempfile.mkdtemp(dir=work))
    environment = {**os.environ, "FINETUNE_CACHE": str(folder / "cache"), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "finetune", "sweep", str(spec), "--output_dir", str(folder / "run")]
    began = time.time()
    with open(folder / "said", "w", encoding="utf-8") as said, \
            subprocess.Popen(command, stdout=said, stderr=said, env=environment) as process:
        try:
            while (reached := _first_step_of(folder / "run" / "status.json")) is None:
                if process.poll() is not None or time.time() - began > WAIT_SECONDS:
                    raise RuntimeError(f"no step was done: {(folder / 'said').read_text()[-2000:]}")
                time.sleep(0.05)
            worker_cpu = _first_workers_cpu(process.pid)
        finally:
            process.kill()  # its workers go with it
    shutil.rmtree(folder, ignore_errors=True)
    return {"seconds": reached - began, "worker_cpu": worker_cpu}


def _first_workers_cpu(coordinator: int) -> float:
    workers = [child for child in psutil.Process(coordinator).children() if "spawn_main" in " ".join(child.cmdline())]
    used = min(workers, key=lambda worker: worker.create_time()).cpu_times()
    return used.user + used.system


def _first_step_of(path: Path) -> float | None:
    try:
        return json.loads(path.read_text()).get("first_step")
    except (OSError, ValueError):
        return None


def start_up(spec: Path, model: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Both in turns, so that both meet the same load; medians, and the median of each round's ratio."""
    found = []
    for _ in range(rounds):
        bare, ours = bare_start(model), first_step(spec, work)
        found.append({"bare": bare["seconds"], "bare_cpu": bare["cpu_seconds"], "first_step": ours["seconds"],
                      "first_step_cpu": ours["worker_cpu"], "ratio": ours["seconds"] / bare["seconds"],
                      "ratio_cpu": ours["worker_cpu"] / bare["cpu_seconds"], "load": os.getloadavg()[0]})
        print("  bare {bare:.1f} s ({bare_cpu:.1f} of processor time), first step after {first_step:.1f} s "
              "({first_step_cpu:.1f}): {ratio:.2f} ({ratio_cpu:.2f}), load {load:.1f}".format(**found[-1]),
              file=sys.stderr, flush=True)
    return {"rounds": found, **{name: median(one[name] for one in found) for name in found[0]}}


def marginal(few: Mapping[str, Any], many: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """One more head, from two sweeps over heads, against a trial of the baseline: by the clock, and by the processor.

    The baseline's trials run side by side, so that both sides' seconds are those of the whole machine.
    """
    heads = many["trials"] - few["trials"]
    found: dict[str, Any] = {"few": few, "many": many, "baseline": baseline}
    for name in ("seconds", "cpu_seconds"):
        head, trial = (many[name] - few[name]) / heads, baseline[name] / baseline["trials"]
        found[name] = {"head": head, "trial": trial, "ratio": trial / head}
    return found


def lines(found: Mapping[str, Any]) -> list[str]:
    """What was found, as Markdown."""
    out = []
    if "start" in found:
        one = found["start"]["first_step"]
        out += ["", "Start: bare imports and weights {bare:.1f} s ({bare_cpu:.1f} s of processor time), the first "
                "optimizer step after {first_step:.1f} s ({first_step_cpu:.1f} s of its worker's processor time): "
                "{ratio:.2f} times ({ratio_cpu:.2f} times); medians of {count} rounds at a load of {load:.0f}; target "
                "1.3".format(count=len(one["rounds"]), **one)]
    if "marginal" in found:
        one = found["marginal"]["heads"]
        out += ["", f"One more head ({one['many']['trials']} against {one['few']['trials']}): "
                + "; ".join(f"{one[name]['head']:.3f} s of {what}, a baseline trial {one[name]['trial']:.1f} s: "
                            f"{one[name]['ratio']:.0f} times" for name, what in
                            (("seconds", "the machine"), ("cpu_seconds", "processor time"))) + " (target 150)"]
    return out
