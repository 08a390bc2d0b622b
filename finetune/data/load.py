"""load_task_data: a configuration's data set, found, checked and split."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from finetune.config import TrialConfig
from finetune.data.formats.compressed import inner_name
from finetune.data.formats.readers import READABLE
from finetune.data.formats.table import Table
from finetune.data.schema.checks import check_labels, check_row_count
from finetune.data.schema.columns import Columns, find_columns
from finetune.data.schema.labels import LabelSpace, label_space
from finetune.data.schema.rows import KEPT_BACK, NO_GOLD, Rows
from finetune.data.schema.span_annotations import tag_spans
from finetune.data.schema.tokens import join_tokens
from finetune.data.sources.catalog import BUNDLED, bundled_folder
from finetune.data.sources.local import configurations, open_local, stamp
from finetune.data.sources.source import Source
from finetune.data.splits.splits import carve, text_key
from finetune.data.tagged import never_in_train, read_tagged, tagged_columns
from finetune.data.task_data import TAGGED, Split, TaskData, fingerprint
from finetune.errors import DataError, did_you_mean, shown
from finetune.files import canonical_json

DATA_KNOBS = ("dataset_name", "dataset_config_name", "dataset_revision", "text_column", "label_column", "task",
              "validation_size", "test_size", "split_seed")
KEPT = 4  # data sets in memory

_memory: OrderedDict[str, TaskData] = OrderedDict()


def load_task_data(config: TrialConfig) -> TaskData:
    """The data set that `config` names, whole: `subset_train` and `limit_evaluation` come after.

    Kept in memory for the next trial of the process. Raises DataError when the data is wrong, EnvironmentProblem
    when it cannot be had here, ConfigError when a size knob does not fit it.
    """
    path = local_path(config.dataset_name)
    key = canonical_json([[getattr(config, name) for name in DATA_KNOBS], stamp(path) if path else None])
    if key not in _memory:
        _memory[key] = assemble(open_source(config), config)
    _memory.move_to_end(key)
    while len(_memory) > KEPT:
        _memory.popitem(last=False)
    return _memory[key]


def local_path(name: str) -> Path | None:
    """The file or folder that a dataset_name means, or None for the bundled set and hub ids.

    Raises DataError when it is written like a path and nothing is there.
    """
    if name in BUNDLED:
        return None
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or inner_name(path).suffix.lower() in READABLE or name.count("/") > 1:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"dataset_name = {shown(name)}: there is no such file or folder"
                        + did_you_mean(path.name, siblings))
    return None


def open_source(config: TrialConfig) -> Source:
    """The tables behind a dataset_name: bundled, a path, or the hub."""
    source = _opened(config)
    for table in source.tables.values():
        if config.task in ("auto", TAGGED):
            tag_spans(table)
        join_tokens(table)
    return source


def _opened(config: TrialConfig) -> Source:
    name, config_name = config.dataset_name, config.dataset_config_name
    if name in BUNDLED:
        return open_local(bundled_folder(name), name, config_name)
    path = local_path(name)
    if path is not None:
        return open_local(path, name, config_name)
    from finetune.data.sources.hub import open_hub

    return open_hub(name, config_name, config.dataset_revision)


def configurations_of(config: TrialConfig) -> list[str]:
    """Names of the configurations of a data set; one or none where there is nothing to choose."""
    if config.dataset_name in BUNDLED:
        return []
    path = local_path(config.dataset_name)
    if path is not None:
        return configurations(path)
    from finetune.data.sources.hub import hub_configurations

    return hub_configurations(config.dataset_name, config.dataset_revision)


def choose_columns(source: Source, config: TrialConfig) -> Columns:
    """Text and label columns of the train split, with the reasons. Raises DataError when there are none."""
    if "train" not in source.tables:
        raise DataError(f"{source.name}: no train split; there are {', '.join(map(shown, source.tables))}")
    tagged = tagged_columns(source, config)
    return tagged or find_columns(source.tables["train"], config.text_column, config.label_column, source.known)


def assemble(source: Source, config: TrialConfig) -> TaskData:
    """Columns → usable rows → task and labels → splits. Raises DataError where these contradict each other."""
    columns = choose_columns(source, config)
    if tagged_columns(source, config) is not None:
        return _assemble_tagged(source, columns, config)
    labelled, unlabelled = _read_rows(source, columns)
    task = source.task if config.task == "auto" else config.task
    labels = [label for read in labelled.values() for label in read.labels]
    space = label_space(labels, task, _declared_names(source, columns), multi_hot=len(columns.label) > 1)
    splits = {name: read.split(space) for name, read in labelled.items()}
    check_row_count(splits)
    notes = [*source.notes, *(note for table in source.tables.values() for note in table.notes)]
    notes += [*columns.notes, *([space.note] if space.note else [])]
    notes += [note for read in labelled.values() for note in read.notes]
    notes += _make_missing(splits, space, config, unlabelled)
    notes += check_labels(splits, space)
    return TaskData(
        name=source.name, config_name=source.config_name, task=space.task, label_names=space.names,
        num_outputs=space.num_outputs, splits=splits, fingerprint=fingerprint(space.task, space.names, splits),
        text_columns=columns.text, label_column=", ".join(columns.label),
        rejected=[row for read in labelled.values() for row in read.rejected], notes=notes,
        glue_metric=source.glue_metric,
    )


def _assemble_tagged(source: Source, columns: Columns, config: TrialConfig) -> TaskData:
    """The same for sentences with a tag per word."""
    splits, names, checked, rejected = read_tagged(source, columns)
    check_row_count(splits)
    notes = [*source.notes, *(note for table in source.tables.values() for note in table.notes), *checked.notes]
    unusable = {name: len(source.tables[name].rows) for name in set(source.tables) - set(splits)}
    notes += _make_missing(splits, LabelSpace(TAGGED, names), config, unusable)
    notes += never_in_train(splits, names)
    return TaskData(
        name=source.name, config_name=source.config_name, task=TAGGED, label_names=names, num_outputs=len(names),
        splits=splits, fingerprint=fingerprint(TAGGED, [*names, checked.scheme or ""], splits),
        text_columns=columns.text, label_column=columns.label[0],
        rejected=[*(row for table in source.tables.values() for row in table.rejected), *rejected], notes=notes,
        scheme=checked.scheme,
    )


def _read_rows(source: Source, columns: Columns) -> tuple[dict[str, Rows], dict[str, int]]:
    """(usable rows by split, rows of each split that has no labels)."""
    labelled: dict[str, Rows] = {}
    unlabelled: dict[str, int] = {}
    no_label = KEPT_BACK if _declared_names(source, columns) else {}
    no_label = no_label | (NO_GOLD if columns.label == ("gold_label",) else {})
    for name, table in source.tables.items():
        if name != "train" and _is_foreign(table, columns):
            unlabelled[name] = len(table.rows)
            continue
        rows = Rows.read(table, name, columns)
        if name != "train" and rows.unlabelled:
            unlabelled[name] = len(rows.texts)
        else:
            labelled[name] = rows.usable(no_label)
    return labelled, unlabelled


def _is_foreign(table: Table, columns: Columns) -> bool:
    """Whether a split has neither text nor label under train's names, as the unlabelled test split of GLUE's CoLA."""
    there = set(table.columns)
    return not there & set(columns.label) and not set(columns.text) <= there


def _declared_names(source: Source, columns: Columns) -> list[str] | None:
    """Names of the labels where the source gives them; several 0/1 columns are named by themselves."""
    if len(columns.label) > 1:
        return list(columns.label)
    return source.tables["train"].label_names.get(columns.label[0]) or source.label_names


def _make_missing(
    splits: dict[str, Split], space: LabelSpace, config: TrialConfig, unlabelled: dict[str, int]
) -> list[str]:
    """Carve test, then validation, from train where the source has none with labels."""
    notes, of_rows = [], len(splits["train"])
    for name, size in (("test", config.test_size), ("validation", config.validation_size)):
        if name in splits:
            continue
        taken = {text_key(texts) for other, split in splits.items() if other != "train" for texts in split.texts}
        splits["train"], splits[name] = carve(splits["train"], space.task, size, knob=f"{name}_size", of_rows=of_rows,
                                              seed=config.split_seed, taken=taken)
        why = (f"the source's {name} split has no labels ({unlabelled[name]} rows)" if name in unlabelled
               else "the source has none")
        notes.append(f"{name} split carved from train, since {why}: {len(splits[name])} of {of_rows} rows, stratified, "
                     f"by split_seed {config.split_seed}, no text on both sides")
    return notes


def clear_memory() -> None:
    """Forget the data sets that are kept in memory."""
    _memory.clear()
