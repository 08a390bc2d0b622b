"""Whole sweeps on one GPU against the best of three ways that a careful user has, in one run of --budget seconds.

    python benchmarks/gpu.py --out runs/gpu.json                 from a plain copy of the checkout: nothing is installed
    python benchmarks/gpu.py --out runs/gpu.json --tiny          a rehearsal with tiny shapes, on a CPU too

The backbone has BERT-base's shape and random weights (speed does not depend on them), its tokenizer is trained on the
bundled text. The baseline is gpu_baseline.py: one process after the other, four at once, and either with cuDNN's
attention off and lengths padded to 16. All ways are tried at the first depth that is asked for, the best of them at
the others, where one trial (or four at once) stands for all. Every figure is printed and written when it is there, the
targets first, so that a run that is stopped keeps what it has. Start-up is in every total.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
BUNDLED = PROJECT / "finetune" / "data" / "rotten_tomatoes_mini"
SCENARIOS = {  # what varies; the ratio that is aimed at
    "all": ({"freeze_depth": [0, 3, 6, 9, 12], "learning_rate": [2e-5, 5e-5], "seed": [1, 2, 3, 4, 5]}, 5),
    "deep": ({"freeze_depth": [6, 9, 12], "learning_rate": [2e-5, 5e-5], "seed": list(range(10))}, 8),
    "heads": ({"freeze_depth": [12], "head_learning_rate": [1e-2, 3e-3, 1e-3, 3e-4], "head_size": [0, 32, 64, 128, 256],
               "seed": list(range(30))}, 100),
}
ORDER = ("rates", "deep", "all", "heads", "steady", "ladder", "workers", "smoke")
AT_LEAST_SECONDS = 25  # left, to begin something new


class Bench:
    """Paths, time and what has been found so far."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.began, self.found = args, time.monotonic(), {}
        self.work = Path(tempfile.mkdtemp(prefix="gpu-bench-"))
        self.layers, self.width, self.rows = (12, 32, 64) if args.tiny else (12, 768, args.rows)
        self.env = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false",
                    "FINETUNE_CACHE": str(self.work / "cache"), "HF_DATASETS_CACHE": str(self.work / "datasets"),
                    "PYTHONPATH": os.pathsep.join([str(PROJECT), str(HERE), os.environ.get("PYTHONPATH", "")])}

    def left(self) -> float:
        return self.args.budget - (time.monotonic() - self.began)

    def say(self, *words: Any) -> None:
        print(f"[{time.monotonic() - self.began:6.1f}]", *words, flush=True)

    def keep(self, name: str, value: Any) -> None:
        self.found[name] = value
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        self.args.out.write_text(json.dumps(self.found, indent=1) + "\n")
        self.say(name, json.dumps(value)[:600])

    def run(self, command: list[str], **env: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, *command], env={**self.env, **env}, cwd=self.work, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def make_model(bench: Bench) -> Path:
    """BERT's shape with random weights, and a WordPiece tokenizer of 30,522 words at most."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    texts = (json.loads(line)["text"] for line in (BUNDLED / "train.jsonl").read_text().splitlines())
    size = 400 if bench.args.tiny else 30522
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special,
                                                                   show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(0)
    config = BertConfig(vocab_size=size, hidden_size=bench.width, num_hidden_layers=bench.layers,
                        num_attention_heads=max(2, bench.width // 64), intermediate_size=4 * bench.width)
    folder = bench.work / "model"
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=512).save_pretrained(folder)
    return folder


def make_data(bench: Bench, rows: int) -> Path:
    folder, held = bench.work / f"rows-{rows}", 500 if not bench.args.tiny else 32
    if not folder.exists():
        folder.mkdir()
        for name, count in (("train", rows), ("validation", held), ("test", held)):
            lines = (BUNDLED / f"{name}.jsonl").read_text().splitlines()
            # The bundled rows go by class: few of them are taken from all over the file.
            taken = (i * len(lines) // count if count < len(lines) else i % len(lines) for i in range(count))
            (folder / f"{name}.jsonl").write_text("".join(f"{lines[i]}\n" for i in taken))
    return folder


# -- the two sides ---------------------------------------------------------------------------------------------------


def sweep(bench: Bench, name: str, values: dict[str, list], *, workers: int | None = None, without: str = "",
          rows: int | None = None) -> dict[str, Any]:
    """A whole sweep of the product, start-up included, from an empty cache."""
    folder = bench.work / name
    shutil.rmtree(bench.work / "cache", ignore_errors=True)
    folder.mkdir()
    fixed = {"model_name_or_path": str(bench.work / "model"), "dataset_name": str(make_data(bench, rows or bench.rows)),
             "num_train_epochs": 2, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128,
             "max_length": 128, "pooling": "mean", "mixed_precision": "bf16", "head_size": 128}
    parameters = {knob: {"value": value} for knob, value in fixed.items() if knob not in values}
    spec = {"method": "grid", "parameters": parameters | {knob: {"values": found} for knob, found in values.items()}}
    (folder / "sweep.yaml").write_text(json.dumps(spec))
    command = ["-m", "finetune", "sweep", str(folder / "sweep.yaml"), "--output_dir", str(folder / "out"),
               *(["--workers", str(workers)] if workers else [])]
    if without:
        command = [str(HERE / "sweep_without.py"), str(folder / "sweep.yaml"), str(folder / "out"), "gpu_parts_off"]
    began, started = time.monotonic(), time.time()
    process = bench.run(command, BENCH_WITHOUT=without)
    try:
        _, errors = process.communicate(timeout=max(10.0, bench.left()))
    except subprocess.TimeoutExpired:
        process.terminate()
        _, errors = process.communicate()
    seconds = time.monotonic() - began
    if process.returncode:
        bench.say("the sweep ended with", process.returncode, errors[-1500:])
    paths = sorted(folder.glob("out/trials/*/record.json"), key=lambda path: path.stat().st_mtime)
    ends = [path.stat().st_mtime - started for path in paths]
    return {"seconds": round(seconds, 2), "exit": process.returncode, **start_and_margin(ends),
            **summary([json.loads(path.read_text()) for path in paths])}


def start_and_margin(ends: list[float]) -> dict[str, float | None]:
    """Of a sweep whose trials ended so many seconds after its start: when the first did, and what one more costs, told
    by the last three quarters of them."""
    quarter = len(ends) // 4
    more = (ends[-1] - ends[quarter]) / (len(ends) - 1 - quarter) if len(ends) > 4 else None
    return {"first_trial": round(ends[0], 2) if ends else None, "marginal_trial": more and round(more, 4)}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a sweep's records: per depth what a trial took and reached."""
    done = [record for record in records if record["state"] == "complete"]
    depths: dict[int, list[dict[str, Any]]] = {}
    for record in done:
        depths.setdefault(record["config"]["freeze_depth"], []).append(record)
    return {"trials": len(done), "failed": [record["error"] for record in records if record["state"] == "failed"][:2],
            "by_depth": {depth: _of_depth(found) for depth, found in sorted(depths.items())},
            "attention": done[0]["environment"].get("attention") if done else None}


