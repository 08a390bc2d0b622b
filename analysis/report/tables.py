"""Tidy tables: one row per trial, one per trial and epoch, one per test example; as csv and parquet."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.findings.curves import SPLIT, alone_seconds
from analysis.load.groups import dataset_name
from analysis.load.records import Trial
from analysis.statistics import metrics
from finetune.files import disk_errors

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FOLDER = "tables"


def trial_row(trial: Trial) -> dict[str, Any]:
    """One trial as a flat row. Knobs as they acted (None where a knob acts on nothing); metrics as `split_metric`."""
    record = trial.record
    row: dict[str, Any] = {
        "trial_id": record.trial_id, "setting_id": record.setting_id, "sweep": trial.sweep, "source": trial.source,
        "phase": trial.phase, "state": record.state, "error": (record.error or {}).get("kind"),
        "dataset": dataset_name(trial), "task": record.task, "metric": record.metric, "num_layers": record.num_layers,
        "parameters_total": record.parameters.get("total"), "parameters_trainable": record.parameters.get("trainable"),
        "best_epoch": record.best_epoch, "epochs": len(record.history),
    }
    row |= {name: str(value) if isinstance(value, list) else value for name, value in trial.knobs.items()}
    for prefix, content in (("", record.metrics), ("last_epoch_", record.last_epoch_metrics),
                            ("baseline_", {k: v for k, v in record.baseline.items() if isinstance(v, dict)})):
        row |= {f"{prefix}{split}_{name}": value for split, found in content.items() for name, value in found.items()}
    row |= record.cost | {"alone_seconds": alone_seconds(trial)}
    return row | {"prefix_saved_seconds": record.prefix.get("saved_seconds"),
                  "data_fingerprint": record.data.get("fingerprint"), "device": record.environment.get("device")}


def trial_table(trials: Sequence[Trial]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([trial_row(trial) for trial in trials])


def epoch_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row per trial and epoch (counted from 1)."""
    import pandas as pd

    rows = []
    for trial in trials:
        for entry in trial.record.history:
            flat = {"trial_id": trial.record.trial_id, **_place(trial)}
            for name, value in entry.items():
                nested = value if isinstance(value, dict) else None
                flat |= {name: value} if nested is None else {f"{name}_{key}": v for key, v in nested.items()}
            rows.append(flat)
    return pd.DataFrame(rows, columns=None if rows else ["trial_id", "epoch"])


def _place(trial: Trial) -> dict[str, Any]:
    return {"strategy": trial.arm.strategy, "freeze_depth": trial.arm.freeze_depth, "seed": trial.seed,
            "phase": trial.phase}


def example_tables(trials: Sequence[Trial]) -> Iterator[pa.Table]:
    """One table per complete trial, one row per test example, all with the same columns."""
    for trial in trials:
        predictions = trial.predictions(SPLIT) if trial.record.state == "complete" else None
        if predictions is not None:
            yield _examples(trial, *predictions)


def _examples(trial: Trial, logits: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> pa.Table:
    import pyarrow as pa

    task, rows = trial.record.task, len(labels)
    label, prediction, score = _answers(task, logits, labels)
    columns = {name: pa.array([value] * rows) if not isinstance(value, str) else _repeated(value, rows)
               for name, value in {"trial_id": trial.record.trial_id, **_place(trial)}.items()}
    columns["freeze_depth"] = columns["freeze_depth"].cast(pa.int64())
    return pa.table({**columns, "id": pa.array(ids.astype(str)), "label": pa.array(label),
                     "prediction": pa.array(prediction), "score": pa.array(score),
                     "loss": pa.array(metrics.per_row("loss", task, logits, labels).astype(np.float32))})


def _repeated(value: str, rows: int) -> Any:
    """The same text in every row, stored once."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def _answers(task: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(label, prediction, score) per row: 1 for a right answer, the squared error of a regression."""
    if task == "regression":
        return (labels.astype(np.float64), logits.reshape(len(labels)).astype(np.float64),
                metrics.per_row("mse", task, logits, labels).astype(np.float32))
    if task == metrics.TAGGED:  # words, words right, their share
        return logits[:, -1, 1], logits[:, -1, 0], metrics.per_row("accuracy", task, logits, labels).astype(np.float32)
    if task == "multilabel":
        return (_bits(labels > 0), _bits(logits > 0),
                metrics.per_row("subset_accuracy", task, logits, labels).astype(np.float32))
    return (labels.astype(np.int64), logits.argmax(axis=1).astype(np.int64),
            metrics.per_row("accuracy", task, logits, labels).astype(np.float32))


def _bits(matrix: np.ndarray) -> np.ndarray:
    """(rows, labels) of booleans -> texts such as "0|1|1"."""
    return np.array(["|".join("01"[bit] for bit in row) for row in matrix.astype(int)])


def write_tables(folder: Path, trials: Sequence[Trial]) -> None:
    """trials and epochs as csv and parquet, examples as parquet and csv.gz. Raises EnvironmentProblem."""
    with disk_errors("tables", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("trials", trial_table(trials)), ("epochs", epoch_table(trials))):
            table.to_csv(folder / f"{name}.csv", index=False)
            table.to_parquet(folder / f"{name}.parquet", index=False)
        _write_examples(folder, trials)


def _write_examples(folder: Path, trials: Sequence[Trial]) -> None:
    """Trial by trial, so that a thousand trials need no more memory than one."""
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pa_parquet

    with contextlib.ExitStack() as stack:
        writers: dict[str, tuple[Any, Any]] = {}
        for table in example_tables(trials):
            columns = repr(table.schema.types)
            if columns not in writers:
                name = "examples" if not writers else f"examples_{len(writers) + 1}"  # another task: other columns
                text = stack.enter_context(gzip.open(folder / f"{name}.csv.gz", "wb", compresslevel=1))
                writers[columns] = (
                    stack.enter_context(pa_parquet.ParquetWriter(folder / f"{name}.parquet", table.schema)),
                    stack.enter_context(pa_csv.CSVWriter(text, _plain(table))),
                )
            parquet, csv = writers[columns]
            parquet.write_table(table)
            csv.write_table(table.cast(_plain(table)))


def _plain(table: pa.Table) -> pa.Schema:
    """The table's columns without dictionaries, which csv has not."""
    import pyarrow as pa

    return pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in table.schema])
