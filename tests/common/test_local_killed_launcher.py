"""`gala run` from the outside: the launcher is killed, and its workers do not outlive it for long."""

from __future__ import annotations

import os
import signal

import pytest

from local_machine import Machine, alive, frozen, ignores_sigterm
from waiting import eventually

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]


def test_workers_stop_when_their_launcher_is_killed_and_the_run_resumes(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    pids = [machine.pid(0), machine.pid(1)]
    uid = machine.record()["uid"]
    launcher.kill()
    launcher.wait()
    eventually(lambda: not any(alive(pid) for pid in pids))
    assert [len(machine.notes(rank, "stopped")) for rank in (0, 1)] == [1, 1]
    launcher = machine.gala()
    machine.started(0, 1, times=2)
    assert machine.record()["uid"] == uid
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)


def test_a_frozen_worker_of_a_killed_launcher_stops_as_the_others_do(machine: Machine) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    pids = [machine.pid(0), machine.pid(1)]
    os.kill(pids[0], signal.SIGSTOP)
    eventually(lambda: frozen(pids[0]))
    launcher.kill()
    launcher.wait()
    os.kill(pids[0], signal.SIGCONT)  # the kernel's too, with a SIGHUP before it, unless this session has a subreaper
    eventually(lambda: not any(alive(pid) for pid in pids))
    assert [len(machine.notes(rank, "stopped")) for rank in (0, 1)] == [1, 1]


@pytest.mark.parametrize("arguments", [[], ["--force"]])
def test_a_hanging_worker_of_a_killed_launcher_is_cleared_away_by_the_next(
    machine: Machine, arguments: list[str]
) -> None:
    launcher = machine.gala()
    machine.started(0, 1)
    hanging = machine.pid(0)
    eventually(lambda: hanging in machine.record()["workerPids"])
    machine.script(0, "deaf")
    eventually(lambda: ignores_sigterm(hanging))
    launcher.kill()
    launcher.wait()
    os.kill(hanging, signal.SIGSTOP)
    assert alive(hanging)
    machine.script(0, "")
    launcher = machine.gala(*arguments)
    eventually(lambda: any(note["pid"] != hanging for note in machine.notes(0, "started")))
    assert not alive(hanging)
    launcher.send_signal(signal.SIGINT)
    machine.ends(launcher, 130)
