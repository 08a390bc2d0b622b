"""One trial from Python, and predictions of the model that it kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from finetune.config import TrialConfig
from finetune.errors import ConfigError, DataError, TrialFailed, too_small
from finetune.interface.given import as_path, as_texts, plain_value
from finetune.interface.knobs import Knobs
from finetune.interface.progress import BarObserver, in_notebook, stop_button
from finetune.results import RecordStore, TrialRecord

if TYPE_CHECKING:
    import pandas as pd


def run_trial(*, force: bool = False, progress: bool = True, **knobs: Unpack[Knobs]) -> TrialRecord:
    """Train one configuration and test its best epoch: what `finetune train` does.

    The record is published in `output_dir` (default: runs/single), beside predictions and model; a trial that is
    complete there is returned instead of trained again, unless `force`. Stopped with Ctrl-C or the stop button it
    writes a checkpoint, and the same call goes on from there.

    Raises ConfigError for unknown knobs and wrong values (all of them together), DataError, EnvironmentProblem, and
    TrialFailed for a trial that ran and failed: its record is published, and the exception's `record`.

    >>> import finetune
    >>> record = finetune.run_trial(freeze_depth=6, train_size=64, evaluation_size=64, num_train_epochs=1,
    ...                             max_length=32, progress=False)
    >>> record.state, record.num_layers, record.parameters["trainable"]
    ('complete', 6, 770)
    >>> 0 <= record.metrics["test"]["accuracy"] <= 1
    True
    >>> finetune.run_trial(freeze_dept=4)
    Traceback (most recent call last):
    finetune.errors.ConfigError: freeze_dept = 4: no such knob; did you mean freeze_depth?
    """
    from finetune.tracking import check_mode
    from finetune.train import train
    from finetune.training import signals
    from finetune.trial.events import Observer

    config = TrialConfig.from_mapping(plain_value(knobs), beside=("force", "progress"))
    check_mode()
    view = (BarObserver() if in_notebook() else None) if progress else Observer()
    try:
        with stop_button(), signals.listening():
            record = train(config, force=force, view=view)
    finally:
        if isinstance(view, BarObserver):
            view.close()
    if record is not None and record.error is not None and record.state == "failed":
        raise TrialFailed(record.error["kind"], record.error["message"], record)
    return record  # type: ignore[return-value]  # None on the other processes of `accelerate launch`


def predict(model: TrialRecord | str | PathLike[str], texts: Sequence[str | Sequence[str]], *, batch_size: int = 64
            ) -> pd.DataFrame:
    """What a trained model says of new texts, a row each: what `finetune predict` does.

    `model` is a record whose trial kept its model (`save_model`, as by default), its folder, or one that
    `finetune export` wrote. Columns: text (or text, pair), then label, probability and P(…) of each label; labels and
    P(…) where several may hold; value for a regression. A token classifier reads a list of words per row, or a text,
    which it splits into words; columns: text, entities (where tags stand for some), words, tags, scores. Raises
    ConfigError where there is no model, DataError for a text that is empty.

    >>> import finetune
    >>> record = finetune.run_trial(freeze_depth=6, train_size=64, evaluation_size=64, num_train_epochs=1,
    ...                             max_length=32, progress=False)
    >>> list(finetune.predict(record, ["a joy to watch"]).columns)
    ['text', 'label', 'probability', 'P(negative)', 'P(positive)']
    """
    import pandas as pd

    from finetune.data.task_data import TAGGED
    from finetune.saving.manifest import find_kept
    from finetune.saving.predict import checked_texts, described
    from finetune.saving.predict import predict as logits_of

    if wrong := too_small({"batch_size": 1}, {"batch_size": batch_size}):
        raise ConfigError(wrong)
    given = as_texts(texts)
    folder = _folder_of(model) if isinstance(model, TrialRecord) else as_path(
        "model", model, "the record of a trial, or the folder of a model")
    manifest = find_kept(folder)[1]
    if manifest.task == TAGGED:
        return pd.DataFrame(_tagged(folder, given, batch_size))
    rows = [(row,) if isinstance(row, str) else tuple(row) for row in given]
    names = ["text", "pair"][:len(manifest.text_columns)]
    odd = next((row for row in rows if len(row) != len(names)), None)
    if odd is not None:
        raise DataError(f"texts: the model reads {len(names)} texts per row ({', '.join(manifest.text_columns)}), a "
                        f"row has {len(odd)}")
    rows = checked_texts(rows, range(1, len(rows) + 1), names, "texts", manifest.text_columns)
    from finetune.saving.read import load_kept

    loaded = load_kept(folder)
    found = [{**dict(zip(names, row, strict=True)), **_columns(answer)}
             for row, answer in zip(rows, described(logits_of(loaded, rows, batch_size), loaded), strict=True)]
    return pd.DataFrame(found)


def _tagged(folder: Path, texts: list[str | list[Any]], batch_size: int) -> list[dict[str, Any]]:
    from finetune.saving.predict import Cells, predict
    from finetune.saving.read import load_kept
    from finetune.saving.tags import described_tags, sentences_of

    sentences = sentences_of(Cells([(text,) for text in texts], range(1, len(texts) + 1), ["text"], "texts"))
    loaded = load_kept(folder)
    logits = predict(loaded, [sentence.words for sentence in sentences], batch_size)
    return [_columns(answer) for answer in described_tags(logits, sentences, loaded.manifest)]


def _columns(answer: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in answer.items() if name not in ("row", "probabilities")}
    return kept | {f"P({name})": value for name, value in answer.get("probabilities", {}).items()}


def _folder_of(record: TrialRecord) -> Path:
    from finetune.tracking.client import output_folder

    return RecordStore(output_folder(record.config.get("output_dir"))).folder(record.trial_id)