def _of_depth(records: list[dict[str, Any]]) -> dict[str, Any]:
    costs = [record["cost"] for record in records]
    return {"accuracy": round(mean(record["metrics"]["validation"]["accuracy"] for record in records), 4),
            "reuse": all(record["prefix"]["used"] for record in records),
            "peak_gb": round(max(cost["peak_memory_bytes"] for cost in costs) / 1e9, 2),
            **{name: round(mean(cost[f"{name}_seconds"] for cost in costs), 3)
               for name in ("setup", "train", "evaluation", "checkpoint")},
            "last_epoch": round(min(record["history"][-1]["train_seconds"] for record in records), 4),
            "mean_last_epoch": round(mean(record["history"][-1]["train_seconds"] for record in records), 4)}


WAYS = {"4 at once, tuned": (4, True), "4 at once": (4, False), "1 at once, tuned": (1, True),
        "1 at once": (1, False)}  # how many processes; whether cuDNN's attention is off and lengths are padded


def best_way(bench: Bench) -> list[str]:
    """Of the ways that were tried at the first depth; all of them before that."""
    for found in (found for name, found in bench.found.items() if name.startswith("baseline")):
        for way in WAYS:
            if found.get(way, {}).get("seconds_per_trial") == found["best"]:
                return [way]
    return list(WAYS)


