"""Faults as a script: what goes wrong on which edge, and whether it did. For `memory.MemoryNetwork`; pure.

script = FaultScript().drop(0, 1, version=7).nan(2, 3, times=5).delay(1, 2, seconds=0.5, times=None)
... run ...
assert not script.unfired()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gala_worker.gossip import framing
from gala_worker.gossip.messages import Ack, Chunk, Frame, Hello, Loan

_NAN: Final = b"\xc0\x7f"
"""The upper half of a float32 NaN, and the whole of a bfloat16 one, little-endian."""

_MESSAGE: Final = (Chunk, Loan)

Delivery = tuple[float, bytes]
"""What arrives of a frame: (seconds later than without the fault, bytes)."""


@dataclass(slots=True, eq=False)
class Fault:
    """Something that happens to frames from `source` to `target`."""

    name: str
    source: int
    target: int
    kind: type | tuple[type, ...]
    version: int | None
    """Only the message of this version; None = any."""
    times: int | None
    """At most so often; None = always."""
    act: Callable[[Frame], list[Delivery]]
    fired: int = 0

    def strikes(self, source: int, target: int, frame: Frame) -> bool:
        """Whether this frame is one of its victims."""
        return (
            (source, target) == (self.source, self.target)
            and isinstance(frame, self.kind)
            and (self.version is None or (isinstance(frame, (Chunk, Loan)) and frame.version == self.version))
            and (self.times is None or self.fired < self.times)
        )

    def __str__(self) -> str:
        version = "" if self.version is None else f" version={self.version}"
        return f"{self.name} {self.source}->{self.target}{version}"


class FaultScript:
    """A list of faults; each frame meets the first that strikes it."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def drop(self, source: int, target: int, *, version: int | None = None, times: int | None = 1) -> FaultScript:
        """A chunk, or a loan, never arrives."""
        return self._add("drop", source, target, _MESSAGE, version, times, lambda frame: [])

    def drop_ack(self, source: int, target: int, *, times: int | None = 1) -> FaultScript:
        """An acknowledgement, from the receiver `source` to the sender `target`, never arrives."""
        return self._add("drop ack", source, target, Ack, None, times, lambda frame: [])

    def delay(
        self, source: int, target: int, *, seconds: float, version: int | None = None, times: int | None = 1
    ) -> FaultScript:
        """A chunk, or a loan, and with it all that follows, arrives late."""
        return self._add(
            "delay", source, target, _MESSAGE, version, times, lambda frame: [(seconds, framing.encode(frame))]
        )

    def duplicate(self, source: int, target: int, *, version: int | None = None, times: int | None = 1) -> FaultScript:
        """A chunk, or a loan, arrives twice."""
        return self._add(
            "duplicate", source, target, _MESSAGE, version, times, lambda frame: [(0.0, framing.encode(frame))] * 2
        )

    def truncate(self, source: int, target: int, *, version: int | None = None, times: int | None = 1) -> FaultScript:
        """Only the first half of a frame's bytes arrives."""

        def half(frame: Frame) -> list[Delivery]:
            data = framing.encode(frame)
            return [(0.0, data[: len(data) // 2])]

        return self._add("truncate", source, target, _MESSAGE, version, times, half)

    def garbage(self, source: int, target: int, *, data: bytes, times: int | None = 1) -> FaultScript:
        """Other bytes arrive in place of a chunk, or of a loan."""
        return self._add("garbage", source, target, _MESSAGE, None, times, lambda frame: [(0.0, data)])

    def nan(self, source: int, target: int, *, version: int | None = None, times: int | None = 1) -> FaultScript:
        """The last number of a chunk is a NaN."""

        def poisoned(frame: Frame) -> list[Delivery]:
            assert isinstance(frame, Chunk)
            payload = bytes(frame.payload)[: -len(_NAN)] + _NAN
            return [(0.0, framing.encode(dataclasses.replace(frame, payload=payload)))]

        return self._add("nan", source, target, Chunk, version, times, poisoned)

    def wrong_schema(self, source: int, target: int, *, times: int | None = 1) -> FaultScript:
        """The sender claims another model."""

        def other(frame: Frame) -> list[Delivery]:
            assert isinstance(frame, Hello)
            return [(0.0, framing.encode(dataclasses.replace(frame, schema_hash="another model")))]

        return self._add("wrong schema", source, target, Hello, None, times, other)

    def deliver(self, source: int, target: int, frame: Frame) -> list[Delivery]:
        """What arrives of a frame."""
        for fault in self.faults:
            if fault.strikes(source, target, frame):
                fault.fired += 1
                return fault.act(frame)
        return [(0.0, framing.encode(frame))]

    def unfired(self) -> list[str]:
        """The faults that have not happened: a test that asserts on an empty list tests what it says."""
        return [str(fault) for fault in self.faults if not fault.fired]

    def _add(
        self,
        name: str,
        source: int,
        target: int,
        kind: type | tuple[type, ...],
        version: int | None,
        times: int | None,
        act: Callable[[Frame], list[Delivery]],
    ) -> FaultScript:
        self.faults.append(Fault(name, source, target, kind, version, times, act))
        return self
