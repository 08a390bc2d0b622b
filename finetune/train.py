"""One trial: what `accelerate launch -m finetune.train`, `wandb agent` and `finetune train` run."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.config import TrialConfig, knob_help
from finetune.errors import ConfigError, EnvironmentProblem, FinetuneError, Interrupted
from finetune.files import FileLock
from finetune.observer import Observer
from finetune.results import RecordStore, TrialRecord

FLAGS = {"--force": "train even when a complete record exists", "--json": "print the record as JSON on stdout"}


def parse_argv(argv: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """--name=value or --name value -> (knobs, flags). Raises ConfigError with every token that is neither."""
    knobs: dict[str, Any] = {}
    flags: set[str] = set()
    problems: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if token in FLAGS:
            flags.add(token)
            continue
        name, equals, value = token[2:].partition("=")
        if not token.startswith("--") or not name:
            problems.append(f"{token!r} is not an option; write --name=value")
            continue
        if not equals:
            if not tokens or tokens[0].startswith("--"):
                problems.append(f"--{name} has no value; write --{name}=value")
                continue
            value = tokens.pop(0)
        if name in knobs:
            problems.append(f"--{name} is given twice")
        knobs[name] = value
    if problems:
        raise ConfigError(problems)
    return knobs, flags


def run(argv: Sequence[str]) -> int:
    """Exit code of a trial: 0 done, 1 failed (its record is published)."""
    if any(token in {"-h", "--help"} for token in argv):
        print("usage: finetune train [--KNOB=VALUE ...] [--force] [--json]\n")
        print("\n".join(f"  {name:10} {doc}" for name, doc in FLAGS.items()))
        print(knob_help())
        return 0
    knobs, flags = parse_argv(argv)
    signal.signal(signal.SIGTERM, _interrupted)
    config = TrialConfig.from_mapping(knobs)
    record = train(config, force="--force" in flags)
    if record is None:  # not the main process
        return 0
    if "--json" in flags:
        print(json.dumps(record.as_json(), ensure_ascii=False))
    else:
        print(summary(record), file=sys.stderr)
    return 1 if record.state == "failed" else 0


def train(config: TrialConfig, *, force: bool = False) -> TrialRecord | None:
    """Run the trial and publish its record; a complete one is returned instead of trained again.

    Returns None on every process but the main one.
    """
    from finetune.trial import resolve_trial, run_trial

    store = RecordStore(config.output_dir or default_output_dir())
    main_process = int(os.environ.get("RANK", "0")) == 0
    resolved = resolve_trial(config, int(os.environ.get("WORLD_SIZE", "1")))
    lock = FileLock(store.root / "locks" / f"{resolved.trial_id}.lock")
    if main_process and not lock.acquire(wait=False):
        raise EnvironmentProblem(f"trial {resolved.trial_id[:12]} in {store.root} is being trained by {lock.holder()}")
    done = store.load_complete(resolved.trial_id) if not force else None
    if done is not None and done.state == "complete":
        return done if main_process else None
    outcome = run_trial(config, observer=ProgressLines())
    if not main_process:
        return None
    record = outcome.record.model_copy(update={"sweep": os.environ.get("WANDB_SWEEP_ID")})
    return store.publish(record, outcome.predictions)


def default_output_dir() -> Path:
    return Path("runs") / (os.environ.get("WANDB_SWEEP_ID") or "single")


class ProgressLines(Observer):
    """Plain lines on stderr: one when the trial starts, one per epoch."""

    def started(self, resolved: Any) -> None:
        share = resolved["parameters"]["trainable"] / resolved["parameters"]["total"]
        print(f"trial {resolved['trial_id'][:12]}: {resolved['strategy']}, {share:.1%} of the parameters train, "
              f"{resolved['total_steps']} steps", file=sys.stderr)

    def epoch_ended(self, epoch: int, entry: Any) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in entry["validation"].items())
        print(f"epoch {epoch}: train loss {entry['train']['loss']:.4f}; validation {values}; "
              f"{entry['train_seconds'] + entry['evaluation_seconds']:.1f} s", file=sys.stderr)
        return "continue"


def summary(record: TrialRecord) -> str:
    if record.state == "failed":
        return f"failed ({record.error['kind']}): {record.error['message']}"
    test = record.metrics.get("test", {})
    values = ", ".join(f"{name} {value:.4f}" for name, value in test.items() if isinstance(value, float))
    return f"{record.state}; best epoch {record.best_epoch}; test {values}"


def _interrupted(signum: int, frame: Any) -> None:
    raise Interrupted(signum)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except FinetuneError as error:
        print(f"finetune.train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
