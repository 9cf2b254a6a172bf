"""Who pushes to whom when some are gone: the successor list, and when to try again. Pure."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import Final

FIRST_RETRY_SECONDS: Final = 0.1
LONGEST_RETRY_SECONDS: Final = 5.0


def choose(nominal: Sequence[int], members: Sequence[int], rank: int, gone: Container[int]) -> tuple[int | None, ...]:
    """For each out-peer of the topology, the rank to push to: itself, or the next live rank after it.

    Args:
        nominal: the out-peers that the topology names.
        members: all ranks of the plan, ascending, `rank` among them.
        gone: ranks that do not answer.

    Returns: one rank for each of `nominal`, all different and none of them `rank`; None where nobody is left.
    """
    taken = {rank} | {peer for peer in nominal if peer not in gone}
    chosen: list[int | None] = []
    for peer in nominal:
        if peer not in gone:
            chosen.append(peer)
            continue
        heir = next((heir for heir in _after(peer, members) if heir not in gone and heir not in taken), None)
        if heir is not None:
            taken.add(heir)
        chosen.append(heir)
    return tuple(chosen)


def nearer(nominal: Sequence[int], chosen: Sequence[int | None], members: Sequence[int], rank: int) -> set[int]:
    """The ranks between each nominal out-peer and the one chosen for it: gone, and to be tried again."""
    ranks: set[int] = set()
    for peer, heir in zip(nominal, chosen, strict=True):
        if heir == peer:
            continue
        ranks.add(peer)
        for between in _after(peer, members):
            if between in (heir, rank):
                break
            ranks.add(between)
    return ranks - {rank} - set(chosen)


def _after(peer: int, members: Sequence[int]) -> list[int]:
    start = members.index(peer) + 1
    return [*members[start:], *members[: start - 1]]


class Backoff:
    """When to try a neighbour again: soon at first, then rarely, and not all at the same time."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._failures = 0
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time to try."""
        return now >= self._next

    def failed(self, now: float) -> None:
        """Another attempt came to nothing."""
        # min() before the power: 2**failures of a neighbour that is gone for a week is no float any more.
        longest = min(FIRST_RETRY_SECONDS * 2 ** min(self._failures, 16), LONGEST_RETRY_SECONDS)
        self._failures += 1
        self._next = now + longest * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It has answered, or was heard of: try at once."""
        self._failures = 0
        self._next = 0.0
