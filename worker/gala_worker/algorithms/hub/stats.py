"""What both ends of the star measure about themselves, since the start of their processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from gala_worker.algorithms.hub.terms import HUB_RANK
from gala_worker.gossip.stats import EdgeStats


@dataclass(slots=True)
class ActorCounters:
    """Of one actor, over all its streams."""

    contributions: int = 0
    """Complete ones."""
    refused: int = 0
    bytes_in: int = 0
    parameters: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class ActorStats:
    """One actor, seen from the hub."""

    rank: int
    live: bool
    contributions: int
    refused: int
    bytes_in: int
    """Of payload."""
    parameters: int
    """Messages sent."""
    bytes_out: int
    waiting: int
    """Contributions that the learner has not taken."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """The hub."""

    connected: tuple[int, ...]
    """Actors, ascending."""
    actors: tuple[ActorStats, ...]
    dropped: int
    """Contributions of dead processes, displaced by those of their successors."""
    strangers: dict[str, int] = field(default_factory=dict)
    """What was refused, by reason."""

    def edges(self) -> tuple[EdgeStats, ...]:
        """As the directed edges that every algorithm reports: in = contributions, out = parameters."""
        edges: list[EdgeStats] = []
        for actor in self.actors:
            inward, outward = ("live", "open") if actor.live else ("gone", "closed")
            edges += (
                EdgeStats(actor.rank, "in", inward, actor.contributions, actor.bytes_in, 0, actor.refused),
                EdgeStats(actor.rank, "out", outward, actor.parameters, actor.bytes_out, 0, 0),
            )
        return tuple(edges)


@dataclass(frozen=True, slots=True)
class ClientStats:
    """One actor, seen from itself."""

    connected: bool
    state: str
    """connecting, open, closed."""
    contributions: int
    """Sent as a whole."""
    bytes_out: int
    parameters: int
    """Received as a whole."""
    bytes_in: int
    replaced: int
    """Parameters that newer ones made superfluous before they were taken."""
    refused: int
    """Contributions that the hub refused, and parameters that this side did."""
    lost: int
    """Contributions given up because the hub's process that they were made for is gone."""
    seconds: float
    """In `push` and `latest`, waiting included."""
    waited_seconds: float
    """Of these, for credit or for parameters."""
    strangers: dict[str, int] = field(default_factory=dict)
    """Refusals, in both directions, by reason."""

    def edges(self) -> tuple[EdgeStats, ...]:
        """As the directed edges that every algorithm reports: out = contributions, in = parameters."""
        return (
            EdgeStats(HUB_RANK, "out", self.state, self.contributions, self.bytes_out, self.lost, self.refused),
            EdgeStats(
                HUB_RANK, "in", "live" if self.connected else "gone", self.parameters, self.bytes_in, self.replaced, 0
            ),
        )
