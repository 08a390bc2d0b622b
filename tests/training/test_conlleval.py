"""Entity counts against the CoNLL-2000 script `conlleval`, on three small files whose numbers were worked out by hand.

The script is written down here once more, from its rules: a chunk begins at B-, or where the type changes, or after O;
it ends before the next B-, type or O; it counts as right where it begins, ends and is typed as the true one.
"""

from __future__ import annotations

import numpy as np
import pytest

from finetune.training.tagging import count_metrics, sentence_counts

# "true said" per word, / between sentences. By hand: (right, said, true) chunks, then words right of all.
FILES = {
    # PER right; LOC said one word short; ORG missed; a LOC said where there is none.
    "borders": ("B-PER/B-PER I-PER/I-PER O/O B-LOC/B-LOC I-LOC/O | O/B-LOC B-ORG/O O/O", (1, 3, 3), (5, 8)),
    # Two LOC side by side: said as one; a PER typed as ORG; one LOC right.
    "neighbours": ("B-LOC/B-LOC B-LOC/I-LOC O/O B-PER/B-ORG | B-LOC/B-LOC O/O", (1, 3, 4), (4, 6)),
    # All right, one more said at the end of the sentence; a sentence without entities.
    "one more": ("O/O B-PER/B-PER I-PER/I-PER I-PER/I-PER O/B-PER | O/O O/O | B-ORG/B-ORG", (2, 3, 2), (7, 8)),
}


def conlleval(sentences):
    """(right, said, true) chunks, as the script counts them: O between sentences."""
    right = said = true = 0
    for pairs in sentences:
        found = [_chunks([pair[side] for pair in pairs]) for side in (0, 1)]
        right, true, said = right + len(found[0] & found[1]), true + len(found[0]), said + len(found[1])
    return right, said, true


def _chunks(tags):
    chunks, start, before = set(), None, "O"
    for at, tag in enumerate([*tags, "O"]):
        breaks = tag == "O" or tag[0] == "B" or tag[2:] != before[2:]
        if start is not None and breaks:
            chunks.add((before[2:], start, at))
            start = None
        if tag != "O" and start is None:
            start = at
        before = tag
    return chunks


@pytest.mark.parametrize("name", FILES)
def test_strict_numbers_are_conllevals_on_hand_made_files(name):
    text, (right, said, true), (words_right, words) = FILES[name]
    sentences = [[tuple(word.split("/")) for word in part.split()] for part in text.split("|")]
    assert conlleval(sentences) == (right, said, true)
    names = sorted({tag for pairs in sentences for pair in pairs for tag in pair} | {"I-LOC", "I-PER", "I-ORG"})
    flat = [pair for pairs in sentences for pair in pairs]
    labels, said_tags = (np.array([names.index(pair[side]) for pair in flat]) for side in (0, 1))
    offsets = np.cumsum([0, *map(len, sentences)])
    counts = sentence_counts(np.eye(len(names))[said_tags], labels, offsets, names, "IOB2")
    np.testing.assert_array_equal(counts[:, :-1].sum(axis=(0, 1)), [right, said, true])
    found = count_metrics(counts, "IOB2")
    assert found["precision"] == pytest.approx(right / said) and found["recall"] == pytest.approx(right / true)
    assert found["f1"] == pytest.approx(2 * right / (said + true)) and found["accuracy"] == words_right / words


def test_where_the_two_differ_a_sequence_that_cannot_be_is_no_strict_entity():
    """I-PER after O: the script counts a chunk, seqeval's strict mode none. Stated in docs/data.md."""
    assert conlleval([[("B-PER", "I-PER")]]) == (1, 1, 1)
    counts = sentence_counts(np.eye(3)[[2]], np.array([1]), np.array([0, 1]), ["O", "B-PER", "I-PER"], "IOB2")
    assert counts[0, 0].tolist() == [0, 0, 1]