def fastest(found: dict[str, Any]) -> float:
    """Seconds per trial of the ways that came to their end."""
    return min((way["seconds_per_trial"] for way in found.values() if "seconds_per_trial" in way), default=float("inf"))


def baseline(bench: Bench, depth: int, rows: int | None = None, ways: list[str] | None = None, epochs: int = 2
             ) -> dict[str, Any]:
    """Seconds per trial in each way, kept; the best one counts. One that cannot be the best any more is stopped."""
    name = f"baseline depth {depth}" + (f" rows {rows}" if rows else "")
    if name not in bench.found:
        command = [str(HERE / "gpu_baseline.py"), str(make_data(bench, rows or bench.rows)),
                   str(bench.work / "model"), "--depth", str(depth), "--epochs", str(epochs)]
        found: dict[str, Any] = {}
        for way in ways or best_way(bench):
            count, tuned = WAYS[way]
            began = time.monotonic()
            best = fastest(found)
            running = [bench.run([*command, "--seed", str(seed), *(["--tuned"] if tuned else [])])
                       for seed in range(count)]
            try:
                said = [process.communicate(timeout=max(0.1, min(began + best * count - time.monotonic(), 1e6)))
                        for process in running]
            except subprocess.TimeoutExpired:
                found[way] = {"processes": count, "stopped": f"after {best * count:.1f} s it could not be the best"}
                for process in running:
                    process.kill()
                    process.communicate()
                continue
            if any(process.returncode for process in running):
                bench.say("the baseline failed:", said[0][1][-800:])
                continue
            one = json.loads(said[0][0].strip().splitlines()[-1])
            found[way] = {
                "seconds_per_trial": round((time.monotonic() - began) / count, 2), "processes": count, **one}
        found["best"] = fastest(found)
        bench.keep(name, found)
    return bench.found[name]


# -- what is measured ------------------------------------------------------------------------------------------------


def rates(bench: Bench) -> None:
    """The card's own: matrix products in bf16 and bytes read and written."""
    script = ("import torch,time,json;c=torch.cuda.is_available();d='cuda' if c else 'cpu';n=8192 if c else 256\n"
              "a=torch.randn(n,n,device=d,dtype=torch.bfloat16);b=torch.empty((1<<30) if c else (1<<20),device=d)\n"
              "s=torch.cuda.synchronize if c else (lambda:None)\n"
              "def t(f,k):\n f();s();w=time.perf_counter();[f() for _ in range(k)];s();"
              "return (time.perf_counter()-w)/k\n"
              "print(json.dumps({'card':torch.cuda.get_device_name() if c else 'CPU','torch':torch.__version__,"
              "'tflops':2*n**3/t(lambda:a@a,20)/1e12,'tb_per_second':2*b.nbytes/t(lambda:b.add_(1),10)/1e12}))")
    said, errors = bench.run(["-c", script]).communicate()
    bench.keep("rates", json.loads(said) if said else {"error": errors[-500:]})


def floor_seconds(bench: Bench, tokens: float) -> float:
    """Of one step at depth 0: six operations per parameter and token, and AdamW's 28 bytes per parameter."""
    found = bench.found.get("rates", {})
    parameters = bench.layers * 12 * bench.width**2 + 30522 * bench.width
    products = bench.layers * 12 * bench.width**2 * 6 * tokens / (found["tflops"] * 1e12)
    return products + 28 * parameters / (found["tb_per_second"] * 1e12)


