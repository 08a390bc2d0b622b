"""`finetune doctor`: looks at everything that a sweep will lean on, and says what to do about it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from finetune.errors import EnvironmentProblem
from finetune.files import cache_root, require_writable

PACKAGE = "stellar-finetuning"
LITTLE_DISK, LITTLE_MEMORY = 5 * 2**30, 2 * 2**30  # bytes
MARKS = {"ok": "ok  ", "note": "note", "problem": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `advice` says what to do where the state is not ok."""

    what: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check Python, versions, devices, threads, disk, W&B, hub, output directory and cache."
    parser.add_argument("--output_dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="the directory to look at, of one sweep or of several (default: runs)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON on stdout")


def main(args: argparse.Namespace) -> int:
    """0, or 5 when something would make a sweep fail."""
    findings = list(examine(args.output_dir))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1))
    else:
        for finding in findings:
            print(f"{MARKS[finding.state]}  {finding.what}: {finding.found}")
            if finding.advice:
                print(f"      -> {finding.advice}")
    return EnvironmentProblem.exit_code if any(finding.state == "problem" for finding in findings) else 0


def examine(output_dir: Path) -> Iterator[Finding]:
    """Every check, in order; one that fails itself is a finding too."""
    checks: list[Callable[[], Finding]] = [
        python, versions, devices, threads, memory, lambda: disk(output_dir), wandb_login, hub,
        lambda: writable(output_dir), lambda: records(output_dir), lambda: checkpoints(output_dir), encoded_cache,
        prefix_cache]
    for check in checks:
        try:
            yield check()
        except EnvironmentProblem as problem:
            yield Finding(getattr(check, "__name__", "check"), "problem", str(problem))


def python() -> Finding:
    from packaging.specifiers import SpecifierSet

    found, needed = platform.python_version(), ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a plain copy of the checkout
        needed = importlib.metadata.metadata(PACKAGE)["Requires-Python"] or ""
    if not SpecifierSet(needed).contains(found):
        return Finding("Python", "problem", found, f"use Python {needed}")
    return Finding("Python", "ok", f"{found} at {sys.executable}")


def versions() -> Finding:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or []]
    except importlib.metadata.PackageNotFoundError:
        return Finding("versions", "note", "the package is not installed", "pip install -e '.[demo,test]'")
    wrong = [text for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()
             if (text := _mismatch(requirement))]
    if wrong:
        return Finding("versions", "problem", ", ".join(wrong),
                       f"pip install --upgrade --constraint constraints.txt {PACKAGE}")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "optuna"))
    return Finding("versions", "ok", shown)


def _mismatch(requirement: object) -> str:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(found, prereleases=True)
    return "" if fits else f"{requirement.name} {found} ({requirement.specifier} is needed)"


def devices() -> Finding:
    import torch

    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        return Finding("devices", "note" if driver else "ok", "CPU only",
                       "a driver is installed but torch sees no GPU: install a CUDA build of torch" if driver else "")
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding("devices", "ok", ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in names))


def threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{cores} cores, OMP_NUM_THREADS {'is ' + text if text else 'is not set'}"
    if text.isdigit() and int(text) > cores:
        return Finding("threads", "note", found, f"more threads than cores wait for each other; set it to {cores} or "
                                                 "less (finetune sweep sets it for its workers)")
    return Finding("threads", "ok", found)


def memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    found = f"{free / 2**30:.1f} GiB available"
    if free < LITTLE_MEMORY:
        return Finding("memory", "note", found, "use --workers 1 and a small per_device_train_batch_size")
    return Finding("memory", "ok", found)


def disk(output_dir: Path) -> Finding:
    places = {"output directory": output_dir, "cache": cache_root()}
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in places.items()}
    found = ", ".join(f"{size / 2**30:.1f} GiB free for the {name}" for name, size in free.items())
    if min(free.values()) < LITTLE_DISK:
        return Finding("disk", "note", found, "checkpoints and cached activations need room: free some, or set "
                                              "FINETUNE_CACHE and --output_dir to a larger disk")
    return Finding("disk", "ok", found)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def wandb_login() -> Finding:
    from finetune.tracking.client import wanted_mode

    mode = wanted_mode()
    if mode == "online":
        return Finding("W&B", "ok", "a key is there: runs are sent")
    advice = "wandb login (or set WANDB_API_KEY); records on disk are complete without it"
    found = {"offline": "mode offline: runs are recorded for `finetune sync`"}.get(mode, "off: nothing is sent")
    return Finding("W&B", "note", found, advice)


def hub() -> Finding:
    from finetune.data.sources.hub import hub_is_reachable

    if hub_is_reachable():
        return Finding("Hugging Face hub", "ok", "reachable")
    return Finding("Hugging Face hub", "note", "not reachable", "models and data sets come from the cache, from local "
                   "folders, or from the package; check the network, a proxy, and HF_HUB_OFFLINE")


def writable(output_dir: Path) -> Finding:
    existed = output_dir.exists()
    require_writable(output_dir)
    if not existed:
        output_dir.rmdir()
    return Finding("output directory", "ok", f"{output_dir} can be written")


def _stores(output_dir: Path) -> list[Path]:
    """Directories with trials: this one, or those in it."""
    return [path for path in (output_dir, *sorted(output_dir.glob("*/"))) if (path / "trials").is_dir()
            or (path / "checkpoints").is_dir()]


def records(output_dir: Path) -> Finding:
    from finetune.results import CorruptRecord, RecordStore

    damaged, count = [], 0
    for folder in _stores(output_dir):
        store = RecordStore(folder)
        for trial_id in store.trial_ids():
            count += 1
            try:
                store.check_files(store.load(trial_id))
            except CorruptRecord as error:
                damaged.append(str(error))
    if damaged:
        return Finding("records", "problem", f"{len(damaged)} of {count} damaged: {damaged[0]}",
                       "run the same sweep again: a damaged record is set aside and only its trial is trained again")
    return Finding("records", "ok", f"{count} intact")


def checkpoints(output_dir: Path) -> Finding:
    from finetune.training.checkpoint import Checkpoints

    waiting, damaged = 0, []
    for folder in _stores(output_dir):
        for trial in sorted((folder / "checkpoints").glob("*/")):
            newest, skipped = Checkpoints(folder, trial.name).newest(sweep_up=False)
            waiting += newest is not None
            damaged += skipped
    found = f"{waiting} unfinished trials can go on"
    if damaged:
        return Finding("checkpoints", "note", f"{found}; {len(damaged)} damaged: {damaged[0]}",
                       "nothing to do: a damaged checkpoint is never used")
    return Finding("checkpoints", "ok", found)


def encoded_cache() -> Finding:
    from finetune.data.encoding.encoded_cache import entries

    states = dict(entries())
    return _cache("encoded data", [str(path) for path, whole in states.items() if not whole], len(states))


def prefix_cache() -> Finding:
    from finetune.prefix.store import PrefixStore

    store = PrefixStore()
    listing = store.listing()
    return _cache("cached activations", [str(entry.folder) for entry in listing if store.read(entry.key) is None],
                  len(listing))


def _cache(what: str, damaged: list[str], count: int) -> Finding:
    if damaged:
        return Finding(what, "note", f"{len(damaged)} of {count} entries damaged: {damaged[0]}",
                       "nothing to do: what is damaged is built again when it is asked for; or delete it now")
    return Finding(what, "ok", f"{count} entries, intact")
