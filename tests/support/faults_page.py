"""docs/faults.md from the tests: `python tests/support/faults_page.py` writes it. A row: a test marked `fault`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "faults.md"
COMMANDS = {"faults": "make test-faults", "slow": "make test-slow"}
AREAS = ("kill", "sweep", "disk", "memory", "bytes", "numbers", "input")

PROMISE = """# Nothing lost

*A trial's result is published exactly once or not at all. Any single kill loses at most the work since the last
checkpoint. A resumed trial equals an uninterrupted one bit for bit on the same machine and versions. Corrupt bytes are
never used. Nothing from a configuration, a data set or a checkpoint executes.*

The promise is held by the tests below. `make test` runs the fast ones; the last column names the command of the others.

## How

- **Checkpoints** lie in `OUTPUT_DIR/checkpoints/<trial_id>/`: one after every epoch, and with
  `--checkpointing_steps=N` one after every N optimizer steps. A checkpoint holds what trains (weights, AdamW's moments,
  the best epoch's weights), the position in the epoch, the phases of the strategy, the scaler of fp16 and every random
  state, as `state.json` and `tensors.safetensors` (nothing is pickled). It is staged in a folder of its own, fsynced,
  renamed in, and the one before is removed after that. Its checksum is verified before it is used; a damaged one is
  skipped, and that is said. The learning rate is a function of the step, so it needs no state. The checkpoints of a
  trial go away with its record; time spent on them is `cost.checkpoint_seconds`, not training time. After the
  last epoch the record follows at once: there none is written where less than 30 s of work would have to be done again,
  and on a GPU none after an epoch that leaves less than 5 s to do again.
- **Running the same command again** continues: a complete record is not trained again, an unfinished trial goes on from
  its checkpoint. The record's `resumes` lists where, and what of versions, device or threads had changed (which is also
  said: the last digits may differ then).
- **Ctrl-C** (130) and SIGTERM (143) end the trial after the running step, with a checkpoint. A second Ctrl-C ends it
  at once. What has a meaning for W&B (preemption, a stop from the server) is in [wandb.md](wandb.md).
- **A full disk** is exit 5 with one sentence; what was there stays intact, no temporary file stays, and the same
  command goes on when there is room.
- **Out of memory** fails the trial with the figure and the knob to change. With `auto_micro_batch: true` the rows per
  pass are halved instead, the effective batch stays; the record's `micro_batch` says so and the report warns, since
  with dropout the result is not the same. Several processes cannot do that (the others wait for gradients): there
  the trial fails.
- **`finetune doctor`** looks at all of this on one machine: versions, devices, threads, disk, W&B, hub, records,
  checkpoints and caches. `--json` for programs, exit 5 when something would make a sweep fail.

## The fault matrix

Made from the tests by `python tests/support/faults_page.py`; a test checks that this page is up to date.

"""


class Row(NamedTuple):
    area: str
    what: str
    outcome: str
    test: str
    command: str


def rows() -> Iterator[Row]:
    files = [*HERE.parent.rglob("test_*.py"), HERE / "shared_study.py"]
    for path in sorted(files, key=lambda path: path.name):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                names = {_name(mark) for mark in function.decorator_list}
                command = next((command for mark, command in COMMANDS.items() if mark in names), "make test")
                for mark in function.decorator_list:
                    if _name(mark) == "fault":
                        area, what, outcome = (ast.literal_eval(argument) for argument in mark.args)
                        yield Row(area, what, outcome, f"{path.name}::{function.name}", command)


def _name(mark: ast.expr) -> str:
    mark = mark.func if isinstance(mark, ast.Call) else mark
    return mark.attr if isinstance(mark, ast.Attribute) else ""


def page() -> str:
    table = sorted(rows(), key=lambda row: (AREAS.index(row.area), row.what))
    lines = ["| | fault | what happens | test | in |", "|---|---|---|---|---|"]
    lines += [f"| {row.area} | {row.what} | {row.outcome} | `{row.test}` | {row.command} |" for row in table]
    return PROMISE + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
