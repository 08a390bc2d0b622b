"""Data sets of the Hugging Face hub, through `datasets`: data files only, no data set script, no remote code."""

from __future__ import annotations

import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.data.formats.table import Table
from finetune.data.sources import glue
from finetune.data.sources.catalog import BUNDLED, cached_datasets, snapshot_folder
from finetune.data.sources.source import Source
from finetune.data.splits.split_names import choose_splits
from finetune.display import plain
from finetune.errors import DataError, EnvironmentProblem, did_you_mean, shown

CONNECT_SECONDS = 4.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_hub(name: str, config_name: str | None = None, revision: str | None = None) -> Source:
    """The splits of a hub data set, from the local cache where the hub cannot be reached.

    Raises DataError for a name, configuration or revision that does not exist (naming the nearest), and
    EnvironmentProblem, within seconds, when neither the hub nor a cached copy can be had.
    """
    if not _HUB_ID.fullmatch(name):
        raise DataError(f"dataset_name = {shown(name)}: there is no such file or folder, and it is not a hub id"
                        + did_you_mean(name, BUNDLED))
    hub_id = "nyu-mll/glue" if name == "glue" else name
    task = glue.TASKS.get(config_name or "") if name in glue.NAMES else None
    with _offline_unless_reachable() as online:
        content = _load(_place(hub_id, name, online), name, config_name, revision if online else None, online)
    source = _as_source(content, name, config_name, only=task.validation if task else None)
    if not online:
        asked = f", whatever dataset_revision = {revision} is" if revision else ""
        source.notes.append(f"the hub cannot be reached: the newest local copy is used{asked}")
    if task:
        source.known = {"text": task.text, "label": ("label",), "reason": f"GLUE's own for {config_name}"}
        source.glue_metric = task.metric
    return source


def open_saved(folder: Path, name: str) -> Source:
    """What `save_to_disk` wrote."""
    import datasets

    try:
        content = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a readable saved data set ({plain(error, 120)})") from error
    return _as_source(content if isinstance(content, dict) else {"train": content}, name, None)


def _place(hub_id: str, name: str, online: bool) -> str:
    """What `datasets` should load: the id, or offline the folder of a downloaded snapshot."""
    if online or hub_id in cached_datasets(prepared_only=True):
        return hub_id
    folder = snapshot_folder(hub_id)
    if folder is None:
        raise _not_here(name)
    return str(folder)


def hub_configurations(name: str, revision: str | None = None) -> list[str]:
    """Configurations of a hub data set. Raises as `open_hub` does."""
    hub_id = "nyu-mll/glue" if name == "glue" else name
    with _offline_unless_reachable() as online, _hub_errors(name):
        return _configurations(_place(hub_id, name, online), revision, online)


def search_hub(text: str, limit: int = 20) -> list[str]:
    """Ids of hub data sets that match, the most downloaded first. Raises EnvironmentProblem without a network."""
    from huggingface_hub import HfApi

    with _offline_unless_reachable() as online:
        if not online:
            raise EnvironmentProblem("the hub cannot be reached, so it cannot be searched; "
                                     "`finetune data` lists what is available offline")
        try:
            return [entry.id for entry in HfApi().list_datasets(search=text, limit=limit)]
        except Exception as error:  # whatever an HTTP library raises
            raise EnvironmentProblem(f"the hub's search failed: {plain(error, 120)}") from error


def hub_is_reachable() -> bool:
    """Whether anything answers at the hub's address within a few seconds; False when HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=CONNECT_SECONDS)
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError):
            return
        answered.set()

    # In a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answered.is_set()


@contextmanager
def _offline_unless_reachable() -> Iterator[bool]:
    """Yields whether the hub answers; if not, the libraries are told, so that they use caches and do not retry."""
    import datasets
    from huggingface_hub import constants

    online = hub_is_reachable()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, datasets.logging.get_verbosity()
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = not online
    datasets.logging.set_verbosity_error()
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before[:2]
        datasets.logging.set_verbosity(before[2])


def _not_here(name: str) -> EnvironmentProblem:
    available = [*BUNDLED, *cached_datasets()]
    return EnvironmentProblem(
        f"dataset_name = {shown(name)}: the hub cannot be reached and there is no local copy"
        f"{did_you_mean(name, available)}; connect once to download it, or give the path of a file or folder; "
        f"available offline: {', '.join(available)}"
    )


def _load(place: str, name: str, config_name: str | None, revision: str | None, online: bool) -> dict[str, Any]:
    """`datasets`' splits by name."""
    with _hub_errors(name):
        try:
            builder = _builder(place, config_name, revision, online)
        except ValueError:
            _check_configuration(name, config_name, _configurations(place, revision, online))
            raise
        builder.download_and_prepare()
        return builder.as_dataset()


