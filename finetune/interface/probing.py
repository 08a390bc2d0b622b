"""What each depth of a model holds, read by linear probes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Problem, did_you_mean, too_small
from finetune.files import atomic_write
from finetune.interface.given import plain_value
from finetune.interface.knobs import Knobs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PROPERTIES = ("length", "word", "order", "label")


@dataclass(frozen=True)
class LayerProbes:
    """What `probe_layers` read.

    table   a row per property and depth: property, freeze_depth (-1 the embeddings' output, k that of the first k
            layers), estimate with its 95% interval low..high (accuracy, a mean over seeds, for new seeds and new text),
            chance (of guessing), seeds, train_rows (of one probe), test_rows
    """

    model: str
    data: str
    word: str
    table: pd.DataFrame = field(repr=False)

    def figure(self) -> Figure:
        """A panel per property: accuracy against layers read. Dotted: guessing."""
        from analysis.figures.plots_probe import layers_figure, property_lines
        from finetune.interface.shown import as_shown

        return as_shown(layers_figure(property_lines(self.table, self.word)))

    def save(self, path: str | PathLike[str]) -> Path:
        """The figure as an SVG file, and its numbers beside it as a CSV of the same name; the SVG's path."""
        from analysis.figures.plots_probe import layers_svg, property_lines

        file = Path(path)
        if file.suffix != ".svg":
            raise ConfigError([Problem("path", str(file), "allowed: a file name that ends in .svg")])
        drawn = layers_svg(property_lines(self.table, self.word), f"What each depth of {self.model} holds")
        atomic_write(file, drawn, "the figure")
        atomic_write(file.with_suffix(".csv"), self.table.to_csv(index=False, float_format="%.5f"), "its numbers")
        return file

    def _repr_html_(self) -> str:
        shown = self.table.pivot(index="property", columns="freeze_depth", values="estimate")
        return shown.loc[self.table["property"].unique()].to_html(float_format="{:.3f}".format)


def probe_layers(model: str | PathLike[str] = "sentence-transformers/all-MiniLM-L6-v2", *,
                 properties: Sequence[str] = PROPERTIES, word: str = "and", rows: int = 1000, seeds: int = 10,
                 progress: bool = True, **knobs: Unpack[Knobs]) -> LayerProbes:
    """What a logistic regression reads from each depth of the pretrained model, nothing of which is trained.

    properties   length: more words than the median? word: does the text hold `word` (against texts of the same
                 length)? order: have two neighbouring words been swapped? label: which class (of a classification)?
    rows         training rows of one probe; each of `seeds` draws its own from up to four times as many
    knobs        the data (`dataset_name`, …), `max_length`, `pooling`: at full depth the features are what a head would
                 read, elsewhere the mean over tokens

    Every question is asked so that guessing gives 1 / classes. Probes are measured on validation rows; the test split
    is not looked at. Takes a forward pass over the texts (8,000 at most for 1,000 rows, and the validation split twice)
    and a small fit for each property, depth and seed. Source: Alain & Bengio 2017, arXiv:1610.01644; Conneau et al.
    2018, arXiv:1805.01070. A probe says what can be read there, not what the model uses. Raises ConfigError, and
    DataError where the texts cannot be asked.

    >>> import finetune
    >>> found = finetune.probe_layers(properties=["length"], rows=64, seeds=3, max_length=32, evaluation_size=64)
    >>> found.table["freeze_depth"].tolist()
    [-1, 1, 2, 3, 4, 5, 6]
    >>> finetune.probe_layers(properties=["lenght"])
    Traceback (most recent call last):
    finetune.errors.ConfigError: properties = 'lenght': allowed: length, word, order, label; did you mean length?
    """
    import pandas as pd

    asked = _checked(properties, word, rows, seeds)
    config = TrialConfig.from_mapping(plain_value({"model_name_or_path": model, **knobs}),
                                      beside=("properties", "word", "rows", "seeds", "progress"))
    from finetune.sweep.layers_probe import Reading, read_layers

    readings = read_layers(config, asked, word, rows, seeds, _say if progress else lambda text: None)
    table = pd.DataFrame(readings, columns=Reading._fields)
    return LayerProbes(Path(config.model_name_or_path).name, Path(config.dataset_name).name, word, table)


def _checked(properties: Sequence[str], word: str, rows: int, seeds: int) -> list[str]:
    asked = [properties] if isinstance(properties, str) else list(dict.fromkeys(properties))
    problems: list[Problem | str] = [
        Problem("properties", name, f"allowed: {', '.join(PROPERTIES)}" + did_you_mean(str(name), PROPERTIES))
        for name in asked if name not in PROPERTIES]
    if not asked:
        problems.append(Problem("properties", properties, f"allowed: one or more of {', '.join(PROPERTIES)}"))
    if not isinstance(word, str) or not word.isalnum():
        problems.append(Problem("word", word, "allowed: one word, letters and digits only"))
    problems += too_small({"rows": 20, "seeds": 1}, {"rows": rows, "seeds": seeds})
    if problems:
        raise ConfigError(problems)
    return asked


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
