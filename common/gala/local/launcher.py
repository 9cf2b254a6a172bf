"""The local launcher: a run's plan as subprocesses of this machine, watched until its end.

`start` is the whole of `gala run`. It takes the run directory's lock, or hands a changed document to the launcher that
holds it; then `Launcher` writes the plan, lets `supervisor` keep the workers, `polling` ask them and `console` show
them, follows changes of galarun.yaml, and obeys signals. Everything but the questions to /status (`polling`) happens on
one thread, a few times a second.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from gala import names
from gala.cores import available_cores, threads_per_learner
from gala.errors import RunError, UsageError, reading
from gala.local import ending, observing
from gala.local.admission import Admission, admit, amend
from gala.local.changes import describe
from gala.local.console import Display, lasting_console, say
from gala.local.energy import EnergyMeter
from gala.local.interrupts import Interrupts
from gala.local.live_document import LiveDocument
from gala.local.polling import StatusPoller
from gala.local.ports import PortReservation
from gala.local.process import WorkerProcess
from gala.local.rundir import RunDirectory, State
from gala.local.supervisor import Outcome, Patience, Supervisor
from gala.plan import LearnerPlan, plan
from gala.spec import GalaRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Commands:
    """The programs that the launcher starts. `-P`: the working directory never shadows a module."""

    worker: tuple[str, ...] = (sys.executable, "-P", "-m", "gala_worker")
    finalize: tuple[str, ...] = (sys.executable, "-P", "-m", "gala_worker.finalize")
    """Gets the run directory as its argument."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rhythm:
    """How often the launcher does what, in seconds."""

    tick: float = 0.1
    """Between two looks at processes and files."""
    poll: float = 1.0
    """Between two questions to a worker, and two drawings of the table."""
    record: float = 10.0
    """Between two writes of run.json, and of energy.jsonl: what a killed launcher loses of its counts."""
    line: float = 10.0
    """Between two plain progress lines."""


def start(
    run: GalaRun,
    *,
    output: Path = Path(names.RUNS_DIRECTORY),
    force: bool = False,
    source: Path | None = None,
    asked: tuple[str, ...] = (),
    console: Console | None = None,
    commands: Commands | None = None,
    patience: Patience | None = None,
    rhythm: Rhythm | None = None,
) -> int:
    """Run to the end, or hand the changes to the launcher that is already running it. Returns the exit code.

    Args:
        run: what to run.
        output: the folder of run directories.
        force: remove an earlier run of this name.
        source: the document's file, as the user named it, for the hints at the end; None where that is not all.
        asked: the fields that the user has set on the command line.

    Raises:
        UsageError: the name is taken, or a worker says that the user has to change something.
        RunError: the run did not reach its total steps.
    """
    console, patience = console or lasting_console(), patience or Patience()
    directory = RunDirectory(output / run.metadata.name)
    with reading(directory.path):
        if directory.is_foreign():
            raise UsageError(f"{directory.path} exists and is not a run directory; use another --name or --output")
    if not directory.acquire():
        say(console, amend(directory, run, force=force, asked=asked))
        return 0
    try:
        if run.spec.run_policy.suspend:
            raise UsageError(
                "spec.runPolicy.suspend: is true, so there is nothing to start; add --set spec.runPolicy.suspend=false"
            )
        launcher = Launcher(
            run=run,
            directory=directory,
            admission=admit(directory, run, force=force, grace_seconds=patience.leave),
            console=console,
            source=source,
            commands=commands or Commands(),
            patience=patience,
            rhythm=rhythm or Rhythm(),
        )
        return launcher.run_to_end()
    except OSError as error:
        raise RunError(_cannot_go_on(error)) from error
    finally:
        directory.release()


