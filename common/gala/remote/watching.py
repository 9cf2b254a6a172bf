"""Watching a run until its end: the live table of `gala run`, or a line per change, and the exit code of it all."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console

from gala.errors import NotFoundError, RunError, TimedOutError, UnreachableError, UsageError
from gala.local.console import Display, say
from gala.local.interrupts import Interrupts
from gala.local.table import duration
from gala.remote.cluster import Cluster
from gala.remote.view import Run, failures, snapshot

NOBODY_LOOKS: Final = (
    "no operator has looked at it yet; is one running? kubectl get pods -A -l app.kubernetes.io/name=gala-operator"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rhythm:
    """How often, and how long at most, in seconds."""

    poll: float = 1.0
    """Between two looks at the run. The operator renews the numbers every 10 s."""
    line: float = 10.0
    """Between two plain progress lines."""
    unseen: float = 20.0
    """After so long without an operator the user is told."""
    unreachable: float = 300.0
    """For so long the API server may be away; the run does not need it, nor us."""


def watch(
    cluster: Cluster,
    name: str,
    *,
    console: Console,
    table: bool,
    timeout_seconds: float | None = None,
    rhythm: Rhythm | None = None,
) -> int:
    """Stay until the run has ended. Returns 0 when it has succeeded, 128 + signal when the user has had enough.

    Args:
        table: show the learners' table, or progress lines where there is no terminal; else changes of state only.

    Raises:
        RunError: it has failed, or was deleted.
        UsageError: the operator does not accept it, or it is not there.
        TimedOutError: `timeout_seconds` are over.
        UnreachableError: the cluster has been away for too long.
    """
    rhythm = rhythm or Rhythm()
    come_back = f"gala status {name} --follow{cluster.options}"
    with Interrupts() as interrupts, Display(console, line_seconds=rhythm.line, live=table) as display:
        watcher = _Watcher(cluster, name, display, rhythm)
        began = time.monotonic()
        while True:
            run = watcher.look()
            now = time.monotonic()
            if run is not None:
                if table:
                    display.show(snapshot(run, datetime.now(UTC)), now=now)
                if run.ended or run.refusal:
                    break
            if timeout_seconds is not None and now - began >= timeout_seconds:
                waited = duration(timeout_seconds)
                raise TimedOutError(
                    f"{name} has not ended within {waited}; it goes on, come back to it with: {come_back}"
                )
            interrupts.wait(rhythm.poll)
            if interrupts.received:
                display.close()
                display.say(f"{name} goes on in the cluster; come back to it with: {come_back}")
                return interrupts.exit_code
        display.close()
    return conclude(run, console, cluster.options)


def conclude(run: Run, console: Console, options: str) -> int:
    """Say how an ended run has ended and what is next, with the cluster's `options`. Returns 0; raises as `watch`."""
    if run.refusal and not run.ended:
        raise UsageError(f"{run.name} is not accepted: {run.refusal}")
    if run.state == "Failed":
        raise RunError(f"{run.name} has failed, {run.failure}; see gala status {run.name}{options}")
    shown = snapshot(run, datetime.now(UTC))
    steps = max(shown.global_steps, int(run.final_model.get("globalSteps") or 0))
    lines = [f"{run.name} has succeeded: {steps:,} decisions in {duration(shown.wall_seconds)}."]
    for mode, key in (("greedy", "meanReturn"), ("sampled", "sampledMeanReturn")):
        if isinstance(run.final_model.get(key), int | float):
            lines.append(f"  {mode + ' policy':<15} mean return {run.final_model[key]:,.1f}")
    lines += [
        "Next:",
        f"  gala fetch {run.name}{options}",
        "      the final model, the metrics and a report, on this machine",
    ]
    for line in lines:
        say(console, line)
    return 0


class _Watcher:
    """Looks at one run and says what has changed since the last time."""

    def __init__(self, cluster: Cluster, name: str, display: Display, rhythm: Rhythm) -> None:
        self._cluster = cluster
        self._name = name
        self._display = display
        self._rhythm = rhythm
        self._uid = ""
        self._said: tuple[str, str] | None = None
        self._failures: dict[int, tuple[int, str]] | None = None
        self._began = self._heard = time.monotonic()
        self._away = self._unseen_said = False

    def look(self) -> Run | None:
        """The run as it is now; None while the cluster does not answer."""
        now = time.monotonic()
        try:
            run = Run.of(self._cluster.get(self._name))
        except UnreachableError as error:
            if not self._uid or now - self._heard >= self._rhythm.unreachable:
                raise
            if not self._away:
                self._display.say(f"{error}; waiting for it, the run does not depend on it")
            self._away = True
            return None
        except NotFoundError as error:
            if self._uid:
                raise RunError(f"{self._name} was deleted while it was watched") from error
            raise
        if self._away:
            self._display.say("the cluster answers again")
        self._away, self._heard = False, now
        if self._uid and run.uid != self._uid:
            raise RunError(f"{self._name} was deleted while it was watched; another run has its name now")
        self._uid = run.uid
        self._tell(run, now)
        return run

    def _tell(self, run: Run, now: float) -> None:
        aspect = (run.state, run.stuck)
        # The end is for `conclude` to tell. A message may hold numbers: it is repeated when the state is another.
        if aspect != self._said and run.status and not run.ended:
            self._display.say(f"{run.state}: {run.message}" if run.message else run.state)
        self._said = aspect
        known = failures(run)
        if self._failures is not None:
            for rank, (count, why) in known.items():
                if count > self._failures.get(rank, (0, ""))[0]:
                    self._display.say(f"learner {rank} has failed" + (f", {why}" if why else ""))
        self._failures = known
        if not run.seen and not self._unseen_said and now - self._began >= self._rhythm.unseen:
            self._unseen_said = True
            self._display.say(NOBODY_LOOKS)