def _builder(place: str, config_name: str | None, revision: str | None, online: bool) -> Any:
    """With CSV files read so that the text "NA" stays text; offline as such a copy was made, or else as it is."""
    import datasets

    if not online:
        with suppress(ValueError):
            return datasets.load_dataset_builder(place, config_name, revision=revision, keep_default_na=False)
    builder = datasets.load_dataset_builder(place, config_name, revision=revision)
    if hasattr(builder.config, "keep_default_na"):
        return datasets.load_dataset_builder(place, config_name, revision=revision, keep_default_na=False)
    return builder


def _configurations(place: str, revision: str | None, online: bool) -> list[str]:
    import datasets

    if not online and place in cached_datasets(prepared_only=True):
        return cached_datasets()[place]
    return list(datasets.get_dataset_config_names(place, revision=revision))


def _check_configuration(name: str, config_name: str | None, available: list[str]) -> None:
    """Raises DataError when the configuration is not there, or one has to be chosen."""
    there = ", ".join(plain(config) for config in available)
    if config_name is None and len(available) > 1:
        raise DataError(f"dataset_name = {shown(name)}: choose a configuration with dataset_config_name: {there}")
    if config_name is not None and config_name not in available:
        raise DataError(f"dataset_config_name = {shown(config_name)}: the configurations of {name} are {there}"
                        + did_you_mean(config_name, available))


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what `datasets` raises into one sentence."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    except DatasetNotFoundError as error:
        reason = plain(error, 200).rstrip(".")
        raise DataError(f"dataset_name = {shown(name)}: {reason}{_nearest(name)}") from error
    except (ValueError, RuntimeError) as error:
        raise DataError(f"dataset_name = {shown(name)}: {plain(error, 300)}") from error
    except OSError as error:
        raise EnvironmentProblem(f"dataset_name = {shown(name)}: {plain(error, 200)}") from error


def _nearest(name: str) -> str:
    known = [*BUNDLED, *cached_datasets()]
    with suppress(EnvironmentProblem):
        known += search_hub(name.rpartition("/")[2], 10)
    return did_you_mean(name, dict.fromkeys(known), 3)


def _as_source(content: dict[str, Any], name: str, config_name: str | None, only: str | None = None) -> Source:
    """`only`: the validation split to use where there are several."""
    names = [str(split) for split in content if only is None or not _other_validation(str(split), only)]
    chosen, notes = choose_splits(names)
    tables = {split: _as_table(content[original], f"{plain(name)} [{plain(original)}]")
              for split, original in chosen.items()}
    return Source(name, tables, config_name, notes=notes)


def _other_validation(split: str, only: str) -> bool:
    """MNLI: validation_mismatched and test_mismatched, where validation_matched is used."""
    return only != "validation" and split.endswith("_mismatched")


def _as_table(split: Any, source: str) -> Table:
    """A `datasets` split as a table of the columns that hold text, numbers or lists; images stay undecoded."""
    usable = [name for name, feature in split.features.items() if _plain_kind(feature)]
    columns = split.select_columns(usable).with_format(None)[:] if usable else {}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    if not rows:
        raise DataError(f"{source}: the split has no rows of text or numbers")
    table = Table(source, list(columns), rows, list(range(1, len(rows) + 1)))
    table.label_names = {name: names for name in usable if (names := _names_in(split.features[name]))}
    return table


def _plain_kind(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)
    return type(inner).__name__ in {"Value", "ClassLabel"}


def _names_in(feature: Any) -> list[str] | None:
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names else None
