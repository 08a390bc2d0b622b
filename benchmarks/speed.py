"""Whole sweeps, side by side with what a careful user would run instead: `make bench`.

    python benchmarks/speed.py --out runs/bench.json                      everything (about an hour on 2 cores)
    python benchmarks/speed.py --only suffix --baseline_trials 1          one scenario, the baseline from fewer trials

The baseline (a) is baseline_trial.py, one process per trial, run the better of two ways; (b) is notebook_loop.py. Of
each depth at most --baseline_trials N trials are run and stand for the others of that depth: what a trial costs does
not depend on its learning rate, its seed or (next to nothing) its head's size. Accuracies are compared over the trials
that both sides have run. A baseline trial that two scenarios ask for is run once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import measure
import numpy as np
import small_sweep
import yaml
from model import Shape, sweep_operations

from finetune.results import RecordStore

HERE = Path(__file__).resolve().parent
COMMON = {"train_size": 600, "subset_seed": 0, "evaluation_size": 300, "num_train_epochs": 2, "max_length": 128,
          "per_device_train_batch_size": 16}
HEADS = {"head_learning_rate": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "head_size": [0, 64, 128, 256], "seed": [1, 2, 3]}
RATES, SEEDS = [2e-5, 5e-5], [1, 2]
TARGETS = {"all": 2.5, "suffix": 4.5, "heads": 100}
ACCURACY = {"freeze_depth": [5], "learning_rate": [5e-5], "seed": [1, 2, 3, 4, 5, 6]}  # on enough rows to compare
TITLES = {
    "all": "all depths 0..6 x 2 learning rates x 2 seeds", "suffix": "depths 3..6 x 2 learning rates x 2 seeds",
    "heads": "depth 6, 60 heads", "bad": "depths 0..2, long texts, 1 learning rate, 1 seed",
    "accuracy": "depth 5, 6 seeds, 1,000 validation and test rows each",
}


@dataclass
class Scenario:
    name: str
    values: dict[str, list]  # what the sweep varies
    fixed: dict[str, Any] = field(default_factory=lambda: dict(COMMON))

    def points(self, depth: int) -> list[dict[str, Any]]:
        """The baseline's trials of one depth: all combinations of the other values."""
        points: list[dict[str, Any]] = [{}]
        for name, values in self.values.items():
            if name != "freeze_depth":
                points = [{**point, name: value} for point in points for value in values]
        return points


