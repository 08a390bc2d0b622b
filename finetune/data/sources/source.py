"""What every source (bundled, files, hub) hands over: tables by split, and what it says about them itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune.data.formats.table import Table


@dataclass
class Source:
    """tables by the source's own split names; `known` as in `columns.find_columns`."""

    name: str
    tables: dict[str, Table]
    config_name: str | None = None
    known: dict[str, object] = field(default_factory=dict)
    label_names: list[str] | None = None
    task: str = "auto"
    notes: list[str] = field(default_factory=list)
    glue_metric: str | None = None
