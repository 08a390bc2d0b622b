"""Where an adaptive sweep stands, computed anew from finished trials alone.

Full fine-tuning is tuned, then one depth after the other in the order of a bisection: tuned by successive halving over
the tuning seeds, confirmed on fresh seeds in looks (`analysis.statistics.sequential` has the rules). Nothing is
remembered between two calls: whatever was killed in between, and whoever trained what else ahead, the same trials give
the same decisions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from analysis.statistics import sequential
from analysis.statistics.sequential import Decision
from finetune.sweep.adaptive.space import CONFIRM, FULL, TUNE, Space, Wish

AHEAD = 15  # hypothetical continuations that are looked at for something to train ahead


class Evidence(Protocol):
    """What is known of finished trials."""

    def ended(self, wish: Wish) -> bool: ...

    def score(self, wish: Wish) -> float:
        """The validation metric that tuning goes by; nan for a trial that ended without a result."""
        ...

    def decide(self, full: list[Wish], frozen: list[Wish]) -> Decision:
        """One look at a depth: fresh seeds of both, in the same order, all of which have ended."""
        ...


@dataclass
class Path:
    """`needed` are trials that the next decision waits for, `asked` all that some decision has asked for so far."""

    asked: dict[Wish, None] = field(default_factory=dict)  # in order
    needed: list[Wish] = field(default_factory=list)
    chosen: dict[int, str] = field(default_factory=dict)  # depth -> setting_id
    decisions: list[tuple[int, Decision]] = field(default_factory=list)  # depth and look, in order
    now: int | None = None  # the depth in hand; 0 while full fine-tuning is tuned
    named: int | None = None  # the deepest depth that is shown safe so far
    hopeless: bool = False  # full fine-tuning has no result at all

    @property
    def done(self) -> bool:
        return self.hopeless or self.now is None

    def last(self, depth: int | None) -> Decision | None:
        return next((decision for other, decision in reversed(self.decisions) if other == depth), None)


def walk(space: Space, evidence: Evidence, assume: Mapping[int, bool] | None = None) -> Path:
    """As far as finished trials lead. `assume`: depths whose outcome is taken for known, safe or not."""
    path, assume = Path(now=FULL), assume or {}
    if not _tune(path, space, evidence, FULL):
        return path
    if FULL not in path.chosen:
        path.hopeless = True
        return path
    last = {depth: _assumed(safe) for depth, safe in assume.items()}
    while True:
        step = sequential.next_depths(space.candidates, last)
        path.now, path.named = step.now, step.named
        if step.now is None or not _tune(path, space, evidence, step.now):
            return path
        if not _confirm(path, space, evidence, step.now):
            return path
        last[step.now] = path.decisions[-1][1]


def _assumed(safe: bool) -> Decision:
    return sequential.without_result()._replace(state="safe" if safe else "futile")


def _tune(path: Path, space: Space, evidence: Evidence, depth: int) -> bool:
    """Successive halving over the depth's settings by tuning seeds. False where trials are waited for."""
    alive = sorted(space.tuning[depth])
    for rung in range(len(space.tuning_seeds)):
        seeds = space.tuning_seeds[:rung + 1]
        if not _ended(path, evidence, [Wish(TUNE, depth, name, seeds[-1]) for name in alive]):
            return False
        scores = {name: [evidence.score(Wish(TUNE, depth, name, seed)) for seed in seeds] for name in alive}
        alive = sequential.halving(scores, rung, maximize=space.tuned_upwards)
        if len(alive) <= 1:
            break
    if alive:
        path.chosen[depth] = alive[0]
    return True


def _confirm(path: Path, space: Space, evidence: Evidence, depth: int) -> bool:
    """Looks until the depth is decided. False where trials are waited for."""
    if depth not in path.chosen:
        path.decisions.append((depth, sequential.without_result()))
        return True
    for look in space.looks:
        full, frozen = (_fresh(space, path, which, look) for which in (FULL, depth))
        if not _ended(path, evidence, [*full, *frozen]):
            return False
        path.decisions.append((depth, evidence.decide(full, frozen)))
        if path.decisions[-1][1].final:
            return True
    return True


def _fresh(space: Space, path: Path, depth: int, seeds: int) -> list[Wish]:
    return [Wish(CONFIRM, depth, path.chosen[depth], seed) for seed in space.fresh[:seeds]]


def _ended(path: Path, evidence: Evidence, wishes: list[Wish]) -> bool:
    path.asked |= dict.fromkeys(wishes)
    path.needed = [wish for wish in wishes if not evidence.ended(wish)]
    return not path.needed


def ahead(space: Space, evidence: Evidence, path: Path) -> Iterator[Wish]:
    """What may be needed later, the likeliest first; may repeat itself. For workers that would idle.

    Full fine-tuning's seeds of the first look, which every comparison needs; the depth that the likelier outcome leads
    to; the next look at the depth in hand; and so on.
    """
    if FULL in path.chosen:
        yield from _fresh(space, path, FULL, space.looks[0])
    waiting: deque[dict[int, bool]] = deque([{}])
    for _ in range(AHEAD):
        if not waiting:
            return
        assume = waiting.popleft()
        found = walk(space, evidence, assume) if assume or path.now != FULL else path
        if assume:
            yield from found.needed
        if found.now == FULL and not found.hopeless:
            yield from _first_rung(space)
        elif found.now is not None:
            likely = _likely_safe(space, evidence, found)
            waiting += [{**assume, found.now: likely}, {**assume, found.now: not likely}]
            if len(assume) == 1:
                yield from _next_look(space, path)


def _first_rung(space: Space) -> Iterator[Wish]:
    first = sequential.next_depths(space.candidates, {}).now
    if first is not None:
        yield from (Wish(TUNE, first, name, space.tuning_seeds[0]) for name in sorted(space.tuning[first]))


def _next_look(space: Space, path: Path) -> Iterator[Wish]:
    """The look that comes after the one that is waited for."""
    if path.now is None or path.now not in path.chosen:
        return
    last = path.last(path.now)
    place = 1 if last is None else last.look + 1
    if place < len(space.looks):
        for depth in (path.now, FULL):
            yield from _fresh(space, path, depth, space.looks[place])


def _likely_safe(space: Space, evidence: Evidence, path: Path) -> bool:
    """A guess that decides what is trained ahead and nothing else: by the last look, else by validation."""
    last = path.last(path.now)
    if last is not None and not math.isnan(last.chance):
        return last.chance >= 0.5
    if path.now not in path.chosen or FULL not in path.chosen:
        return True
    full, frozen = (_validated(space, evidence, depth, path.chosen[depth]) for depth in (FULL, path.now))
    return (full - frozen) * (1 if space.tuned_upwards else -1) <= space.margin


def _validated(space: Space, evidence: Evidence, depth: int, setting_id: str) -> float:
    wishes = [Wish(TUNE, depth, setting_id, seed) for seed in space.tuning_seeds]
    return fmean(evidence.score(wish) for wish in wishes if evidence.ended(wish))
