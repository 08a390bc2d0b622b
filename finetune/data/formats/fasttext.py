"""fastText's lines: `__label__NAME text`, with one label or several before the text, or behind it."""

from __future__ import annotations

from finetune.data.formats.table import Table
from finetune.errors import DataError

PREFIX = "__label__"
_SAMPLE = 20  # lines with text that tell


def is_fasttext(text: str) -> bool:
    lines = [words for line in text.split("\n") if (words := line.split())][:_SAMPLE]
    return bool(lines) and (all(words[0].startswith(PREFIX) for words in lines)
                            or all(words[-1].startswith(PREFIX) for words in lines))


def read_fasttext(text: str, source: str) -> Table:
    """Columns text and label; a list of labels per row where any row has several."""
    table = Table(source, ["text", "label"])
    for line, content in enumerate(text.split("\n"), start=1):
        words = content.split()
        labels = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
        rest = " ".join(word for word in words if not word.startswith(PREFIX))
        if not words:
            continue
        if not labels or not rest:
            table.reject(line, f"no {PREFIX}NAME in it" if not labels else "no text after its label")
            continue
        table.rows.append([rest, labels])
        table.lines.append(line)
    if not table.rows:
        raise DataError(f"{source}: no row can be read; {table.rejected[0]}")
    if all(len(labels) == 1 for _, labels in table.rows):
        table.rows = [[rest, labels[0]] for rest, labels in table.rows]
    return table


def why_not_text(source: str, text: str) -> str:
    """For a .txt that is not fastText's."""
    if "\t" in text.partition("\n")[0]:
        return f"{source}: a .txt with tabs is a table under another name; call it .tsv"
    return (f"{source}: a plain .txt is read only with fastText's lines ({PREFIX}NAME text); lines of \"label text\" "
            "become a table with: sed -E 's/^([^ ]+) /\\1\\t/' FILE.txt | sed '1i label\\ttext' > FILE.tsv")
