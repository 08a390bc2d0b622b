"""What GLUE says about its own tasks (Wang et al. 2019, table 1): which columns form the input, which metric counts.

Where GLUE reports two metrics, the first one picks the epoch and both are in the record. Test labels are -1 throughout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NAMES = ("glue", "nyu-mll/glue")


@dataclass(frozen=True)
class GlueTask:
    text: tuple[str, ...]
    metric: str = "accuracy"
    validation: str = "validation"


TASKS = {
    "cola": GlueTask(("sentence",), "matthews"),
    "sst2": GlueTask(("sentence",)),
    "mrpc": GlueTask(("sentence1", "sentence2")),  # and F1
    "stsb": GlueTask(("sentence1", "sentence2"), "pearson"),  # and Spearman
    "qqp": GlueTask(("question1", "question2")),  # and F1
    "mnli": GlueTask(("premise", "hypothesis"), validation="validation_matched"),
    "qnli": GlueTask(("question", "sentence")),
    "rte": GlueTask(("sentence1", "sentence2")),
    "wnli": GlueTask(("sentence1", "sentence2")),
}


def metric_of(folder: Path) -> str | None:
    """The metric of a downloaded GLUE task, by its place: …/glue_data/CoLA, …/glue/STS-B."""
    folder = folder.resolve()
    task = TASKS.get(re.sub(r"[^a-z0-9]", "", folder.name.lower()))
    return task.metric if task and folder.parent.name.lower().startswith("glue") else None
