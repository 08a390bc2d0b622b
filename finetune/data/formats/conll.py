"""CoNLL's columns and CoNLL-U -> a table with a row per sentence: its tokens, and a list per column of tags.

One token a line, columns between tabs or white space, an empty line after each sentence. Lines that begin with "# "
and -DOCSTART- lines are no tokens. CoNLL-U (universaldependencies.org/format.html): FORM is the token; ranges of
multi-word tokens (1-2) and empty nodes (1.1) are left out, their words stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from finetune.data.formats.table import Table
from finetune.errors import DataError, shown

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio")
TOKENS, TAGS = "tokens", "tags"
_UNIVERSAL = ("id", TOKENS, "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_NOT_A_WORD = re.compile(r"\d+[-.]\d+")
_TAG = re.compile(r"O|[BIESLU]-\S+")
_SAMPLE = 500  # lines that tell
_COMMENT = re.compile(r"#(\s|$)")


def is_conll(text: str) -> bool:
    """Whether a .txt or .tsv holds CoNLL's columns: empty lines between, every last column O or PREFIX-TYPE."""
    lines = text.split("\n")[:_SAMPLE]
    ended = any(not line.strip() for line in lines[:-1]) and lines[0].strip()
    return bool(ended) and _all_end_in(lines, _TAG.fullmatch)


def has_tags(text: str, tags: Collection[str]) -> bool:
    """Whether a text holds CoNLL's columns, for who knows the tags: every last column is one of `tags`, or O or
    PREFIX-TYPE. One sentence needs no empty line where there are tabs.
    """
    lines = text.strip("\r\n").split("\n")[:_SAMPLE]
    divided = any(not line.strip() for line in lines) or all("\t" in line for line in lines)
    return divided and _all_end_in(lines, lambda tag: tag in tags or _TAG.fullmatch(tag))


def _all_end_in(lines: list[str], is_tag: Callable[[str], Any]) -> bool:
    """Whether all tokens have the same number of columns, more than one, of which the last is a tag."""
    words = [fields for line in lines if (fields := _fields(line, universal=False))]
    return bool(words) and len(set(map(len, words))) == 1 and len(words[0]) > 1 and all(
        is_tag(fields[-1]) for fields in words)


def read_conll(text: str, source: str, suffix: str) -> Table:
    """Columns `tokens`, column_2 …, and the last `tags`; in CoNLL-U by their names. `lines` are the sentences' first.
    One column is words alone, to predict on.

    Raises DataError, naming the line, where a line has fewer or more columns than those before it.
    """
    universal, width = suffix == ".conllu", 0
    sentences: list[tuple[int, list[list[str]]]] = []
    open_sentence: list[list[str]] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        fields = _fields(line, universal)
        if not fields:
            if open_sentence and not line.strip():
                sentences.append((number - len(open_sentence), open_sentence))
                open_sentence = []
            continue
        width = width or len(fields)
        if len(fields) != width:
            raise DataError(f"{source} line {number}: {len(fields)} columns ({shown(line.strip(), 40)}), the first "
                            f"token has {width}; allowed: a token and its tags, the same number in every line")
        open_sentence.append(fields)
    if not sentences:
        raise DataError(f"{source}: there is no sentence in it")
    names = list(_UNIVERSAL) if universal else [TOKENS, *(f"column_{n}" for n in range(2, width)), TAGS][:width]
    if universal and width != len(names):
        raise DataError(f"{source}: CoNLL-U has 10 columns between tabs, this has {width}")
    rows = [[list(column) for column in zip(*words, strict=True)] for _, words in sentences]
    return Table(source, names, rows, [line for line, _ in sentences])


def _fields(line: str, universal: bool) -> list[str]:
    """A token's columns; none where the line is none."""
    line = line.rstrip("\r")
    # A token may be "#" itself: a comment has one column, or stands between sentences of CoNLL-U.
    if not line.strip() or line.startswith("-DOCSTART-") or (_COMMENT.match(line) and (universal or "\t" not in line)):
        return []
    fields = line.split("\t") if "\t" in line else line.split()
    return [] if universal and _NOT_A_WORD.fullmatch(fields[0]) else fields
