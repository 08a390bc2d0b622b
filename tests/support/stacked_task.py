"""The real trial with heads in stacks on a CPU, too; in $STACKS a line for each stack: process, seeds of its heads."""

from __future__ import annotations

import os

from finetune import trial
from finetune.training import head_stack
from finetune.trial import head_stacks, resolve_trial  # noqa: F401  (a task offers it)

head_stacks.STACKED_ON.add("cpu")
run_trial = trial.run_trial
_init = head_stack.HeadStack.__init__


def _noting(stack, common, members, *rest):
    with open(os.environ["STACKS"], "a") as file:
        file.write(f"{os.getpid()} {' '.join(str(member.seed) for member in members)}\n")
    _init(stack, common, members, *rest)


head_stack.HeadStack.__init__ = _noting
