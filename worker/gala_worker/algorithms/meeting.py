"""Where the ranks of a synchronous run find each other: rank 0 waits at its gossip address until all have come.

A meeting makes one generation: a set of processes that will compute together. When one of them dies, freezes or leaves,
the others come here again, and nobody has to be restarted. The process group itself is `process_group`'s business.

On the wire (TCP, lines of JSON, at most `MAX_LINE` bytes): the guest says who it is; the host answers, once everybody
has come, with a welcome that names all members, or at once with a refusal. Until then both sides send empty lines, so
that each notices when the other has gone: an open connection is a guest that waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from gala.complaints import Complaints
from gala.errors import GossipError, MessageError, RefusedError
from gala.plan import RunPlan
from gala_worker import address as addresses
from gala_worker.gossip.loop_thread import LoopThread

log = logging.getLogger(__name__)

MAX_LINE: Final = 1 << 20
"""Bytes; the welcome of 1,024 members has some 300,000."""
BEAT_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 5.0
"""Without a sign of life for so long, the other side has gone."""
RETRY_SECONDS: Final = 0.25
MAX_SPARE_CONNECTIONS: Final = 64
"""Beyond one per rank: strangers, and guests that have come twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """Who comes, and what it has."""

    run_uid: str
    schema: str
    """Hash of what its vector holds."""
    rank: int
    epoch: int
    """Of its plan."""
    incarnation: int
    updates: int
    global_steps: int
    device: str
    """`cpu`, or the identity of its GPU."""
    pace_ms: int = 0
    """Milliseconds that a rollout and its gradient take it; 0 before the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """One generation, as every member hears of it."""

    generation: int
    members: tuple[Hello, ...]
    """By rank."""
    store_port: int
    """Of rank 0's key-value store, through which the members exchange where they listen."""
    store_host: str
    """Where this member reaches it."""
    own_host: str
    """Where the others reach this member."""

    @property
    def slowest(self) -> Hello:
        """Whose rollouts take the longest."""
        return max(self.members, key=lambda member: member.pace_ms)


