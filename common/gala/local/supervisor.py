"""Keeps the processes of a run in line with its plan: starts, restarts, lets go, stops.

With GALA no rank is special: a learner that crashes or is given up costs its own share of the work and nothing else.
Where the plan has essential ranks, the others wait for one that crashed, and the run fails when it is given up. The
supervisor knows neither terminal nor signals nor files; the launcher calls `step` a few times a second and reads
`outcome`.

A learner's phases:

    running --exit 0--> finished                      totalSteps is reached; running again when they are raised
       |  '--exit 2--> the run fails with its message
       '--any other exit--> backing off --> running again, or given up when the limit is used up
    running --rank no longer in the plan--> leaving --exit--> forgotten
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from gala.local.restarts import Backoff
from gala.plan import LearnerPlan, RunPlan

EXIT_FINISHED: Final = 0
EXIT_USER_MISTAKE: Final = 2
MAX_LAST_WORDS: Final = 200
"""Characters of a crashed worker's last line that are shown; its log has the rest."""

Outcome = Literal["finished", "failed", "stopped"]
Phase = Literal["running", "backing off", "given up", "finished", "leaving", "stopped"]


class Process(Protocol):
    """What the supervisor asks of a worker's process; see `gala.local.process.WorkerProcess`."""

    @property
    def pid(self) -> int: ...
    def exit_code(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def last_line(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long the supervisor waits for what, in seconds."""

    backoff_base: float = 1.0
    backoff_max: float = 60.0
    healthy: float = 600.0
    """A worker that has run for this long starts with a clean record when it crashes."""
    stop: float = 60.0
    """From SIGTERM to SIGKILL: a checkpoint of a large model has to fit in."""
    leave: float = 30.0
    """For a worker to notice that its rank has left the plan; then SIGTERM. Also to notice larger total steps."""
    stragglers: float = 120.0
    """For the others to notice that the total steps are reached, once one has; then SIGTERM."""


@dataclass(kw_only=True, slots=True)
class Learner:
    """One rank's process and history."""

    plan: LearnerPlan
    backoff: Backoff
    phase: Phase = "running"
    process: Process | None = None
    started: float = 0.0
    retry_at: float = 0.0
    """When `backing off` ends."""
    asked_to_stop: float | None = None
    """When SIGTERM was sent to the present process."""
    leaving_since: float = 0.0
    returns: bool = False
    """A leaving rank that is in the plan again: a new process follows the old one."""
    raised_at: float | None = None
    """When the total steps of the present process were raised last."""
    is_done: bool = False
    """It ended, or is not started again, because the total steps are reached: there is work for it if that changes."""


@dataclass(kw_only=True, slots=True)
class Supervisor:
    """The learners of one run. Times are of `time.monotonic`, handed in, so that tests own the clock."""

    spawn: Callable[[LearnerPlan], Process]
    """Starts a worker."""
    report: Callable[[str], None]
    """Takes one line for the user about each thing that happens."""
    patience: Patience = field(default_factory=Patience)
    learners: dict[int, Learner] = field(default_factory=dict)
    mistake: str | None = None
    """The message of a worker that says the user has to change something."""
    failure: str | None = None
    """Why the run cannot go on, though nobody made a mistake."""
    _backoff_limit: int = 0
    _min_learners: int = 1
    _essential: tuple[int, ...] = ()
    _total_steps: int = 0
    _stopping: bool = False
    _first_finish: float | None = None

    def follow(self, plan: RunPlan, now: float) -> None:
        """Make `plan` the goal: start the ranks that are new, let those go that are no longer in it.

        With larger total steps, and after a stop, no learner counts as finished: those that have ended start again.
        """
        is_raised = plan.spec.total_steps > self._total_steps
        goes_on = is_raised or self._stopping
        if goes_on:
            self._first_finish = None
        self._total_steps = plan.spec.total_steps
        self._backoff_limit = plan.spec.run_policy.backoff_limit
        self._min_learners = plan.spec.run_policy.min_learners
        self._essential = plan.essential
        self._stopping = False
        for entry in plan.learners:
            learner = self.learners.get(entry.rank)
            if learner is None or learner.phase == "stopped" or (learner.is_done and goes_on):
                learner = Learner(plan=entry, backoff=self._new_backoff())
                self.learners[entry.rank] = learner
                self._start(learner, now)
            else:
                learner.plan = entry
                learner.backoff.limit = self._backoff_limit
                learner.returns = learner.phase == "leaving"
                if is_raised:
                    learner.raised_at = now
        for rank in [rank for rank in self.learners if rank not in plan.ranks]:
            learner = self.learners[rank]
            learner.returns = False
            if learner.process is None:
                del self.learners[rank]
            elif learner.phase != "leaving":
                learner.phase = "leaving"
                learner.leaving_since = now

    def step(self, now: float) -> None:
        """Take in exits, start what is due, press those that are late."""
        for learner in list(self.learners.values()):
            if learner.process is not None:
                code = learner.process.exit_code()
                if code is not None:
                    self._ended(learner, learner.process, code, now)
                else:
                    self._press(learner, now)
            elif learner.phase == "backing off" and now >= learner.retry_at:
                self._start(learner, now)
        self._mind_the_least(now)

    def stop(self, now: float) -> None:
        """Ask every worker to write its checkpoint and go; nothing is started any more."""
        self._stopping = True
        for learner in self.learners.values():
            if learner.process is not None:
                self._ask_to_stop(learner, now)
            elif learner.phase == "backing off":
                learner.phase = "stopped"

    def kill(self) -> None:
        """End every worker at once."""
        self._stopping = True
        for learner in self.learners.values():
            if learner.process is not None:
                learner.process.kill()

    @property
    def pids(self) -> list[int]:
        """Of the workers that run."""
        return [learner.process.pid for learner in self.learners.values() if learner.process is not None]

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while anything runs or waits for its restart."""
        if any(learner.process is not None or learner.phase == "backing off" for learner in self.learners.values()):
            return None
        if self.mistake is not None or self.failure is not None:
            return "failed"
        if self._stopping:
            return "stopped"
        return "finished" if self._first_finish is not None else "failed"

    def _new_backoff(self) -> Backoff:
        return Backoff(
            limit=self._backoff_limit,
            base_seconds=self.patience.backoff_base,
            max_seconds=self.patience.backoff_max,
            healthy_seconds=self.patience.healthy,
        )

    def _start(self, learner: Learner, now: float) -> None:
        learner.process = self.spawn(learner.plan)
        learner.phase = "running"
        learner.started = now
        learner.asked_to_stop = None
        learner.returns = False
        learner.raised_at = None

    def _ended(self, learner: Learner, process: Process, code: int, now: float) -> None:
        learner.process = None
        rank = learner.plan.rank
        if code == EXIT_USER_MISTAKE and self.mistake is None:
            self.mistake = process.last_line() or f"learner {rank} says that it cannot run, without saying why"
            learner.phase = "given up"
            self.stop(now)
        elif learner.phase == "leaving":
            if learner.returns and not self._stopping:
                self._start(learner, now)
            else:
                del self.learners[rank]
                self.report(f"learner {rank} has left the ring")
        elif self._stopping:
            learner.phase = "stopped"
        elif self._ended_too_early(learner, code, now):
            self._start(learner, now)
        elif code == EXIT_FINISHED:
            learner.phase, learner.is_done = "finished", True
            if self._first_finish is None:
                self._first_finish = now
                for other in self.learners.values():
                    if other.phase == "backing off":
                        other.phase, other.is_done = "given up", True
        elif self._first_finish is not None:
            learner.phase = "finished" if learner.asked_to_stop is not None else "given up"
            learner.is_done = True
        else:
            self._crashed(learner, process, code, now)

    def _ended_too_early(self, learner: Learner, code: int, now: float) -> bool:
        """Whether it may have ended because of total steps that have been raised since.

        By itself, before it can have noticed; or because it was asked to, as one that went on too long. If it did have
        enough for the new total, its next life ends at once.
        """
        if learner.raised_at is None:
            return False
        if learner.asked_to_stop is not None:
            return learner.asked_to_stop <= learner.raised_at
        return code == EXIT_FINISHED and now - learner.raised_at < self.patience.leave

    def _crashed(self, learner: Learner, process: Process, code: int, now: float) -> None:
        rank, backoff = learner.plan.rank, learner.backoff
        how = f"was killed by signal {-code}" if code < 0 else f"crashed with exit code {code}"
        last_words = process.last_line() if code > 0 else ""
        why = f" ({last_words[:MAX_LAST_WORDS]})" if last_words else ""
        delay = backoff.crashed(now - learner.started)
        if delay is not None:
            learner.phase = "backing off"
            learner.retry_at = now + delay
            rest = "; the others wait for it" if rank in self._essential and len(self.learners) > 1 else ""
            self.report(
                f"learner {rank} {how}{why}; restart {backoff.restarts} of {backoff.limit} in {delay:.3g} s{rest}"
            )
            return
        learner.phase = "given up"
        given_up = f"learner {rank} {how}{why} and is given up after {backoff.limit} restarts"
        survivors = sum(other.phase in ("running", "backing off") for other in self.learners.values())
        if rank in self._essential and survivors:
            self.failure = f"{given_up}; the others cannot go on without it"
            self.report(self.failure)
            self.stop(now)
        else:
            self.report(f"{given_up}; {f'{survivors} go on' if survivors else 'none is left'}")

    def _mind_the_least(self, now: float) -> None:
        """The run fails once too few learners are left; with none there is nothing to stop."""
        ranks = [learner for learner in self.learners.values() if learner.phase != "leaving"]
        left = sum(learner.phase != "given up" for learner in ranks)
        if self._stopping or self._first_finish is not None or not 0 < left < self._min_learners:
            return
        self.failure = (
            f"{left} of {len(ranks)} learners are left, fewer than spec.runPolicy.minLearners {self._min_learners}"
        )
        self.report(self.failure)
        self.stop(now)

    def _press(self, learner: Learner, now: float) -> None:
        if learner.asked_to_stop is not None:
            if now - learner.asked_to_stop >= self.patience.stop and learner.process is not None:
                self.report(f"learner {learner.plan.rank} did not stop within {self.patience.stop:.3g} s and is killed")
                learner.process.kill()
                learner.asked_to_stop = now
        elif learner.phase == "leaving":
            if now - learner.leaving_since >= self.patience.leave:
                self._ask_to_stop(learner, now)
        elif self._first_finish is not None and now - self._first_finish >= self.patience.stragglers:
            self.report(f"learner {learner.plan.rank} goes on though the total steps are reached, and is stopped")
            self._ask_to_stop(learner, now)

    def _ask_to_stop(self, learner: Learner, now: float) -> None:
        if learner.process is not None and learner.asked_to_stop is None:
            learner.process.terminate()
            learner.asked_to_stop = now
