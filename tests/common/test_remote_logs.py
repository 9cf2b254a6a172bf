"""`gala logs --follow`: connections that break, logs that may not be read, pods that print without an end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gala.errors import GalaError, UnreachableError, UsageError
from gala.remote import logs
from gala.remote.cluster import Pod
from waiting import eventually

READERS = "log of "
Log = Callable[[dict[str, Any]], Iterator[str]]
"""What a pod has printed, for the arguments that it is asked with."""


class World:
    """One run and its pods, as `follow` asks for them."""

    def __init__(self) -> None:
        self.state = "Running"
        self.logs: dict[str, Log] = {}
        self.running: set[str] = set()
        """The pods that go on; the others have ended."""
        self.requests: list[tuple[str, int | None, int | None]] = []
        """pod, tail, since_seconds"""
        self.written: list[str] = []
        self.notes: list[str] = []

    def get(self, name: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "uid": "uid-1"}, "status": {"state": self.state}}

    def pods(self, name: str) -> list[Pod]:
        return [
            Pod(
                name=f"{name}-{rank}",
                uid=f"pod-{rank}",
                run_uid="uid-1",
                rank=None if rank == "results" else int(rank),
                started=True,
                reason="",
                running=rank in self.running,
            )
            for rank in self.logs
        ]

    def log_lines(self, pod: Pod, **asked: Any) -> Iterator[str]:
        self.requests.append((pod.name, asked.get("tail"), asked.get("since_seconds")))
        return self.logs[pod.name.rpartition("-")[2]](asked)

    def follow(self, *, tail: int | None = None, write: Callable[[str], None] | None = None) -> None:
        logs.follow(self, "pole", rank=None, tail=tail, write=write or self.written.append, note=self.notes.append)  # type: ignore[arg-type]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.02)
    yield World()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(READERS)])


def printed(*lines: str) -> Log:
    return lambda asked: iter(lines)


def failing(error: GalaError, *lines: str) -> Log:
    """Some lines, then an error."""

    def log(asked: dict[str, Any]) -> Iterator[str]:
        yield from lines
        raise error

    return log


def one_after_another(*times: Log) -> Log:
    """Each request gets the next one."""
    left = iter(times)
    return lambda asked: next(left)(asked)


FORBIDDEN = UsageError('the cluster does not allow it: cannot get resource "pods/log"')


def test_logs_that_may_not_be_read_are_the_same_error_whether_they_are_followed_or_not(world: World) -> None:
    world.logs = {"0": failing(FORBIDDEN)}
    world.running = {"0"}
    with pytest.raises(UsageError, match="does not allow it"):
        logs.show(world, "pole", rank=None, tail=None, write=world.written.append, note=world.notes.append)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not allow it"):
        world.follow()


def test_one_log_that_cannot_be_read_is_noted_once_and_the_others_are_followed(world: World) -> None:
    world.logs = {"0": failing(UsageError("the cluster refuses it: no container")), "1": printed("one")}
    polls = itertools.count()

    def pods(name: str) -> list[Pod]:
        world.state = "Succeeded" if next(polls) > 5 else "Running"
        return World.pods(world, name)

    world.pods = pods  # type: ignore[method-assign]
    world.follow()
    assert world.written == ["[1] one"]
    assert world.notes == ["pole-0: the cluster refuses it: no container"]
    assert sorted(world.requests) == [("pole-0", None, None), ("pole-1", None, None)]


def test_a_connection_that_breaks_before_a_line_is_asked_for_the_same_again(world: World) -> None:
    world.state = "Succeeded"
    world.logs = {"0": one_after_another(failing(UnreachableError("no route")), printed("one", "two"))}
    world.follow(tail=100)
    assert world.written == ["[0] one", "[0] two"]
    assert world.requests == [("pole-0", 100, None), ("pole-0", 100, None)]
    assert world.notes == ["pole-0: no route; trying again"]


def test_a_connection_that_breaks_between_two_lines_is_taken_up_where_it_broke(world: World) -> None:
    world.state = "Succeeded"
    world.logs = {"0": one_after_another(failing(UnreachableError("cut"), "one"), printed("two"))}
    world.follow(tail=100)
    assert world.written == ["[0] one", "[0] two"]
    (_, tail, since), (_, later_tail, later_since) = world.requests
    assert (tail, since, later_tail) == (100, None, None)
    assert later_since is not None
    assert later_since >= 1


def test_pods_that_print_without_an_end_hide_neither_a_new_pod_nor_the_run_s_end(world: World) -> None:
    over = threading.Event()

    def flood(asked: dict[str, Any]) -> Iterator[str]:
        while not over.is_set():
            yield "x"

    world.logs = {"0": flood}

    def live() -> None:
        eventually(lambda: world.written)
        world.logs |= {"1": printed("late")}
        eventually(lambda: "[1] late" in world.written)
        over.set()
        world.state = "Succeeded"

    life = threading.Thread(target=live)
    life.start()
    world.follow()
    life.join()


def test_the_results_pod_which_serves_on_does_not_keep_the_command_from_its_end(world: World) -> None:
    world.state = "Succeeded"
    released = threading.Event()

    def serving(asked: dict[str, Any]) -> Iterator[str]:
        yield "the result is served"
        released.wait(30)

    world.logs, world.running = {"results": serving}, {"results"}
    world.follow()
    released.set()
    assert world.written == ["[results] the result is served"]


def test_while_nobody_reads_what_is_written_the_pods_wait_and_nothing_piles_up(world: World) -> None:
    """A pager that is left open, then closed."""
    handed_over = 0

    def flood(asked: dict[str, Any]) -> Iterator[str]:
        nonlocal handed_over
        while True:
            yield "x"
            handed_over += 1

    def pager(line: str) -> None:
        eventually(lambda: handed_over >= logs.MAX_LINES)
        raise BrokenPipeError

    world.logs = {"0": flood}
    with pytest.raises(BrokenPipeError):
        world.follow(write=pager)
    assert handed_over <= logs.MAX_LINES + 3
