"""Schemes of tags: which one a data set is written in, whether its sequences can be, and entities of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.errors import shown

OUTSIDE = "O"
IOB1, IOB2, IOBES, BILOU = "IOB1", "IOB2", "IOBES", "BILOU"  # seqeval's names; IOB2 is BIO
_LETTERS = {IOB2: "BI", IOBES: "BIES", BILOU: "BILU"}
_SINGLE, _END = {IOBES: "S", BILOU: "U"}, {IOBES: "E", BILOU: "L"}

Span = tuple[str, int, int]  # type, first word, last word (both inside)


@dataclass(frozen=True)
class Checked:
    """Tags as they are trained on: their scheme (None: tags without prefixes), and notes on what was read otherwise."""

    scheme: str | None
    sentences: list[list[str]]
    notes: list[str]


def spans(tags: Sequence[str]) -> list[Span]:
    """Entities as CoNLL's script sees them, in any scheme, whether or not the sequence can be."""
    from seqeval.metrics.sequence_labeling import get_entities

    usual = {"L": "E", "U": "S"}
    return get_entities([usual.get(tag[0], tag[0]) + tag[1:] if "-" in tag else tag for tag in tags])


def written(entities: Sequence[Span], words: int, scheme: str) -> list[str]:
    """The one sequence of tags that stands for these entities."""
    tags = [OUTSIDE] * words
    for kind, first, last in entities:
        tags[first:last + 1] = [f"I-{kind}"] * (last + 1 - first)
        touching = first > 0 and tags[first - 1] != OUTSIDE and tags[first - 1][2:] == kind
        if scheme != IOB1 or touching:
            tags[first] = f"B-{kind}"
        if scheme in _END:
            tags[last] = f"{_SINGLE[scheme] if first == last else _END[scheme]}-{kind}"
    return tags


def scheme_of(sentences: Sequence[Sequence[str]]) -> str | None:
    """By the prefixes that occur; None where a tag is neither O nor PREFIX-TYPE, or nothing but O is there."""
    seen = {tag for tags in sentences for tag in tags} - {OUTSIDE}
    if not seen or not all(len(tag) > 2 and tag[1] == "-" for tag in seen):
        return None
    letters = {tag[0] for tag in seen}
    chosen = next((name for name, allowed in _LETTERS.items() if letters <= set(allowed)), None)
    if chosen == IOB2 and all(written(spans(tags), len(tags), IOB1) == list(tags) for tags in sentences):
        as_bio = all(written(spans(tags), len(tags), IOB2) == list(tags) for tags in sentences)
        return IOB2 if as_bio else IOB1
    return chosen


def check_tags(sentences: Sequence[Sequence[str]], where: Sequence[str]) -> Checked:
    """Recognise the scheme and check every sequence. `where`: each sentence's place, for messages.

    IOB1 is read as BIO, which says the same. A sequence that its scheme does not know is repaired by CoNLL's rule: an
    entity begins where the script `conlleval` sees one begin (an I- after O or another type is a B-); each such place
    is counted and the first is named.
    """
    scheme = scheme_of(sentences)
    if scheme is None:
        return Checked(None, [list(tags) for tags in sentences], [])
    into = IOB2 if scheme == IOB1 else scheme
    mended, wrong, first = [], 0, ""
    for tags, place in zip(sentences, where, strict=True):
        found = spans(tags)
        expected = written(found, len(tags), scheme)
        if expected != list(tags):
            wrong += 1
            at = next(i for i, (a, b) in enumerate(zip(tags, expected, strict=True)) if a != b)
            first = first or (f"{place}, word {at + 1}: {shown(tags[at])} after "
                              f"{shown(tags[at - 1]) if at else 'the beginning'}")
        mended.append(written(found, len(tags), into))
    notes = [f"tags are {_name(scheme)}" + ("; read as BIO, which says the same" if scheme == IOB1 else "")]
    if wrong:
        notes.append(f"{wrong} tag sequences cannot be in {_name(scheme)} (first: {first}); repaired by conlleval's "
                     "rule: an entity begins where that script sees one begin")
    return Checked(into, mended, notes)


def _name(scheme: str) -> str:
    return {IOB2: "BIO", IOBES: "BIOES"}.get(scheme, scheme)


def entity_types(names: Sequence[str]) -> list[str]:
    """The types of a scheme's tags, sorted."""
    return sorted({name[2:] for name in names if name != OUTSIDE})


def strict_entities(tags: Sequence[str], scheme: str) -> set[tuple[str, int, int]]:
    """(type, first word, word after the last) as seqeval's strict mode reads them: what cannot be is no entity."""
    if all(tag == OUTSIDE for tag in tags):
        return set()
    from seqeval import scheme as schemes

    found = schemes.Entities([list(tags)], getattr(schemes, scheme)).entities[0]
    return {(entity.tag, entity.start, entity.end) for entity in found}
