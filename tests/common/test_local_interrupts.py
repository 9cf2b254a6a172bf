"""Signals as the launcher hears them."""

from __future__ import annotations

import os
import signal

import pytest

from gala.local import interrupts
from gala.local.interrupts import Interrupts


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_signal_that_comes_again_at_once_is_nobody_insisting(monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout(1) sends SIGTERM to its child, and then to the group of both."""
    clock = Clock()
    monkeypatch.setattr(interrupts, "time", clock)
    with Interrupts() as heard:
        send(signal.SIGTERM, signal.SIGTERM)
        heard.wait(1.0)
        assert (heard.received, heard.insistent, heard.exit_code) == ([signal.SIGTERM], False, 143)
        clock.now += 0.4
        send(signal.SIGTERM)
        assert not heard.insistent
        clock.now += 0.2  # more than half a second since the first: echoes do not put it off
        send(signal.SIGTERM)
        assert heard.insistent
        assert heard.exit_code == 143


def test_two_different_signals_are_two() -> None:
    with Interrupts() as heard:
        send(signal.SIGINT, signal.SIGTERM)
        assert heard.insistent
        assert heard.exit_code == 130
