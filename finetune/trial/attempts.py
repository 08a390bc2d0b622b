"""The second attempt in float32 that `retry_in_float32` asks for."""

from __future__ import annotations

from collections.abc import Callable

from finetune.config import TrialConfig
from finetune.trial.events import Observer
from finetune.trial.state import TrialOutcome


def attempts(config: TrialConfig, observer: Observer, attempt: Callable[[TrialConfig, str | None], TrialOutcome]
             ) -> TrialOutcome:
    """One attempt, or two: the second in float32, where `retry_in_float32` asks for one and the first met numbers that
    are not finite. The second stands for the same trial; its record says what became of the first (`retried`)."""
    outcome = attempt(config, None)
    first = outcome.record
    overflowed = first.state == "failed" and (first.error or {}).get("kind") == "non-finite"
    if not overflowed or not config.retry_in_float32 or config.mixed_precision == "no":
        return outcome
    observer.said(f"{first.error['message']}; once more in float32, as retry_in_float32 asks")
    observer.retried()
    outcome = attempt(config.model_copy(update={"mixed_precision": "no"}), config.mixed_precision)
    outcome.record.retried = {"mixed_precision": config.mixed_precision, "error": first.error, "cost": first.cost}
    return outcome
