"""Frozen-prefix activations: what frozen layers say about a text is computed once and kept on disk.

    store.py    entries on disk: keys, checksums, one builder, least recently used goes first
    budget.py   how much may be kept, and which depths are worth keeping
    fill.py     one pass over the texts that gives every depth
    precision.py in which dtype they are kept
    check.py    whether a replay is sound: structure in full precision, rounding against the full pass's own
    served.py   an entry as a trial reads it
    resident.py entries on a GPU, gathered by index
    replay.py   a cached hidden state takes the place of the layers below it, inside the model's own forward
    reuse.py    what a trial asks: a forward pass over rows of a split, cheap where its plan allows it
"""
