"""What gossip measures about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class EdgeCounters:
    """Of one directed edge, over all its streams."""

    messages: int = 0
    bytes: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class EdgeStats:
    """One directed edge at this moment."""

    peer: int
    direction: Literal["in", "out"]
    state: str
    """out: connecting, open, closed. in: live, gone."""
    messages: int
    """Complete ones, since the start of this process."""
    bytes: int
    """Of payload."""
    replaced: int
    """Messages that a newer one made superfluous before they were sent (out) or mixed (in)."""
    refused: int


@dataclass(frozen=True, slots=True)
class GossipStats:
    """What has crossed this rank's wire since its process began. Other algorithms fill in what they have."""

    mixes: int = 0
    skips: int = 0
    """`mix` calls that found no fresh message from every live in-peer."""
    seconds: float = 0.0
    """On the learner thread, all calls together, waiting included."""
    waited_seconds: float = 0.0
    """Of these, waiting for others."""
    staleness_updates: int = 0
    staleness_seconds: float = 0.0
    disagreement: float = 0.0
    relative_disagreement: float = 0.0
    """The last four: at the last mixing."""
    staleness_max_updates: int = 0
    """The largest, where `staleness_updates` is a mean over several; else 0."""
    in_peers: tuple[int, ...] = ()
    """Live ones."""
    out_peers: tuple[int, ...] = ()
    """Those that this learner pushes to now."""
    edges: tuple[EdgeStats, ...] = ()
    strangers: dict[str, int] = field(default_factory=dict)
    """Streams refused, by reason."""
    weight: float = 1.0
    """Push-sum weight that this learner owns, without what is on its way."""
