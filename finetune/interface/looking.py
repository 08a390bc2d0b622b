"""What is in a data set, and what is in a model, as tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

from finetune.config import TrialConfig
from finetune.interface.given import plain_value
from finetune.interface.knobs import Knobs

if TYPE_CHECKING:
    import pandas as pd

    from finetune.data.task_data import Split, TaskData


@dataclass(frozen=True)
class Data:
    """A data set as a trial would see it, before `train_size` and `evaluation_size` are applied.

    splits   {"train", "validation", "test"}: a table each, with the text columns, the label column and `id`
    labels   the names of the classes or labels; None for a regression
    notes    how columns and splits were found, in sentences;  rejected: rows that cannot be used, and why
    """

    name: str
    task: str  # classification | regression | multilabel
    labels: list[str] | None
    splits: dict[str, pd.DataFrame] = field(repr=False)
    notes: list[str] = field(repr=False)
    rejected: pd.DataFrame = field(repr=False)
    _data: TaskData = field(repr=False)

    def describe(self) -> pd.DataFrame:
        """A row per split: rows, words per row (median, 95%, longest), repeated texts, and rows per label (for a
        regression the target's quantiles)."""
        import pandas as pd

        from finetune.commands.views.profile import profile

        found = profile(self._data)["splits"]
        rows = {name: {"rows": split["rows"], "words_median": split["lengths"]["median"],
                       "words_95": split["lengths"]["p95"], "words_longest": split["lengths"]["max"],
                       "duplicates": split["duplicates"], **split["labels"]} for name, split in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")

    def _repr_html_(self) -> str:
        return self.describe().to_html()


def load_data(name: str | PathLike[str] = "rotten_tomatoes_mini", config: str | None = None, **knobs: Unpack[Knobs]
              ) -> Data:
    """A data set, found, checked and split as a trial does it: what `finetune data` shows.

    `name` is a hub id, the bundled rotten_tomatoes_mini, or the path of a file or folder; `config` its configuration.
    Raises DataError where a trial could not use it, EnvironmentProblem where it cannot be had, ConfigError.

    >>> import finetune
    >>> data = finetune.load_data()
    >>> data.labels
    ['negative', 'positive']
    >>> data.describe().loc["test", ["rows", "negative", "positive"]].astype(int).tolist()
    [2000, 1000, 1000]
    >>> finetune.load_data("reviews.csv")
    Traceback (most recent call last):
    finetune.errors.DataError: dataset_name = 'reviews.csv': there is no such file or folder
    """
    import pandas as pd

    from finetune.data import load_task_data

    asked = {"dataset_name": name, "dataset_config_name": config, **knobs}
    data = load_task_data(TrialConfig.from_mapping(plain_value({k: v for k, v in asked.items() if v is not None}),
                                                   beside=("name", "config")))
    splits = {split: _table(data, rows) for split, rows in data.splits.items()}
    rejected = pd.DataFrame([vars(row) for row in data.rejected], columns=["source", "line", "reason"])
    return Data(data.name, data.task, data.label_names, splits, list(data.notes), rejected, data)


def _table(data: TaskData, split: Split) -> pd.DataFrame:
    import pandas as pd

    from finetune.commands.views.profile import label_text

    labels = split.labels if data.label_names is None else [label_text(data, label) for label in split.labels]
    texts = dict(zip(data.text_columns, zip(*split.texts, strict=True), strict=True))
    return pd.DataFrame({**texts, data.label_column: labels, "id": split.ids})


def inspect_model(model: str | PathLike[str] = "sentence-transformers/all-MiniLM-L6-v2", *, audit: bool = False,
                  **knobs: Unpack[Knobs]) -> pd.DataFrame:
    """A model's parts in order, and what a freeze depth or strategy trains of them: what `finetune layers` shows.

    A row per part (embeddings, layer.0 … layer.L-1, top, head): parameters, trainable (both counts), share of all
    parameters. `attrs` holds the rest: num_layers, width, strategy, trainable_parameters, phases. `audit` proves it
    with one forward and backward pass on real rows; TrialFailed is raised when a gradient reached a frozen parameter.

    >>> import finetune
    >>> layers = finetune.inspect_model(freeze_depth=4)
    >>> print(layers["trainable"].to_string())
    part
    embeddings          0
    layer.0             0
    layer.1             0
    layer.2             0
    layer.3             0
    layer.4       1774464
    layer.5       1774464
    top                 0
    head              770
    >>> layers.attrs["num_layers"]
    6
    """
    import pandas as pd

    from finetune.commands.views.layers import describe_layers

    config = TrialConfig.from_mapping(plain_value({"model_name_or_path": model, **knobs}),
                                      beside=("model", "audit"))
    described: dict[str, Any] = describe_layers(config, audited=audit)[0]
    table = pd.DataFrame(described.pop("parts")).set_index("part")
    table.attrs = described
    return table
