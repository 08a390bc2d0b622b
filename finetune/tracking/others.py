"""The trackers besides W&B that `report_to` names: TensorBoard, MLflow and trackio, through Accelerate's own classes.

Names, steps and summaries are W&B's (`tracking/mirror.py`), as far as each can hold them. Where they lie:

tensorboard  OUTPUT_DIR/tensorboard/PHASE/SETTING/RUN; knobs as hparams, the summary's numbers at the last epoch
mlflow       MLFLOW_TRACKING_URI, else OUTPUT_DIR/mlflow.db; experiment = project; tags sweep, phase, setting_id …
trackio      its own folder (TRACKIO_DIR) or server; project, group = setting, config as in W&B
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.config import TrialConfig, reporters
from finetune.files import FileLock
from finetune.results import TrialRecord
from finetune.tracking.client import PROJECT, output_folder, reason_of, say_once
from finetune.tracking.mirror import flatten, row_of, run_name, summary_of
from finetune.tracking.tracker import Tracker
from finetune.trial.events import Observer, Verdict


@contextlib.contextmanager
def trackers(config: TrialConfig, *, sweep: str | None = None, protocol: Mapping[str, Any] | None = None
             ) -> Iterator[tuple[Tracker, list[OtherTracker]]]:
    """(W&B's tracker, the others that `report_to` names) of one trial; each opens its run when the trial starts.

    What is open when an error leaves the block is closed, or the next trial of this process would find it.
    """
    sweep = sweep or os.environ.get("WANDB_SWEEP_ID")
    tracker = Tracker(config, sweep=sweep, protocol=protocol)
    others = [OtherTracker(name, config, sweep, dict(protocol or {})) for name in reporters(config.report_to)
              if name in _OPENERS]
    try:
        yield tracker, others
    except BaseException as error:
        tracker.close(error)
        for other in others:
            other.close()
        raise


class OtherTracker(Observer):
    """Mirrors one trial. Whatever fails is said once and ends the tracking, never the trial.

    A trial that goes on from a checkpoint begins a run anew, with the epochs before it.
    """

    def __init__(self, name: str, config: TrialConfig, sweep: str | None, protocol: Mapping[str, Any]):
        self.name, self.config = name, config
        self.facts = {"sweep": sweep or "none", "phase": protocol.get("phase", "train")}
        self.folder = output_folder(config.output_dir, sweep).absolute()
        self._tracker: Any = None
        self._logged = 0

    # -- the observer ------------------------------------------------------------------------------------------------

    def started(self, resolved: Mapping[str, Any]) -> None:
        if self._tracker is None:
            self._guarded("starting", lambda: self._open(resolved))

    def retried(self) -> None:
        """A new run: the first attempt's keeps its own rows."""
        self.close()
        self._logged = 0

    def resumed(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        for entry in history:
            self.epoch_ended(entry["epoch"], entry)

    def epoch_ended(self, epoch: int, entry: Mapping[str, Any]) -> Verdict:
        if self._tracker is not None and epoch > self._logged:
            self._logged = epoch
            self._guarded("logging", lambda: self._tracker.log(_numbers(row_of(entry)), step=epoch))
        return "continue"

    def finished(self, record: TrialRecord, predictions: Mapping[str, np.ndarray]) -> None:
        if self._tracker is not None:
            last = max(self._logged, 1)
            self._guarded("writing the summary", lambda: self._tracker.log(_numbers(_ending(record)), step=last))
        self.close()

    def close(self) -> None:
        """End the run; without one it does nothing."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._guarded("finishing the run", tracker.finish)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open(self, resolved: Mapping[str, Any]) -> None:
        strategy = resolved.get("strategy") or ""
        facts = {**self.facts, "setting_id": resolved["setting_id"], "trial_id": resolved["trial_id"],
                 "strategy": strategy}
        self.folder.mkdir(parents=True, exist_ok=True)
        tracker = _OPENERS[self.name](self, run_name(self.config, strategy), facts)
        self._tracker = tracker
        knobs = {name.replace("/", "."): value for name, value in flatten(self.config.model_dump()).items()}
        tracker.store_init_configuration({name: _plain(value) for name, value in (knobs | facts).items()})

    def _guarded(self, what: str, action: Callable[[], Any]) -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is the record's (--json)
                action()
        except Exception as error:
            self._tracker = None
            say_once(f"{self.name} is lost while {what} ({reason_of(error)}); training goes on, the record on disk is "
                     "complete")

    @property
    def project(self) -> str:
        return self.config.wandb_project or os.environ.get("WANDB_PROJECT") or PROJECT


def _tensorboard(own: OtherTracker, name: str, facts: Mapping[str, Any]) -> Any:
    from accelerate.tracking import TensorBoardTracker

    run = "-".join([re.sub(r"[^\w.=:-]+", "_", name), facts["trial_id"][:8]])
    # purge_step: a trial that begins again hides what its first attempt has written.
    tracker = TensorBoardTracker(os.path.join(facts["phase"], facts["setting_id"][:12], run),
                                 logging_dir=own.folder / "tensorboard", purge_step=0)
    tracker.start()
    return tracker


def _mlflow(own: OtherTracker, name: str, facts: Mapping[str, Any]) -> Any:
    import mlflow
    from accelerate.tracking import MLflowTracker

    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(given or f"sqlite:///{own.folder / 'mlflow.db'}")
    tracker = MLflowTracker(own.project, logging_dir=None if given else str(own.folder / "mlflow-artifacts"),
                            run_name=name, tags=dict(facts))
    lock = FileLock(own.folder / "locks" / "mlflow.lock")  # two workers would create the same tables
    lock.acquire(wait=True)
    try:
        tracker.start()
    finally:
        lock.release()
    return tracker


def _trackio(own: OtherTracker, name: str, facts: Mapping[str, Any]) -> Any:
    import trackio
    from accelerate.tracking import TrackioTracker

    class Forgotten(TrackioTracker):
        """Accelerate leaves the finished run as trackio's current one, which is ended, aloud, once more at exit."""

        def finish(self) -> None:
            trackio.finish()

    tracker = Forgotten(own.project, name=name, group=facts["setting_id"][:12], embed=False, auto_log_cpu=False)
    tracker.start()
    return tracker


_OPENERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "trackio": _trackio}


def _ending(record: TrialRecord) -> dict[str, Any]:
    """W&B's summary. What has a curve is named best/… here, the best epoch's: one more value would bend the curve."""
    rows = {name for entry in record.history for name in row_of(entry)}
    return {f"best/{name}" if name in rows else name: value for name, value in summary_of(record).items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What every one of them draws; text stays in W&B and in the record."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
