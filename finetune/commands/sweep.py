"""`finetune sweep FILE`: plan, run and summarise a sweep."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, Problem, did_you_mean, too_small

if TYPE_CHECKING:
    from finetune.sweep.plan import SweepOptions
    from finetune.sweep.runner import Ending
    from finetune.sweep.spec.schema import SweepSpec
    from finetune.sweep.workers.birth import Newborn

_PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = (_PACKAGE / "sweep" / "library", _PACKAGE.parent / "sweeps")  # in the wheel; in a checkout
SLURM_TASKS = 4
_SHOWN_FAILURES = 20
_OF_THE_SCRIPT = ("file", "output_dir", "storage", "slurm_script", "gpus_per_task", "dry_run", "json", "overrides")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run a W&B sweep file on this machine, without an account."
    parser.add_argument("file", metavar="FILE", help="a sweep's YAML, or the name of one that comes with the package")
    parser.add_argument("--name", metavar="NAME", help="as in `wandb sweep --name`; default: the YAML's name")
    parser.add_argument("--output_dir", type=Path, metavar="DIR",
                        help="where records, logs and the study are written; default: runs/<the file's name>")
    parser.add_argument("--workers", default="auto", metavar="N|auto",
                        help="processes that train; auto: up to four per GPU, or what cores and memory carry (default)")
    parser.add_argument("--mps", default="auto", metavar="auto|off",
                        help="auto: where workers share a GPU, their kernels run at the same time (CUDA's MPS), with a "
                             "control daemon of the sweep's own if nobody runs one (default); off: in turns")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="fix a knob for the whole sweep, or replace its values with a list (repeatable); YAML")
    parser.add_argument("--dry_run", action="store_true",
                        help="check every point and say how many trials there are, which, and what they cost")
    parser.add_argument("--confirm", type=int, default=0, metavar="N",
                        help="after tuning, train each depth's chosen setting on N fresh seeds")
    parser.add_argument("--adaptive", action="store_true",
                        help="find the deepest freeze_depth that loses at most the margin without training every one: "
                             "bisection, settings halved per seed, fresh seeds until a depth is decided")
    parser.add_argument("--max_seeds", type=int, metavar="N",
                        help="with --adaptive: fresh seeds per depth at most (default: 20, at least 5)")
    parser.add_argument("--margin", type=float, metavar="FRACTION",
                        help="with --adaptive: loss of the metric that is tolerated; default: the sweep's `margin`, "
                             "0.01 for one point")
    parser.add_argument("--storage", metavar="URL",
                        help="postgresql://… or journal:FILE (in a shared folder) shares one sweep among machines; "
                             "default: OUTPUT_DIR/study.journal")
    parser.add_argument("--search_seed", type=int, default=0, metavar="N",
                        help="seed of random and bayes (default: 0)")
    parser.add_argument("--retries", type=int, default=2, metavar="N",
                        help="how often a crashed, hung or out-of-memory trial is tried again (default: 2)")
    parser.add_argument("--trial_timeout", type=float, metavar="SECONDS",
                        help="end a trial that runs longer, with its children; default: never")
    parser.add_argument("--grace", type=float, default=60.0, metavar="SECONDS",
                        help="with --storage: after how long a silent machine's trials are taken over (default: 60)")
    parser.add_argument("--prefix_budget", metavar="SIZE",
                        help="disk and memory for the activations of frozen layers, e.g. 20GB; 0 keeps nothing; "
                             "default: a quarter of the free disk, at most half of the free memory")
    parser.add_argument("--slurm_script", type=int, nargs="?", const=SLURM_TASKS, metavar="TASKS",
                        help="print an sbatch script instead: an array of TASKS (default: "
                             f"{SLURM_TASKS}) that share the sweep and come back after preemption and time limits")
    parser.add_argument("--gpus_per_task", type=int, metavar="N",
                        help="with --slurm_script: GPUs that each task asks for; 0 asks for none (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def main(args: argparse.Namespace) -> int:
    """Exit code 0, or 3 when trials failed. Raises FinetuneError for everything else."""
    if args.dry_run or args.slurm_script is not None or args.gpus_per_task is not None:
        return _run(args, None)
    from finetune.sweep.workers.birth import head_start

    with head_start(args.workers) as born:  # before all that this process imports: a worker imports the most
        return _run(args, born)


def _run(args: argparse.Namespace, born: Newborn | None) -> int:
    from finetune.sweep.spec.schema import load_spec
    from finetune.sweep.view.live import open_view
    from finetune.tracking import check_mode

    check_mode()
    spec = load_spec(find_sweep(args.file), args.overrides).named(args.name)
    options = options_from(vars(args), spec, Path(args.file).stem, dashes="--")
    if args.slurm_script is not None or args.gpus_per_task is not None:
        print(_slurm_script(args, spec, options), end="")
        return 0
    view = open_view()
    if args.dry_run:
        from finetune.sweep.estimate import dry_run

        print(dry_run(spec, options, view).text(as_json=args.json))
        return 0
    from finetune.sweep.runner import run_sweep

    try:
        ending = run_sweep(spec, options, view, born)
    finally:
        view.close()
    print(json.dumps(ending_content(ending, options.output_dir)) if args.json else closing(ending, options.output_dir))
    return ending.exit_code


def _slurm_script(args: argparse.Namespace, spec: SweepSpec, options: SweepOptions) -> str:
    from finetune.sweep.slurm import slurm_script

    given = {name: value for name in ("slurm_script", "gpus_per_task") if (value := getattr(args, name)) is not None}
    problems: list[Problem | str] = [*too_small({"slurm_script": 1, "gpus_per_task": 0}, given, "--")]
    problems += [Problem(f"--{name}", True, "allowed: a script, or this; not both") for name in ("dry_run", "json")
                 if getattr(args, name)]
    if args.slurm_script is None:
        problems.append(Problem("--gpus_per_task", args.gpus_per_task, "allowed: with --slurm_script"))
    if problems:
        raise ConfigError(problems)
    gpus = 1 if args.gpus_per_task is None else args.gpus_per_task
    return slurm_script(spec, options, file=find_sweep(args.file), tasks=args.slurm_script, gpus=gpus,
                        more=_words_of(args))


def _words_of(args: argparse.Namespace) -> list[str]:
    """The options as they were given, without those that the script sets itself."""
    parser = argparse.ArgumentParser()
    configure(parser)
    words = [word for override in args.overrides for word in ("--set", override)]
    for name, value in vars(args).items():
        if name not in _OF_THE_SCRIPT and value != parser.get_default(name):
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def options_from(given: Mapping[str, Any], spec: SweepSpec, name: str, *, dashes: str = "") -> SweepOptions:
    """What was asked for as SweepOptions; what is not `given` is as there. Raises ConfigError with every violation.

    `name`: the folder in runs/ that is taken where neither `given` nor the sweep has an output_dir. `dashes` stand
    before the names in a violation: "--" on a command line.
    """
    from finetune.prefix.budget import parse_size
    from finetune.sweep.adaptive.prepare import problems_of
    from finetune.sweep.plan import SweepOptions
    from finetune.sweep.storages import check_url

    problems: list[Problem | str] = [*too_small({"confirm": 0, "search_seed": 0, "retries": 0}, given, dashes)]
    problems += [Problem(f"{dashes}{option}", seconds, "allowed: a number of seconds > 0")
                 for option in ("trial_timeout", "grace") if (seconds := given.get(option)) is not None
                 and not (isinstance(seconds, int | float) and seconds > 0)]
    workers = None if given["workers"] == "auto" else _count(str(given["workers"]))
    if workers == 0:
        problems.append(Problem(f"{dashes}workers", given["workers"], "allowed: auto, or an integer >= 1"))
    mps = given.get("mps", "auto")
    if mps not in ("auto", "off"):
        problems.append(Problem(f"{dashes}mps", mps, "allowed: auto | off"))
    budget = None
    if given["prefix_budget"] is not None:
        try:
            budget = parse_size(given["prefix_budget"])
        except ConfigError as error:
            problems += error.problems
    problems += problems_of(spec, given, dashes)
    if problems:
        raise ConfigError(problems)
    as_they_are = ("search_seed", "retries", "trial_timeout", "confirm", "grace", "from_python", "adaptive", "margin",
                   *(["max_seeds"] if given.get("max_seeds") is not None else []))
    return SweepOptions(output_dir=given["output_dir"] or _default_output_dir(spec, name), workers=workers,
                        storage=check_url(given["storage"]) if given["storage"] else None, prefix_budget=budget,
                        mps=mps == "auto", **{option: given[option] for option in as_they_are if option in given})


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _default_output_dir(spec: SweepSpec, name: str) -> Path:
    """The one that the YAML fixes, or runs/<name>."""
    named = next((p for p in spec.parameters if p.name == "output_dir" and p.distribution == "constant"), None)
    return Path(str(named.arguments["value"])) if named else Path("runs") / name


def find_sweep(name: str) -> Path:
    """A path, or the name of a sweep that comes with the package."""
    path = Path(name)
    if path.is_file():
        return path
    library = {file.name: file for folder in LIBRARIES if folder.is_dir() for file in sorted(folder.glob("*.yaml"))}
    for candidate in (path.name, f"{path.name}.yaml"):
        if candidate in library and path.parent in (Path("."), Path("sweeps")):
            return library[candidate]
    raise ConfigError([Problem("FILE", name, "no such file, and no sweep of that name comes with the package ("
                               + ", ".join(sorted(library)) + ")" + did_you_mean(path.name, library))])


def ending_content(ending: Ending, output_dir: Path) -> dict[str, Any]:
    """The closing table for programs."""
    return {"output_dir": str(output_dir), "exit_code": ending.exit_code,
            "phases": [board.summary() for board in ending.boards],
            "failures": [{"trial": label, "reason": reason} for label, reason in ending.failures],
            "chosen": [vars(choice) for choice in ending.chosen],
            **({"adaptive": ending.adaptive} if ending.adaptive else {})}


def closing(ending: Ending, output_dir: Path) -> str:
    """The closing table for people."""
    from finetune.sweep.view.board import duration, label_of, shown_value
    from finetune.sweep.view.live import counts_of

    lines = [f"{counts_of(board)} · {duration(board.summary()['running_seconds'])}" for board in ending.boards]
    for choice in ending.chosen:
        label = label_of(choice.values, [name for name in ending.searched if name != "seed"])
        lines.append(f"  chosen for {choice.kind}: {label} (mean {shown_value(choice.mean)} over "
                     f"{len(choice.seeds)} seeds, best of {choice.rivals})")
    if ending.adaptive and (unused := ending.adaptive["trained_ahead_unused"]):
        lines.append(f"{unused} trials were trained ahead of a decision that then did not need them")
    if ending.failures:
        lines.append(f"{len(ending.failures)} failed:")
        lines += [f"  {label}: {reason}" for label, reason in ending.failures[:_SHOWN_FAILURES]]
        if len(ending.failures) > _SHOWN_FAILURES:
            more = len(ending.failures) - _SHOWN_FAILURES
            lines.append(f"  … and {more} more; see finetune status {shlex.quote(str(output_dir))}")
        lines.append("Run the same command again to try the failed trials again.")
    others = " and the directories of the other machines" if any(b.elsewhere for b in ending.boards) else ""
    lines.append(f"Next: finetune report {shlex.quote(str(output_dir))}{others}")
    return "\n".join(lines)