@dataclass(kw_only=True)
class Launcher:
    """One session of one run, from admission to its end. `run_to_end` once."""

    run: GalaRun
    directory: RunDirectory
    admission: Admission
    console: Console
    source: Path | None
    commands: Commands
    patience: Patience
    rhythm: Rhythm
    _ports: PortReservation = field(default_factory=PortReservation)
    _poller: StatusPoller = field(default_factory=StatusPoller)
    _interrupts: Interrupts = field(default_factory=Interrupts)
    _note: str = ""
    _failure: str = ""
    _global_steps: int = 0
    _incarnation: int = 0
    _parked: bool = False
    """Suspended, or on the way to it."""
    _gave_way: bool = False
    """The folder is the earlier run's again: nothing more is written there."""

    def __post_init__(self) -> None:
        self._record = self.admission.record
        self._record.is_ending = False
        self._epoch = self.admission.epoch
        self._cores = available_cores()
        self._display = Display(self.console, line_seconds=self.rhythm.line)
        self._document = LiveDocument(self.directory, self._display.say)
        self._supervisor = Supervisor(spawn=self._spawn, report=self._display.say, patience=self.patience)
        self._counted_until = time.monotonic()
        self._next_poll = self._next_record = self._next_energy = float("-inf")
        self._energy = EnergyMeter(
            file=self.directory.path / names.ENERGY_FILE,
            gpus=self.run.spec.worker.gpus > 0,
            wall_seconds=self._record.wall_seconds,
        )

    def run_to_end(self) -> int:
        """Start the workers and stay until they have ended. Returns the exit code; raises as `start` does."""
        try:
            with self._interrupts, self._display:
                try:
                    self._greet()
                    self._write_record("running")
                    self._document.write(self.run)
                    self._follow_plan()
                    return self._end(self._watch())
                except OSError as error:
                    self._wind_up()
                    raise RunError(_cannot_go_on(error) + self._give_way()) from error
                except BaseException:
                    self._wind_up()
                    raise
        finally:
            self._poller.close()
            self._ports.close()

    def _wind_up(self) -> None:
        """No worker may outlive its launcher, whatever went wrong here; each has the time to write its checkpoint."""
        try:
            until = time.monotonic() + self.patience.stop
            self._supervisor.stop(time.monotonic())
            while self._supervisor.pids and time.monotonic() < until and not self._interrupts.insistent:
                self._interrupts.wait(self.rhythm.tick)
                self._supervisor.step(time.monotonic())
        finally:
            self._supervisor.kill()
            self._write_record(self._record.state if self._record.state in ("stopped", "finished") else "failed")

    def _watch(self) -> Outcome:
        while True:
            self._interrupts.wait(self.rhythm.tick)
            now = time.monotonic()
            self._count_wall_clock(now)
            self._obey_signals(now)
            if not self._is_stopping:
                self._follow_document(now)
                self._mind_deadline(now)
            self._supervisor.step(now)
            outcome = self._supervisor.outcome
            self._observe(now, always=outcome is not None)
            if now >= self._next_energy or outcome is not None:
                self._next_energy = now + self.rhythm.record
                self._energy.record(self._record.wall_seconds, counts=not self._parked)
            known = (self._supervisor.pids, self._is_stopping)
            if now >= self._next_record or known != (self._record.worker_pids, self._record.is_stopping):
                self._write_record(self._record.state)
            if outcome is not None and not (self._parked and self._stay_parked()):
                return outcome

    @property
    def _is_stopping(self) -> bool:
        """Whether the session ends whatever the document says from now on."""
        supervisor = self._supervisor
        return bool(self._interrupts.received or self._failure or supervisor.mistake or supervisor.failure)

    def _obey_signals(self, now: float) -> None:
        if self._interrupts.insistent:
            self._supervisor.kill()
        elif self._interrupts.received and not self._note.startswith("stopping"):
            self._note = "stopping: the workers write their checkpoints; a second Ctrl-C kills them"
            self._display.say(self._note)
            self._supervisor.stop(now)

    def _follow_document(self, now: float) -> None:
        run = self._document.news(self.run)
        if run is None:
            return
        self.run = run
        if run.spec.run_policy.suspend:
            self._parked = True
            self._note = "suspended; set spec.runPolicy.suspend to false to go on"
            self._supervisor.stop(now)
            self._write_record("suspended")
        elif not self._parked:
            self._follow_plan()

    def _stay_parked(self) -> bool:
        """All workers are gone because of `suspend`: wait, or go on if it was lifted. False when it is all over."""
        if self._is_stopping:
            return False
        if not self.run.spec.run_policy.suspend:
            self._parked = False
            self._note = ""
            self._write_record("running")
            self._follow_plan()
        return True

    def _mind_deadline(self, now: float) -> None:
        deadline = self.run.spec.run_policy.active_deadline_seconds
        if deadline is not None and self._record.wall_seconds >= deadline:
            self._failure = (
                f"spec.runPolicy.activeDeadlineSeconds: the run has used up its {deadline:,} s; raise it to resume"
            )
            self._note = "stopping: the deadline has passed"
            self._supervisor.stop(now)

    def _follow_plan(self) -> None:
        new_plan = plan(self.run, epoch=self._epoch, uid=self._record.uid, address=self._ports.address)
        self._epoch += 1
        # First the file, then the workers: a worker reads it as it starts.
        self.directory.write_plan(new_plan)
        self._supervisor.follow(new_plan, time.monotonic())
        self._write_record("running")

    def _spawn(self, learner: LearnerPlan) -> WorkerProcess:
        # Past every earlier start of this rank, also of earlier sessions, as long as the clock does not run backwards.
        self._incarnation = max(self._incarnation + 1, time.time_ns() // 1_000_000)
        threads = str(threads_per_learner(self.run.spec.learners, self._cores))
        environment = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),  # read by torch as it is imported
            names.ENV_RANK: str(learner.rank),
            names.ENV_PLAN_FILE: str(self.directory.plan_file),
            names.ENV_OUTPUT_DIR: str(self.directory.path),
            names.ENV_THREADS: threads,
            names.ENV_INCARNATION: str(self._incarnation),
        }
        return WorkerProcess(self.commands.worker, environment, self.directory.learner(learner.rank) / names.LOG_FILE)

    def _observe(self, now: float, *, always: bool = False) -> None:
        if now < self._next_poll and not always:
            return
        self._next_poll = now + self.rhythm.poll
        learners = self._supervisor.learners.values()
        self._poller.poll(learner.plan for learner in learners if learner.process is not None)
        snapshot = observing.snapshot(
            self.run,
            list(learners),
            self._poller.answers,
            self._global_steps,
            self._record.wall_seconds,
            self._note,
            now,
        )
        self._global_steps = snapshot.global_steps
        if any(row.state == "training" for row in snapshot.learners):
            self.directory.forget()
        self._display.show(snapshot, now=now)

    def _count_wall_clock(self, now: float) -> None:
        if self._supervisor.pids:
            self._record.wall_seconds += now - self._counted_until
        self._counted_until = now

    def _write_record(self, state: State) -> None:
        if self._gave_way:
            return
        self._record.state = state
        self._record.updated_time = time.time()
        self._record.launcher_pid = os.getpid()
        self._record.worker_pids = self._supervisor.pids
        self._record.is_stopping = self._is_stopping
        self._record.energy = self._energy.facts()
        self._next_record = time.monotonic() + self.rhythm.record
        try:
            self.directory.write_record(self._record)
        except OSError as error:
            # A full disk must not end a training that is otherwise well; the next attempt is a few seconds away.
            self._display.say(f"{names.RUN_FILE} cannot be written: {error.strerror}")

    def _greet(self) -> None:
        spec = self.run.spec
        verb = "resumes" if self.admission.resumed else "starts"
        self._display.say(
            f"{self.run.metadata.name} {verb}: {spec.algorithm} on {spec.environment.id}, {spec.learners} learners x "
            f"{spec.environment.simulators} simulators on {self._cores} cores, {spec.total_steps:,} decisions in all; "
            f"everything goes to {ending.shown(self.directory.path)}"
        )
        if self.admission.changes:
            self._display.say("changed: " + describe(self.admission.changes))

    def _end(self, outcome: Outcome) -> int:
        name = self.run.metadata.name
        if self._supervisor.mistake is not None:
            self._write_record("failed")
            raise UsageError(self._supervisor.mistake.removeprefix("error: ") + self._give_way())
        if outcome == "finished":
            return self._finish()
        if outcome == "stopped" and not self._failure:
            return self._stopped()
        self._write_record("failed")
        failure, rest = self._failure or self._supervisor.failure, self._give_way()
        if not failure and not rest:
            log = ending.shown(self.directory.learner(0) / names.LOG_FILE)
            rest = f"; the first one's log is {log}; the same command resumes the run"
        raise RunError((failure or f"no learner of {name} is left") + rest)

    def _stopped(self) -> int:
        self._write_record("stopped")
        total = self.run.spec.total_steps
        how = "killed" if self._interrupts.insistent else "stopped"
        rest = self._give_way() or "; the same command resumes"
        self._display.say(f"{how} at {self._global_steps:,} of {total:,} decisions{rest}")
        return self._interrupts.exit_code

    def _give_way(self) -> str:
        """After --force, an end before anything was learned leaves the earlier run in its place. Says so if it does."""
        self._gave_way = self.directory.bring_back()
        return "; the run that was to be replaced is back in its place" if self._gave_way else ""

    def _finish(self) -> int:
        self._global_steps = max(self._global_steps, self.run.spec.total_steps)
        self._note = "the learners have finished; averaging and evaluating the final model"
        self._display.say(self._note)
        self._record.is_ending = True
        self._write_record("running")
        self.directory.forget()
        environment = {names.ENV_THREADS: str(self._cores), names.ENV_OUTPUT_DIR: str(self.directory.path)}
        completed = ending.finalize(
            self.directory,
            self.commands.finalize,
            environment,
            self._interrupts,
            waiting=lambda: self._observe(time.monotonic()),
        )
        if not completed:
            return self._stopped()
        self._note = ""
        self._observe(time.monotonic(), always=True)
        missed = ending.missed_score(self.directory, self.run.spec.evaluation.min_return)
        self._write_record("failed" if missed else "finished")
        report = ending.write_report(self.directory)
        self._display.close()
        for line in ending.summary(self.directory, self.run, self.source, self._record.wall_seconds, report):
            say(self.console, line)
        if missed:
            raise RunError(missed)
        return 0


def _cannot_go_on(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"the launcher cannot go on: {where}{error.strerror}"
