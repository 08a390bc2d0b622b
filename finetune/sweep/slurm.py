"""An sbatch script: an array whose tasks share one sweep, each a coordinator that comes back after whatever ends it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.sweep.plan import SweepOptions
from finetune.sweep.runner import planned_trials
from finetune.sweep.spec.schema import SweepSpec
from finetune.sweep.storages import JOURNAL

JOURNAL_FILE = "study.journal"
NOTICE_SECONDS = 120  # before the time limit; a coordinator gives its trials 30 for their checkpoints
_SCRIPT = """\
#!/bin/bash
# {title}: {tasks} tasks share one sweep, each trains until no trial is left. Written by finetune sweep --slurm_script.
# Submit: sbatch THIS_FILE    Look: finetune status {status}    Afterwards: finetune report {report}
#SBATCH --job-name={name}
#SBATCH --array=1-{tasks}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
{gpus}#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%A_%a.log
# Without B: the signal goes to what srun started, not to this shell; trials write their checkpoints then.
#SBATCH --signal=TERM@{notice}

cd {folder} || exit 5
# Activations of frozen layers: on the node's own disk, where other jobs of yours find them. Never on the shared one.
export FINETUNE_CACHE="${{FINETUNE_CACHE:-${{SLURM_TMPDIR:-${{TMPDIR:-/tmp}}}}/finetune-$(id -un)}}"
# Models and data come from the shared Hugging Face cache; on nodes without internet: export HF_HUB_OFFLINE=1
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-1}}"

srun {command} \\
    --output_dir {output}/task-"$SLURM_ARRAY_TASK_ID" \\
    --storage {storage}
code=$?
# 143: the signal came. A task that is still running then was neither cancelled nor requeued: its time is nearly up, and
# SLURM would not bring it back by itself. Every pass goes on from the checkpoints of the one before.
if [ "$code" = 143 ] && [ "$(squeue --noheader --job "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def slurm_script(spec: SweepSpec, options: SweepOptions, *, file: Path, tasks: int, gpus: int,
                 more: Sequence[str] = ()) -> str:
    """`more` are the words of the command line that every task gets besides its folder and the storage.

    No more tasks than trials. `options.storage` None: a journal in options.output_dir, which all nodes must see.
    """
    folder = Path(os.path.abspath(options.output_dir))
    storage = options.storage or f"{JOURNAL}{folder / JOURNAL_FILE}"
    command = [sys.executable, "-m", "finetune", "sweep", os.path.abspath(file), *more]
    name = "".join(character if character.isalnum() or character in "-_." else "-" for character in spec.name)
    return _SCRIPT.format(
        title=" ".join(spec.name.split()), name=name, tasks=max(1, min(tasks, planned_trials(spec, options))),
        gpus=f"#SBATCH --gpus-per-task={gpus}\n" if gpus else "", notice=NOTICE_SECONDS,
        folder=shlex.quote(os.getcwd()), command=shlex.join(command), output=shlex.quote(str(folder)),
        storage=shlex.quote(storage), status=shlex.quote(str(folder / "task-1")),
        report=f"{shlex.quote(str(folder))}/task-*")
