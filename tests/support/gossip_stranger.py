"""Somebody whom rank 0 does not know."""

from __future__ import annotations

from gala_worker.gossip.fleet import Fleet


class Stranger:
    """Says what it likes to rank 0."""

    def __init__(self, fleet: Fleet) -> None:
        self.heard: list[object] = []
        self.finished = False
        self.closed = False
        self.to_say: list[object] = []
        self._network = fleet.network
        fleet.network.transport(99).connect("rank-0:1", self._attach)

    def _attach(self, link):
        self.link = link
        return self

    def next_frame(self, now):
        return self.to_say.pop(0) if self.to_say else None

    def receive(self, frame, now):
        self.heard.append(frame)

    def reject(self, problem):
        raise AssertionError(problem)

    def ended(self, now, why):
        self.closed = True

    def say(self, *frames) -> list[object]:
        self.to_say += frames
        self.link.wake()
        self._network.advance(0.1)
        return self.heard
