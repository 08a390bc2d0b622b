"""Excel's .xlsx -> tables, through pandas and openpyxl (the extra `excel`)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.formats.jsonfile import WHOLE
from finetune.data.formats.table import Table
from finetune.data.splits.split_names import meaning_of
from finetune.errors import DataError, EnvironmentProblem, shown

SUFFIX = ".xlsx"


def read_excel(path: Path, source: str) -> dict[str, Table]:
    """Tables by sheet where at least two sheets are named like splits, else the first sheet that has rows.

    The first row that is not empty is the header. Formulas give the value that Excel stored last. Raises DataError for
    a file that is no workbook or has no rows, EnvironmentProblem where the extra is not installed.
    """
    try:
        import openpyxl  # noqa: F401  (pandas' reader)
        import pandas
    except ImportError as error:
        raise EnvironmentProblem(f"{source}: reading .xlsx needs openpyxl: pip install 'stellar-finetuning[excel]', or "
                                 "save the sheet as .csv") from error
    try:
        sheets = pandas.read_excel(path, sheet_name=None, header=None, dtype=object, engine="openpyxl")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise DataError(f"{source}: not a readable .xlsx workbook ({reason})") from error
    except MemoryError as error:
        raise DataError(f"{source}: the workbook does not fit into memory; save the sheet as .csv") from error
    cells = {str(name): sheet.astype(object).where(sheet.notna(), None).to_numpy().tolist()
             for name, sheet in sheets.items()}
    tables = {name: table for name, rows in cells.items() if (table := _table(rows, f"{source} [{shown(name)}]"))}
    if not tables:
        raise DataError(f"{source}: no sheet has a header and a row")
    if sum(meaning_of(name) is not None for name in tables) > 1:
        return tables
    used, *others = tables
    if others:
        tables[used].notes.append(f"{source}: of its sheets, {shown(used)} is read; {', '.join(map(shown, others))} "
                                  "not (sheets named train, validation and test are read as splits)")
    return {WHOLE: tables[used]}


def _table(rows: Sequence[list[Any]], source: str) -> Table | None:
    filled = [(line, row) for line, row in enumerate(rows, start=1) if any(cell is not None for cell in row)]
    if len(filled) < 2:
        return None
    header = filled[0][1]
    names = [str(name).strip() if name is not None else f"column_{number}"
             for number, name in enumerate(header, start=1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{source}: two columns are named {shown(twice)}; rename one")
    kept = [index for index in range(len(names))
            if header[index] is not None or any(row[index] is not None for _, row in filled[1:])]
    return Table(source, [names[index] for index in kept], [[row[index] for index in kept] for _, row in filled[1:]],
                 [line for line, _ in filled[1:]])
