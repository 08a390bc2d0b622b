"""A data file of any known format -> its tables by split. Reads data only: nothing in a file is ever executed."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.data.formats.compressed import inner_name, unpacked
from finetune.data.formats.conll import SUFFIXES as CONLL
from finetune.data.formats.conll import is_conll, read_conll
from finetune.data.formats.decoding import clean, decode_text, note_on_encoding
from finetune.data.formats.delimited import read_delimited
from finetune.data.formats.excel import SUFFIX as EXCEL
from finetune.data.formats.excel import read_excel
from finetune.data.formats.fasttext import is_fasttext, read_fasttext, why_not_text
from finetune.data.formats.jsonfile import DEPTH, WHOLE, looks_like_one_value, read_json, read_json_lines
from finetune.data.formats.table import Table
from finetune.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".ft", EXCEL, *CONLL)
_TEXT = (".ft", ".txt")  # fastText's lines; a .txt only where it is named itself: in a folder it is mostly a readme
_BEGINNING = 1 << 14  # bytes
READABLE = (*SUFFIXES, ".txt")
ALLOWED = (".csv, .tsv, .jsonl, .json, .parquet, .xlsx, fastText's .txt, .conll, .conllu, each but .xlsx also as .gz, "
           ".bz2, .xz or .zst")


def is_data_file(path: Path) -> bool:
    """By its name, as one of a folder's files; a .txt by its beginning, which may be CoNLL's columns."""
    return inner_name(path).suffix.lower() in SUFFIXES or (path.suffix.lower() == ".txt" and _begins_as_conll(path))


def _begins_as_conll(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():  # a link may lead out of the folder, a pipe would never end
        return False
    try:
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING).decode("utf-8", errors="replace")
    except OSError:
        return False
    return is_conll(beginning.rpartition("\n")[0])


def read_file(path: Path, source: str) -> dict[str, Table]:
    """Tables by split as the file names them; {"": table} when it does not. `source` is how messages name the file.

    Raises DataError when the file cannot be read as what its suffix says.
    """
    suffix = inner_name(path).suffix.lower()
    if suffix not in READABLE:
        raise DataError(f"{source}: {suffix or 'no suffix'} is not a data format; allowed: {ALLOWED}")
    if suffix == EXCEL:
        if inner_name(path) != path:
            raise DataError(f"{source}: a compressed .xlsx is not read; unpack it (a workbook is compressed already)")
        return read_excel(path, source)
    if suffix == ".parquet" and inner_name(path) == path:
        return {WHOLE: _read_parquet(path, source)}
    payload = unpacked(path, source)
    if suffix == ".parquet":
        return {WHOLE: _read_parquet(io.BytesIO(payload), source)}
    if not payload.strip():
        raise DataError(f"{source}: the file is empty")
    text, encoding = decode_text(payload, source)
    tables = {clean(split): table for split, table in _read_text(text, source, suffix).items()}
    for table in tables.values():
        table.columns = [clean(name) for name in table.columns]
    if note := note_on_encoding(encoding, source):
        next(iter(tables.values())).notes.append(note)
    return tables


def _read_text(text: str, source: str, suffix: str) -> dict[str, Table]:
    if suffix == ".jsonl" and not looks_like_one_value(text):
        return {WHOLE: read_json_lines(text, source)}
    if suffix in (".json", ".jsonl"):
        return read_json(text, source)
    if suffix in CONLL or (suffix in (".txt", ".tsv") and is_conll(text)):
        return {WHOLE: read_conll(text, source, suffix)}
    if suffix in _TEXT:
        if not is_fasttext(text):
            raise DataError(why_not_text(source, text))
        return {WHOLE: read_fasttext(text, source)}
    return {WHOLE: read_delimited(text, source, suffix)}


def _read_parquet(path: Path | io.BytesIO, source: str) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        content = parquet.ParquetFile(path).read()
        for _ in range(DEPTH):
            content = content.flatten()  # a column inside a column is named like t.text
        columns = {name: _plain_cells(content.column(name)) for name in dict.fromkeys(content.column_names)}
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{source}: not a readable parquet file ({str(error).splitlines()[0][:120]})") from error
    if content.num_rows == 0:
        raise DataError(f"{source}: the file has no rows")
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    table = Table(source, [str(name) for name in columns], rows, list(range(1, len(rows) + 1)))
    table.label_names = _declared_names(content.schema.metadata or {})
    return table


def _plain_cells(column: Any) -> list[Any]:
    """Python values; what Spark writes as bytes is text, and a decimal is a number."""
    from pyarrow import lib, types

    if types.is_binary(column.type) or types.is_large_binary(column.type):
        with suppress(lib.ArrowInvalid):
            column = column.cast("string")
    if types.is_decimal(column.type):
        column = column.cast("double")
    return column.to_pylist()


def _declared_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of ClassLabel columns, which `datasets` keeps in a parquet file's metadata."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    found = {str(column): _class_label(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def _class_label(feature: Any) -> list[str] | None:
    """The names of {"names": […], "_type": "ClassLabel"}, alone or inside a list type."""
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and isinstance(names, list) and all(isinstance(n, str) for n in names):
        return names
    return _class_label(feature.get("feature"))