class Host:
    """Rank 0's side. `gather` belongs to the learner thread, the rest of it happens on the loop."""

    def __init__(self, loop: LoopThread, plan: RunPlan, rank: int) -> None:
        self._loop = loop
        self._plan = plan
        self._rank = rank
        self._address = plan.learner(rank).address.gossip
        self._condition = threading.Condition()
        self._guests: dict[int, _Guest] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._schema = ""
        self._complaints = Complaints(log)
        self.generation = 0

    def start(self, schema: str) -> None:
        """Listens. Raises: GossipError when the address cannot be had."""
        self._schema = schema
        host, port = addresses.split(self._address)
        try:
            self._server = self._loop.run(self._serve(addresses.listening_hosts(host), port))
        except OSError as error:
            raise GossipError(f"cannot listen on {self._address}: {error}") from error

    async def _serve(self, hosts: tuple[str, ...], port: int) -> asyncio.Server:
        # The launcher holds the port, so that nobody else gets it between two workers.
        return await asyncio.start_server(self._receive, list(hosts), port, limit=MAX_LINE, reuse_port=True)

    def set_plan(self, plan: RunPlan) -> None:
        """From here on only those who know this plan's epoch are waited for."""
        with self._condition:
            self._plan = plan

    def gather(self, own: Hello, seconds: float) -> Gathering | None:
        """Everybody of the plan's epoch, all of them waiting at this moment; None if they have not come in time."""
        with self._condition:
            others = [rank for rank in self._plan.ranks if rank != self._rank]
            if not self._condition.wait_for(lambda: self._are_here(others), seconds):
                return None
            guests = {rank: self._guests.pop(rank) for rank in others}
        self.generation += 1
        return Gathering(self._loop, self.generation, own, guests)

    def _are_here(self, ranks: list[int]) -> bool:
        return all(rank in self._guests and self._guests[rank].hello.epoch == self._plan.epoch for rank in ranks)

    def close(self) -> None:
        """Sends all guests away."""
        if self._server is not None:
            self._loop.run(self._close(self._server), timeout_seconds=5.0)
            self._server = None

    async def _close(self, server: asyncio.Server) -> None:
        # What asyncio has accepted but not yet handed over when the server closes stays open and is nobody's
        # (python/cpython#109564). So first nobody is accepted any more, and then those few steps are awaited.
        for listener in server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Called in the moment in which there is a connection: none is ever without someone who closes it.
        if len(self._connections) >= len(self._plan.ranks) + MAX_SPARE_CONNECTIONS:
            writer.close()
            return

        def leave(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            writer.close()

        task = asyncio.get_running_loop().create_task(self._entertain(reader, writer))
        task.add_done_callback(leave)  # a task that is cancelled before its first step has no `finally`
        self._connections.add(task)

    async def _entertain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest: _Guest | None = None
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                guest = _Guest(_hello(await reader.readline()), writer)
            self._admit(guest)
            await _keep_company(reader, writer)
        except RefusedError as error:
            with contextlib.suppress(OSError):
                writer.write(json.dumps({"refused": str(error)}).encode() + b"\n")
        except MessageError as error:
            self._complaints.add("malformed", None, f"a stranger at {self._address}: {error}", time.monotonic())
        except (OSError, TimeoutError, ValueError, asyncio.CancelledError):
            pass  # it has gone, says nothing, or does not end its line
        finally:
            if guest is not None:
                with self._condition:
                    if self._guests.get(guest.hello.rank) is guest:
                        del self._guests[guest.hello.rank]

    def _admit(self, guest: _Guest) -> None:
        hello = guest.hello
        with self._condition:
            if hello.run_uid != self._plan.run_uid:
                raise RefusedError("another run")
            if hello.schema != self._schema:
                raise RefusedError("other parameters")
            present = self._guests.get(hello.rank)
            if present is not None and present.hello.incarnation > hello.incarnation:
                raise RefusedError("a newer process of this rank is here")
            self._guests[hello.rank] = guest
            self._condition.notify_all()


class _Guest:
    def __init__(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self.writer = writer
        self.here, self.there = _host(writer, "sockname"), _host(writer, "peername")


class Gathering:
    """Those who have come, before they have been told so."""

    def __init__(self, loop: LoopThread, generation: int, own: Hello, guests: Mapping[int, _Guest]) -> None:
        self._loop = loop
        self._generation = generation
        self._own = own
        self._guests = guests

    @property
    def host(self) -> str | None:
        """The one address by which all guests have found the host; None if there are several."""
        hosts = {guest.here for guest in self._guests.values()}
        return hosts.pop() if len(hosts) == 1 else None

    def welcome(self, store_port: int) -> Welcome:
        """Tells everybody, and what the host itself is to know."""
        members = tuple(sorted((self._own, *(g.hello for g in self._guests.values())), key=lambda hello: hello.rank))
        first = next(iter(self._guests.values()))
        own = Welcome(
            generation=self._generation,
            members=members,
            store_port=store_port,
            store_host=first.here,
            own_host=first.here,
        )
        content = asdict(own)
        for guest in self._guests.values():
            content["store_host"], content["own_host"] = guest.here, guest.there
            self._loop.call_soon(_write, guest.writer, json.dumps({"welcome": content}).encode() + b"\n")
        return own

    def dismiss(self) -> None:
        """Sends everybody away; they come again."""
        for guest in self._guests.values():
            self._loop.call_soon(guest.writer.close)


def _host(writer: asyncio.StreamWriter, end: str) -> str:
    """The IP address of one end of a connection. Raises: OSError when the connection has gone already."""
    name = writer.get_extra_info(end)
    if name is None:
        raise ConnectionResetError("closed")
    return str(name[0])


def _write(writer: asyncio.StreamWriter, line: bytes) -> None:
    if not writer.is_closing():
        writer.write(line)


class Visit:
    """Another rank's side: one call at rank 0, from its beginning until it was welcome or `cancel`."""

    def __init__(self, loop: LoopThread, address: str, hello: Hello) -> None:
        self._address = address
        self._hello = hello
        self._complaints = Complaints(log)
        self._future = loop.submit(self._visit())

    def result(self, seconds: float) -> Welcome | None:
        """The welcome; None if there has been none in time."""
        try:
            return self._future.result(seconds)
        except concurrent.futures.TimeoutError:
            return None

    def cancel(self) -> None:
        """Goes away."""
        self._future.cancel()

    async def _visit(self) -> Welcome:
        while True:
            try:
                return await self._call()
            except RefusedError as error:
                self._complaints.add("refused", 0, f"rank 0 refuses this rank: {error}", time.monotonic())
            except MessageError as error:
                self._complaints.add("malformed", 0, f"rank 0 at {self._address}: {error}", time.monotonic())
            except (OSError, TimeoutError, ValueError, RecursionError) as error:
                log.debug("rank 0 at %s: %s", self._address, error)
            await asyncio.sleep(RETRY_SECONDS)

    async def _call(self) -> Welcome:
        host, port = addresses.split(self._address)
        async with asyncio.timeout(SILENCE_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_LINE)
        try:
            store_host = _host(writer, "peername")
            writer.write(json.dumps(asdict(self._hello)).encode() + b"\n")
            answer = json.loads(await _keep_company(reader, writer))
            if not isinstance(answer, dict) or not isinstance(answer.get("welcome"), dict):
                raise RefusedError(str(answer)[:200])
            return replace(_welcome(answer["welcome"]), store_host=store_host)
        finally:
            writer.close()


async def _keep_company(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The next line that is not empty; meanwhile both sides give signs of life.

    Raises: OSError, TimeoutError: the other side has gone.
    """

    async def beat() -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            writer.write(b"\n")

    beating = asyncio.create_task(beat())
    try:
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                line = await reader.readline()
            if not line:
                raise ConnectionResetError("closed")
            if line.strip():
                return line
    finally:
        beating.cancel()


def _hello(line: bytes) -> Hello:
    try:
        return _member(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise MessageError("not a hello") from error


def _member(document: Any) -> Hello:
    if not isinstance(document, dict):
        raise MessageError("not a hello")
    names = ("rank", "epoch", "incarnation", "updates", "global_steps")
    numbers = {name: document.get(name) for name in names} | {"pace_ms": document.get("pace_ms", 0)}
    texts = {name: document.get(name) for name in ("run_uid", "schema", "device")}
    if not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise MessageError("a hello without its numbers")
    if not all(isinstance(text, str) and len(text) <= 200 for text in texts.values()):
        raise MessageError("a hello without its names")
    return Hello(**numbers, **texts)  # type: ignore[arg-type]


def _welcome(document: dict[str, Any]) -> Welcome:
    generation, port, members = (document.get(name) for name in ("generation", "store_port", "members"))
    hosts = document.get("store_host"), document.get("own_host")
    if type(generation) is not int or type(port) is not int or not 0 < port < 1 << 16:
        raise MessageError("a welcome without its numbers")
    if not isinstance(members, list) or not all(isinstance(host, str) for host in hosts):
        raise MessageError("a welcome without its names")
    store_host, own_host = map(str, hosts)
    return Welcome(
        generation=generation,
        members=tuple(_member(member) for member in members),
        store_port=port,
        store_host=store_host,
        own_host=own_host,
    )
