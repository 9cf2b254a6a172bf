"""Signals as something to wait for, so that the launcher's loop handles them at one place."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO_SECONDS: Final = 0.5
"""A signal that comes again so soon is the same wish: timeout(1) sends it to its child and to the group of both."""


class Interrupts:
    """Collects SIGINT, SIGTERM and SIGHUP while entered. Main thread only."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        """In the order of their arrival."""
        self._heard = -math.inf
        """When the last one came."""
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_wakeup = -1
        self._reader, self._writer = -1, -1

    @property
    def exit_code(self) -> int:
        """Of a program that stopped because of the first signal: 130 for Ctrl-C."""
        return 128 + (self.received[0] if self.received else signal.SIGINT)

    @property
    def insistent(self) -> bool:
        """Whether the user has asked more than once."""
        # A closing terminal may add its SIGHUP to what the user sent; that is nobody insisting.
        return sum(number != signal.SIGHUP for number in self.received) >= 2

    def __enter__(self) -> Interrupts:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        # Written by the interpreter's own C handler: waking up through a lock (threading.Event) can deadlock when the
        # signal comes while the main thread holds it.
        self._previous_wakeup = signal.set_wakeup_fd(self._writer)
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or as soon as a signal has come."""
        select.select([self._reader], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not (self.received and self.received[-1] == number and now < self._heard + ECHO_SECONDS):
            self.received.append(signal.Signals(number))
            self._heard = now