class Bench:
    def __init__(self, args: argparse.Namespace, work: Path):
        self.args, self.work, self.cores = args, work, len(os.sched_getaffinity(0))
        self.model, self.lengths, self.shape = None, {}, None
        self._ran: dict[str, tuple[float, list[measure.Measured]]] = {}  # rounds of the baseline
        self.found: dict[str, Any] = {"machine": machine(), "command": " ".join(sys.argv), "scenarios": {}}

    # -- ours ------------------------------------------------------------------------------------------------------

    def ours(self, scenario: Scenario, cache: Path, label: str, extra: dict[str, str] | None = None,
             task: str | None = None, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """`finetune sweep` from start to end."""
        output, path = self.work / f"{scenario.name}-{label}", self.spec_file(scenario)
        command = [sys.executable, "-m", "finetune", "sweep", str(path), "--output_dir", str(output), *options]
        if task is not None:
            command = [sys.executable, str(HERE / "sweep_without.py"), str(path), str(output), task]
        before = measure.children_cpu()
        measured = measure.run(command, {"FINETUNE_CACHE": str(cache), "WANDB_MODE": "disabled", **(extra or {})})
        records = [record for record in RecordStore(output) if record.state == "complete"]
        names = [name for name in scenario.values if name != "freeze_depth"]
        accuracies = {f"{record.config['freeze_depth']} {[record.config[name] for name in names]}":
                      record.metrics["test"]["accuracy"] for record in records}
        cpu = measure.children_cpu() - before
        say(f"  ours, {label}: {measured.seconds:.1f} s ({cpu:.1f} s of processor time), {len(records)} trials")
        return {"seconds": measured.seconds, "cpu_seconds": cpu, "trials": len(records),
                "peak_memory_bytes": measured.peak_memory_bytes,
                "cache_bytes": measure.folder_bytes(cache),
                "test_accuracy": accuracies,
                "padding_share": mean(record.history[0]["train"]["padding_share"] for record in records),
                "saved_seconds": sum(record.prefix.get("saved_seconds", 0.0) for record in records)}

    def spec_file(self, scenario: Scenario) -> Path:
        """The scenario as a sweep's YAML."""
        spec = {"method": "grid", "parameters": {name: {"values": values} for name, values in scenario.values.items()}
                | {name: {"value": value} for name, value in scenario.fixed.items()}}
        path = self.work / f"{scenario.name}.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    # -- the baseline ----------------------------------------------------------------------------------------------

    def rows_file(self, fixed: dict[str, Any]) -> Path:
        """The same rows for both sides, as text; making it is not part of any time."""
        from finetune.config import TrialConfig
        from finetune.data.encoding.encoding import token_lengths
        from finetune.models import load_backbone
        from finetune.models.sources import find_model
        from finetune.trial import resolve_trial

        config = TrialConfig.from_mapping({**fixed, "freeze_depth": 0})
        data, backbone = resolve_trial(config).data, load_backbone(config)
        self.model = find_model(config).folder
        self.shape = Shape(backbone.num_layers, backbone.width, backbone.pristine.config.intermediate_size)
        self.lengths = {name: np.minimum(token_lengths(split.texts, backbone.tokenizer), config.max_length)
                        for name, split in data.splits.items()}
        path = self.work / "rows.json"
        path.write_text(json.dumps({name: {"texts": [row[0] for row in split.texts], "labels": split.labels.tolist()}
                                    for name, split in data.splits.items()}))
        return path

    def command(self, rows: Path, depth: int, point: dict[str, Any], fixed: dict[str, Any], threads: int) -> list[str]:
        knobs = {"depth": depth, "threads": threads, "max_length": fixed["max_length"], **point}
        return [sys.executable, str(HERE / "baseline_trial.py"), str(rows), str(self.model),
                *(f"--{name}={value}" for name, value in knobs.items())]

    def baseline(self, scenario: Scenario, rows: Path) -> dict[str, Any]:
        """Every trial (or a sample per depth) the better of two ways."""
        side = self.better_way(scenario, rows)
        total, cpu, accuracies, peaks, ran = 0.0, 0.0, {}, [], 0
        for depth in scenario.values["freeze_depth"]:
            points = scenario.points(depth)
            sample = points[:self.args.baseline_trials or None]
            sample += sample[:-len(sample) % self.cores] if side else []  # full rounds: an idle core is nobody's fault
            spent, results = self.run_baseline(scenario, rows, depth, sample, side)
            total += spent * len(points) / len(sample)
            cpu += sum(json.loads(result.output.splitlines()[-1])["cpu_seconds"] for result in results) * len(
                points) / len(sample)
            ran += len(sample)
            for point, result in zip(sample, results, strict=True):
                accuracies[f"{depth} {list(point.values())}"] = json.loads(result.output.splitlines()[-1])["test"]
            peaks.append(sum(sorted(result.peak_memory_bytes for result in results)[-(self.cores if side else 1):]))
            say(f"  baseline, depth {depth}: {spent / len(sample):.1f} s per trial")
        trials = sum(len(scenario.points(depth)) for depth in scenario.values["freeze_depth"])
        return {"seconds": total, "cpu_seconds": cpu, "trials": trials, "trials_run": ran,
                "way": "side by side" if side else "all cores",
                "test_accuracy": accuracies, "peak_memory_bytes": max(peaks)}

    def better_way(self, scenario: Scenario, rows: Path) -> bool:
        """Whether trials side by side, one thread each, beat one after the other with all cores."""
        depth = scenario.values["freeze_depth"][len(scenario.values["freeze_depth"]) // 2]
        point = scenario.points(depth)[0]
        one = measure.run(self.command(rows, depth, point, scenario.fixed, self.cores),
                          {"OMP_NUM_THREADS": str(self.cores)}).seconds
        both, _ = measure.side_by_side([self.command(rows, depth, point, scenario.fixed, 1)] * self.cores,
                                       {"OMP_NUM_THREADS": "1"})
        say(f"  baseline: one after the other {one:.1f} s per trial, side by side {both / self.cores:.1f} s")
        return both / self.cores < one

    def run_baseline(self, scenario: Scenario, rows: Path, depth: int, points: list[dict], side: bool):
        threads, spent, results = (1 if side else self.cores), 0.0, []
        size = self.cores if side else 1
        for start in range(0, len(points), size):
            together = points[start:start + size]
            key = json.dumps([scenario.fixed, depth, together, threads])
            if key not in self._ran:
                self._ran[key] = measure.side_by_side(
                    [self.command(rows, depth, point, scenario.fixed, threads) for point in together],
                    {"OMP_NUM_THREADS": str(threads)})
            seconds, found = self._ran[key]
            spent += seconds
            results += found
        return spent, results

    # -- scenarios -------------------------------------------------------------------------------------------------

    def compare(self, scenario: Scenario) -> None:
        """Cold cache, warm cache, baseline, bound."""
        say(f"{scenario.name}: {TITLES[scenario.name]}")
        rows = self.rows_file(scenario.fixed)
        cache = Path(tempfile.mkdtemp(dir=self.work))
        cold = self.ours(scenario, cache, "cold")
        warm = self.ours(scenario, cache, "warm")
        base = self.baseline(scenario, rows)
        rate = measure.multiply_rate(sys.executable, self.cores, self.shape.width, self.shape.inner)
        trials = [depth for depth in scenario.values["freeze_depth"]
                  for _ in range(len(scenario.points(depth)))]
        bound = sweep_operations(trials, scenario.fixed["num_train_epochs"], self.lengths, self.shape) / rate
        self.keep("scenarios", scenario.name, {
            "cold": cold, "warm": warm, "baseline": base, "ratio_cold": base["seconds"] / cold["seconds"],
            "ratio_warm": base["seconds"] / warm["seconds"], "ratio_cpu": base["cpu_seconds"] / cold["cpu_seconds"],
            "target": TARGETS.get(scenario.name),
            "multiply_rate": rate, "bound_seconds": bound, "share_of_bound": bound / cold["seconds"]})

    def ladder(self) -> None:
        """One part left out at a time, on a small sweep."""
        from parts_off import PARTS

        say("ladder: depths 3..6 x 2 seeds, one part left out at a time")
        self.leave_out("ladder", COMMON, PARTS)

    def one_token(self) -> None:
        """What it saves that the last layer finishes only the token that `pooling: cls` reads."""
        from parts_off import ONE_TOKEN

        say("one token: depths 3..6 x 2 seeds, pooling: cls")
        self.leave_out("one_token", {**COMMON, "pooling": "cls"}, ONE_TOKEN)

    def leave_out(self, group: str, fixed: dict[str, Any], parts: dict[str, str]) -> None:
        scenario = Scenario(group, {"freeze_depth": [3, 4, 5, 6], "seed": [1, 2]}, dict(fixed))
        for part in ("", *parts):
            cache = Path(tempfile.mkdtemp(dir=self.work))
            found = self.ours(scenario, cache, part or "whole", {"BENCH_WITHOUT": part,
                              "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}, task="parts_off")
            self.keep(group, part or "whole", {"seconds": found["seconds"], "what": parts.get(part, "nothing"),
                                               "test_accuracy": mean(found["test_accuracy"].values())})

    def notebook(self) -> None:
        """(b), on two depths."""
        rows = self.rows_file(COMMON)
        say("notebook: depths 0 and 6, padded to 100")
        measured = measure.run([sys.executable, str(HERE / "notebook_loop.py"), str(rows), str(self.model),
                                "--depths", "0", "6"], {"OMP_NUM_THREADS": str(self.cores)})
        self.keep("notebook", "trials", json.loads(measured.output.splitlines()[-1])["trials"])

    def start(self) -> None:
        """From the command to the first optimizer step, against what no process can do without."""
        say(f"start: {TITLES['all']}, until the first step")
        self.rows_file(COMMON)
        spec = self.spec_file(Scenario("start", {"freeze_depth": list(range(7)), "learning_rate": RATES,
                                                 "seed": SEEDS}))
        self.keep("start", "first_step", small_sweep.start_up(spec, self.model, self.work, self.args.rounds))

    def marginal(self) -> None:
        """Ten times as many heads, by ten times as many seeds."""
        say(f"marginal: {TITLES['heads']}, and {60 * self.args.times}")
        rows, sweeps = self.rows_file(COMMON), []
        for seeds in (3, 3 * self.args.times):
            scenario = Scenario("heads", {"freeze_depth": [6], **HEADS, "seed": list(range(1, seeds + 1))})
            sweeps.append(self.ours(scenario, Path(tempfile.mkdtemp(dir=self.work)), f"{20 * seeds} heads"))
        base = self.baseline(Scenario("heads", {"freeze_depth": [6], **HEADS}), rows)
        self.keep("marginal", "heads", small_sweep.marginal(*sweeps, base))

    def keep(self, group: str, name: str, content: Any) -> None:
        self.found.setdefault(group, {})[name] = content
        if self.args.out:
            Path(self.args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(self.args.out).write_text(json.dumps(self.found, indent=1) + "\n")


def long_texts(work: Path) -> dict[str, Any]:
    """The bundled reviews, eight glued together: a set of long texts (their first label), as a folder."""
    source = HERE.parent / "finetune" / "data" / "rotten_tomatoes_mini"
    folder = work / "long_texts"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (source / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        glued = [{**rows[start], "text": " ".join(row["text"] for row in rows[start:start + 8])}
                 for start in range(0, len(rows) - 8, 8)][:96 if name == "train" else 48]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in glued))
    return {**{name: value for name, value in COMMON.items() if name not in ("train_size", "subset_seed")},
            "dataset_name": str(folder), "max_length": 256}


def machine() -> dict[str, Any]:
    import psutil
    import torch
    import transformers

    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_bytes": psutil.virtual_memory().total,
            "load_before": os.getloadavg(), "torch": torch.__version__, "transformers": transformers.__version__,
            "began": time.strftime("%Y-%m-%d %H:%M:%S")}


def tables(found: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    lines = [f"Machine: {found['machine']['cpu']}, {found['machine']['cores']} cores, load before "
             f"{found['machine']['load_before'][0]:.1f}.", ""]
    if found.get("scenarios"):
        lines += ["| sweep | baseline | ours, cold | ours, warm | ratio cold | target | ratio warm | ratio of CPU "
                  "time, cold | share of the bound | peak memory, baseline / ours | cache on disk |", "|---" * 11 + "|"]
    for name, one in found.get("scenarios", {}).items():
        base, cold = one["baseline"], one["cold"]
        lines.append(
            f"| {TITLES[name]} | {base['seconds']:.0f} s ({base['trials_run']} of {base['trials']} trials run, "
            f"{base['way']}) | {cold['seconds']:.1f} s | {one['warm']['seconds']:.1f} s | {one['ratio_cold']:.1f} | "
            f"{one['target'] or '-'} | {one['ratio_warm']:.1f} | "
            f"{one['ratio_cpu']:.1f} | {one['share_of_bound']:.0%} | "
            f"{base['peak_memory_bytes'] / 1e9:.1f} / {cold['peak_memory_bytes'] / 1e9:.1f} GB | "
            f"{cold['cache_bytes'] / 1e6:.0f} MB |")
    for name, one in found.get("scenarios", {}).items():
        lines += ["", f"Test accuracy, {TITLES[name]} (mean over the trials that both have run):", "",
                  "| depth | baseline | ours |",
                  "|---|---|---|"]
        lines += [f"| {depth} | {baseline:.3f} | {ours:.3f} |" for depth, baseline, ours in accuracies_of(one)]
    for group in ("ladder", "one_token"):
        if group in found:
            whole = found[group]["whole"]["seconds"]
            lines += ["", f"{group}:", "", "| left out | seconds | times as long | test accuracy |",
                      "|---|---|---|---|"]
            lines += [f"| {one['what']} | {one['seconds']:.1f} | {one['seconds'] / whole:.2f} | "
                      f"{one['test_accuracy']:.3f} |" for one in found[group].values()]
    for trial in found.get("notebook", {}).get("trials", []):
        lines.append(f"\nNotebook's loop, depth {trial['depth']}: {trial['seconds']:.0f} s, test {trial['test']:.3f}")
    return "\n".join([*lines, *small_sweep.lines(found)])


def accuracies_of(scenario: dict[str, Any]) -> list[tuple[int, float, float]]:
    """(depth, the baseline's mean, ours) over the trials that both sides have run."""
    base, ours = scenario["baseline"]["test_accuracy"], scenario["cold"]["test_accuracy"]
    by_depth: dict[int, list[str]] = defaultdict(list)
    for trial in base:
        by_depth[int(trial.split()[0])].append(trial)
    return [(depth, mean(base[trial] for trial in trials), mean(ours[trial] for trial in trials))
            for depth, trials in by_depth.items()]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = ("heads", "suffix", "all", "ladder", "one_token", "accuracy", "bad", "notebook", "start",
               "marginal")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    parser.add_argument("--baseline_trials", type=int, default=4,
                        help="trials per depth that stand for all of them; 0: every one (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="start: how often both sides are timed (default: 5)")
    parser.add_argument("--times", type=int, default=10, help="marginal: how many times sixty heads (default: 10)")
    parser.add_argument("--out", help="where the JSON goes")
    parser.add_argument("--keep", action="store_true", help="leave the working folder")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="finetune-bench-"))
    bench = Bench(args, work)
    scenarios = {"all": ({"freeze_depth": list(range(7)), "learning_rate": RATES, "seed": SEEDS}, COMMON),
                 "suffix": ({"freeze_depth": [3, 4, 5, 6], "learning_rate": RATES, "seed": SEEDS}, COMMON),
                 "heads": ({"freeze_depth": [6], **HEADS}, COMMON),
                 "accuracy": (ACCURACY, {**COMMON, "evaluation_size": 1000})}
    try:
        for name in args.only:
            if name in scenarios:
                values, fixed = scenarios[name]
                bench.compare(Scenario(name, values, dict(fixed)))
            elif name == "bad":
                bench.compare(Scenario("bad", {"freeze_depth": [0, 1, 2]}, long_texts(work)))
            else:
                {"ladder": bench.ladder, "one_token": bench.one_token, "notebook": bench.notebook,
                 "start": bench.start, "marginal": bench.marginal}[name]()
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    print(tables(json.loads(json.dumps(bench.found))))


if __name__ == "__main__":
    main()
