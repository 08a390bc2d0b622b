"""load_task_data: a configuration's data set, found, checked and split. Readable top to bottom."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.config import TrialConfig
from finetune.data.columns import Columns, find_columns, require_columns
from finetune.data.labels import LabelSpace, RawLabel, encode_labels, is_missing, label_space
from finetune.data.local import open_local
from finetune.data.source import Source
from finetune.data.splits import carve, text_key
from finetune.data.table import Table
from finetune.data.task_data import SPLITS, RejectedRow, Split, TaskData, fingerprint
from finetune.errors import DataError, shown
from finetune.files import canonical_json

BUNDLED = "rotten_tomatoes_mini"
DATA_KNOBS = ("dataset_name", "dataset_config_name", "dataset_revision", "text_column", "label_column", "task",
              "validation_size", "test_size", "split_seed")
KEPT = 4  # data sets in memory
UNLABELLED = "-1"  # GLUE's mark for a row whose label is kept back


def load_task_data(config: TrialConfig) -> TaskData:
    """The data set that `config` names, whole: `subset_train` and `limit_evaluation` come after.

    Kept in memory for the next trial of the process. Raises DataError, EnvironmentProblem or ConfigError.
    """
    return _remembered(config)


def open_source(config: TrialConfig) -> Source:
    if config.dataset_name == BUNDLED:
        return open_local(Path(__file__).parent / BUNDLED, BUNDLED)
    path = Path(config.dataset_name).expanduser()
    if path.exists():
        return open_local(path, config.dataset_name)
    raise DataError(f"dataset_name = {shown(config.dataset_name)}: there is no such file or folder")


_memory: OrderedDict[str, TaskData] = OrderedDict()


def _remembered(config: TrialConfig) -> TaskData:
    key = canonical_json([getattr(config, name) for name in DATA_KNOBS])
    if key not in _memory:
        _memory[key] = assemble(open_source(config), config)
    _memory.move_to_end(key)
    while len(_memory) > KEPT:
        _memory.popitem(last=False)
    return _memory[key]


class _Rows:
    """The usable rows of one table: texts, labels as written, and ids."""

    def __init__(self, table: Table, split: str, columns: Columns):
        self.table, self.texts, self.labels, self.ids = table, [], [], []
        self.rejected = list(table.rejected)
        at = [table.columns.index(name) for name in columns.text]
        label_at = [table.columns.index(name) for name in columns.label]
        for row, (values, line) in enumerate(zip(table.rows, table.lines, strict=True)):
            texts = tuple(str(values[index] or "") for index in at)
            label = values[label_at[0]]
            if not all(text.strip() for text in texts):
                self.rejected.append(RejectedRow(table.source, line, "the text is empty"))
            elif is_missing(label):
                self.rejected.append(RejectedRow(table.source, line, "the label is missing"))
            else:
                self.texts.append(texts)
                self.labels.append(RawLabel(label, f"{table.source} line {line}"))
                self.ids.append(f"{split}:{row}")

    def split(self, space: LabelSpace) -> Split:
        return Split(self.texts, encode_labels(self.labels, space), np.array(self.ids))


def assemble(source: Source, config: TrialConfig) -> TaskData:
    columns = find_columns(source.tables["train"], config.text_column, config.label_column, source.known)
    rows = {}
    for name, table in source.tables.items():
        require_columns(table, [*columns.text, *columns.label], "text_column and label_column")
        rows[name] = _Rows(table, name, columns)
    space = label_space([label for r in rows.values() for label in r.labels], config.task, source.label_names)
    splits = {name: r.split(space) for name, r in rows.items()}
    notes = [*source.notes, *_make_missing(splits, space, config)]
    return TaskData(
        name=source.name, config_name=source.config_name, task=space.task, label_names=space.names,
        num_outputs=space.num_outputs, splits=splits, fingerprint=fingerprint(space.task, space.names, splits),
        text_columns=columns.text, label_column=", ".join(columns.label),
        rejected=[row for r in rows.values() for row in r.rejected], notes=notes, glue_metric=source.glue_metric,
    )


def _make_missing(splits: dict[str, Split], space: LabelSpace, config: TrialConfig) -> Sequence[str]:
    """Carve test, then validation, from train where the source has none."""
    notes, of_rows = [], len(splits["train"])
    for name, size in (("test", config.test_size), ("validation", config.validation_size)):
        if name in splits:
            continue
        taken = {text_key(texts) for split in SPLITS if split in splits and split != "train"
                 for texts in splits[split].texts}
        splits["train"], splits[name] = carve(splits["train"], space.task, size, knob=f"{name}_size", of_rows=of_rows,
                                              seed=config.split_seed, taken=taken)
        notes.append(f"{name} split carved from train: {len(splits[name])} of {of_rows} rows, stratified, "
                     f"split_seed {config.split_seed}")
    return notes