def compared(bench: Bench, name: str) -> None:
    """A scenario against the best way, whole sweeps."""
    values, target = SCENARIOS[name]
    if bench.args.tiny:
        values = {knob: found[:2] for knob, found in values.items()}
    ours = sweep(bench, name, values, workers=bench.args.workers)
    bench.keep(name, ours)
    repeats = 1
    for knob, found in values.items():
        repeats *= len(found) if knob != "freeze_depth" else 1
    depths = [depth for depth in values["freeze_depth"] if bench.left() > 5 and baseline(bench, depth)]
    if depths != values["freeze_depth"]:
        bench.keep(name, {**ours, "target": target, "ratio": None, "baseline": f"there was time for {depths} alone"})
        return
    theirs = sum(repeats * baseline(bench, depth)["best"] for depth in depths)
    bench.keep(name, {**ours, "baseline_seconds": round(theirs, 1), "ratio": round(theirs / ours["seconds"], 2),
                      "target": target})


def steady(bench: Bench) -> None:
    """Throughput of the card on many rows, start-up and the first steps left out; four trials at a time."""
    rows = 128 if bench.args.tiny else bench.args.steady_rows
    for depth in (0, 6):
        if bench.left() < 3 * AT_LEAST_SECONDS:
            return
        ours = sweep(bench, f"steady-{depth}", {"freeze_depth": [depth], "seed": [1, 2, 3, 4]}, workers=4, rows=rows)
        bench.keep(f"steady depth {depth}", ours)
        found = baseline(bench, depth, rows, ["4 at once, tuned"], epochs=1)["4 at once, tuned"]
        theirs = found["steady_epoch_seconds"] / found["processes"]
        epoch = ours["by_depth"][depth]["mean_last_epoch"] / 4
        share = floor_seconds(bench, 32 * 30) * (rows / 32) / epoch if depth == 0 else None
        bench.keep(f"steady depth {depth}", {**ours, "ours": round(epoch, 3), "theirs": round(theirs, 3),
                                             "ratio": round(theirs / epoch, 2), "share_of_floor": share})


def workers(bench: Bench) -> None:
    values = {"freeze_depth": [0, 6], "seed": [1, 2]}
    for count in (1, 2, 4):
        if bench.left() > AT_LEAST_SECONDS:
            bench.keep(f"workers {count}", sweep(bench, f"workers-{count}", values, workers=count))


def ladder(bench: Bench) -> None:
    """One part taken away at a time, one worker."""
    values = {"freeze_depth": [0, 6, 12], "seed": [1, 2]}
    for part in ("", "graphs", "resident", "buckets", "stack", "reuse"):
        if bench.left() > AT_LEAST_SECONDS:
            name = part or "nothing"
            bench.keep(f"without {name}", sweep(bench, f"without-{name}", values, without=name))


def smoke(bench: Bench) -> None:
    bench.keep("smoke", sweep(bench, "smoke", {"freeze_depth": [0, 6, 12], "num_train_epochs": [1]}))


STEPS: dict[str, Callable[[Bench], None]] = {
    "rates": rates, "smoke": smoke, "steady": steady, "workers": workers, "ladder": ladder,
    **{name: (lambda bench, name=name: compared(bench, name)) for name in SCENARIOS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--only", default=",".join(ORDER), help=f"of {', '.join(ORDER)}, in the order of this list")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds, everything included")
    parser.add_argument("--workers", type=int, help="of the product, where a scenario does not vary them (auto)")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steady_rows", type=int, default=20000)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.out = args.out.resolve()
    bench = Bench(args)
    try:
        make_model(bench)
        for name in args.only.split(","):
            if bench.left() < AT_LEAST_SECONDS:
                bench.say("no time is left for", name)
                continue
            try:
                STEPS[name](bench)
            except Exception as error:  # one figure's failure leaves the others
                bench.keep(f"{name} failed", f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(bench.work, ignore_errors=True)
    bench.say("end")


if __name__ == "__main__":
    main()
