"""A trial in the hands of the coordinator."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from finetune.sweep.plan import Description
from finetune.sweep.search.trials import Ticket


@dataclass
class Assignment:
    """A trial on its way: drawn, resolving, running, perhaps tried again on another worker."""

    ticket: Ticket
    knobs: dict[str, Any]
    label: str
    description: Description | None = None
    tries: int = 0
    since: float = field(default_factory=time.monotonic)
