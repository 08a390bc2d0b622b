"""The observer that mirrors a trial to W&B while it runs."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import TrialConfig, reporters
from finetune.errors import FinetuneError, Interrupted
from finetune.results import RecordStore, TrialRecord
from finetune.tracking.client import TRANSMIT_SECONDS, Client, in_sweep, output_folder, reason_of, say_once
from finetune.tracking.mirror import config_of, facts_of, row_of, run_name, summary_of, tags
from finetune.training.processes import is_main_process
from finetune.trial.events import Observer, Verdict

EXIT_CODES = {"complete": 0, "pruned": 0, "failed": 1}


def refuse(knobs: Mapping[str, Any], error: FinetuneError) -> None:
    """Tell the run of a sweep that its parameters are no configuration. Outside a sweep there is no such run."""
    if in_sweep() and is_main_process():
        tracker = Tracker(TrialConfig())
        tracker.open_to_refuse(knobs)
        tracker.close(error)


class Tracker(Observer):
    """Call `close` at the end, whatever happened; after `finished` it does nothing."""

    def __init__(self, config: TrialConfig, *, sweep: str | None = None, protocol: Mapping[str, Any] | None = None):
        self.config, self.sweep, self.protocol = config, sweep, dict(protocol or {})
        # An agent waits for its run: there W&B is told whatever report_to says.
        wanted = "wandb" in reporters(config.report_to) or in_sweep()
        self.client = Client(output_folder(config.output_dir, sweep), wanted=wanted)
        self._unfinished: UnfinishedRun | None = None
        self._run_id: str | None = None
        self._opened = False
        self._logged = 0  # the last epoch that the run has
        self._before = 0  # steps of an attempt that does not count

    # -- the observer ------------------------------------------------------------------------------------------------

    def started(self, resolved: Mapping[str, Any]) -> None:
        if self._opened:
            return
        self._opened = True
        facts = {**facts_of(resolved), "sweep": self.sweep, "protocol": self.protocol or None}
        strategy = resolved.get("strategy") or resolved.get("effective", {}).get("strategy") or ""
        self._unfinished = UnfinishedRun(self.client.folder / "wandb" / "unfinished" / resolved["trial_id"][:32])
        self.client.open(
            **self._where(self._run_id or self._unfinished.remembered()),
            config=config_of(self.config.model_dump(), facts), group=resolved["setting_id"],
            job_type=self.protocol.get("phase", "train"), name=run_name(self.config, strategy),
            tags=tags(self.config, strategy),
        )
        self.client.guarded("starting", self._define_metrics)

    def epoch_ended(self, epoch: int, entry: Mapping[str, Any]) -> Verdict:
        # A resumed run has the epochs that came before its checkpoint, and perhaps the one that was cut short.
        if epoch > self._logged:
            self._logged = epoch
            # Committed at once: a row that waits for the next one comes late for hyperband, and after the summary.
            self.client.guarded("logging", lambda run: run.log(row_of(entry), step=self._before + epoch, commit=True))
        return "prune" if self.client.stop_wanted.is_set() else "continue"

    def retried(self) -> None:
        """The run goes on, since an agent has one for the trial. Its steps go up, and what reads it by epoch takes the
        later row, which is the second attempt's."""
        self._before, self._logged = self._before + self._logged, 0

    def resumed(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        """A run that was opened anew lacks the epochs before the checkpoint; one that goes on has them."""
        for entry in history:
            self.epoch_ended(entry["epoch"], entry)

    def sign(self, record: TrialRecord) -> None:
        """Name sweep, protocol and run (`wandb_run`) in a record that is about to be published."""
        self.started({**record.model_dump(), "strategy": record.effective.get("strategy")})
        record.sweep = record.sweep or self.sweep
        record.protocol = record.protocol or self.protocol
        record.wandb_run = self.client.identity()

    def finished(self, record: TrialRecord, predictions: Mapping[str, np.ndarray]) -> None:
        """Mirror the end. Signs the record, which may be published before or afterwards."""
        self.sign(record)
        self.client.guarded("writing the summary", lambda run: self._tell_end(run, record))
        with tempfile.TemporaryDirectory(prefix="finetune-wandb-") as folder:
            refusal = self._upload(record, predictions, Path(folder))
            self.client.finish(EXIT_CODES[record.state])
        record.wandb_run = self.client.identity()  # it may have been lost at the very end
        if refusal and "lost" not in (record.wandb_run or {}):
            say_once(f"W&B does not take artifacts ({refusal}); record and predictions are on disk")
        if self._unfinished:
            self._unfinished.forget()

    def interrupted(self, signum: int) -> Verdict:
        """W&B's agent passes on a server's stop as SIGTERM: "prune" if that is what the signal means.

        The next answer of the file stream tells; it is provoked, and waited for as long as it may take.
        """
        if signum != signal.SIGTERM or not in_sweep() or self.client.mode != "online":
            return "stop"
        self.client.guarded("asking why", lambda run: run.summary.update({"state": "interrupted"}))
        seconds = float(os.environ.get("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", TRANSMIT_SECONDS)) + 2.0
        return "prune" if self.client.run is not None and self.client.stop_wanted.wait(seconds) else "stop"

    # -- the end without a record ------------------------------------------------------------------------------------

    def close(self, error: BaseException | None = None) -> None:
        """End the run of a trial that has no record: interrupted, or refused before it trained."""
        if isinstance(error, Interrupted) and self.config.preemptible and not self.client.stop_wanted.is_set():
            self.client.guarded("marking the run as preempting", lambda run: run.mark_preempting())
        elif error is not None:
            if in_sweep() and is_main_process() and isinstance(error, FinetuneError):
                self.open_to_refuse(self.config.model_dump())
            told = {"state": "interrupted" if isinstance(error, Interrupted) else "failed",
                    "error/kind": type(error).__name__, "error/message": str(error)}
            self.client.guarded("writing the summary", lambda run: run.summary.update(told))
        self.client.finish(getattr(error, "exit_code", 1))

    def open_to_refuse(self, knobs: Mapping[str, Any]) -> None:
        """The run of a sweep says why it cannot even begin: behind a launcher nobody sees the exit code."""
        if not self._opened:
            self._opened = True
            self.client.open(**self._where(None), config=dict(knobs))

    def replay(self, record: TrialRecord, predictions: Mapping[str, np.ndarray], run_id: str | None = None) -> None:
        """Tell W&B of a trial that was trained before: a run, afterwards. Outside a sweep `run_id` names it."""
        self._run_id = run_id
        self.started({**record.model_dump(), "strategy": record.effective.get("strategy")})
        for entry in record.history:
            self.epoch_ended(entry["epoch"], entry)
        self.finished(record.model_copy(), predictions)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _where(self, run_id: str | None) -> dict[str, Any]:
        """Project, entity and id of the run; in a sweep of W&B the agent has decided them."""
        if in_sweep():
            return {}
        return {"project": self.config.wandb_project, "entity": self.config.wandb_entity, "id": run_id}

    def _define_metrics(self, run: Any) -> None:
        run.define_metric("epoch")
        for group in ("train/*", "validation/*"):
            run.define_metric(group, step_metric="epoch")
        self._logged = max(0, run.starting_step - 1) if run.resumed else 0
        self._unfinished.remember(run.id)

    def _tell_end(self, run: Any, record: TrialRecord) -> None:
        changed = {name: value for name, value in record.config.items() if value != self.config.model_dump().get(name)}
        run.config.update(config_of(changed, record.model_dump(mode="json")), allow_val_change=True)
        run.summary.update(summary_of(record))

    def _upload(self, record: TrialRecord, predictions: Mapping[str, np.ndarray], folder: Path) -> str | None:
        """Record and predictions as an artifact, byte for byte as RecordStore publishes them; why not, or None."""
        if not self.config.upload_predictions or self.client.run is None:
            return None
        store = RecordStore(folder)
        store.publish(record, predictions)
        try:
            import wandb

            artifact = wandb.Artifact(f"trial-{record.trial_id[:16]}", type="trial")
            artifact.add_dir(str(store.folder(record.trial_id)))
            self.client.run.log_artifact(artifact)
        except Exception as error:
            return reason_of(error)
        return None


class UnfinishedRun:
    """Remembers a trial's run id until the trial has a record: tried again after a kill, it is the same run."""

    def __init__(self, path: Path):
        self.path = path

    def remembered(self) -> str:
        with suppress(OSError):
            return self.path.read_text().strip() or secrets.token_hex(4)
        return secrets.token_hex(4)

    def remember(self, run_id: str) -> None:
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(run_id)

    def forget(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
