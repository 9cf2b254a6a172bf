"""The main path of a worker, to be read from top to bottom.

    find a start -> one step of the algorithm after another -> checkpoint, final model

What a step is, `algorithms` says: for GALA one rollout, one update, one exchange of parameters with the neighbours.

A worker that has finished may have to hold: where its folder is its own, others fetch the result from it by HTTP.

`__main__` makes a `Worker` and calls `run`. All of this happens on the learner thread; the network and HTTP live on an
asyncio thread of their own (`gossip.loop_thread`), evaluations on a third (`evaluation`). What is kept of all this,
and when, is the `Keeper`'s.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gala import names
from gala.errors import CheckpointError
from gala.plan import RunPlan
from gala_worker import checkpoint, files
from gala_worker.algorithms.algorithm import Setup
from gala_worker.algorithms.factory import make_algorithm
from gala_worker.config import WorkerConfig
from gala_worker.device import choose_compute_type, choose_device, choose_threads, prepare
from gala_worker.downloads import Downloads
from gala_worker.environments import is_atari, make_simulators
from gala_worker.flat import FlatState
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.health import Heartbeat
from gala_worker.http import StatusServer
from gala_worker.keeper import Keeper
from gala_worker.metrics import MetricsWriter
from gala_worker.model import make_policy
from gala_worker.model.network import Nature32
from gala_worker.plan_file import PlanFile
from gala_worker.rollout import Collector
from gala_worker.skipped import SkippedUpdates
from gala_worker.state import ACTION_GENERATOR, Counters, capture, restore_furthest
from gala_worker.telemetry import Telemetry

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""How often a worker looks at the plan file and changes what /status says."""
RECORD_SECONDS = 5.0
"""How often a record goes to metrics.jsonl."""
JOIN_SECONDS = 10.0
"""How long a starting worker waits for a neighbour's state. Where nobody listens the answer comes at once."""
HUNG_SECONDS = 300.0
"""Without an update for so long, a learner counts as hung and /healthz says so."""
HOLD_POLL_SECONDS = 0.2
"""How often a worker that holds looks whether it is to stop: a signal handler can do no more than set a variable."""
MEASURE_EVERY_UPDATES = 20
"""How often the length of an update is measured: it costs a pass over the parameters."""


class Worker:
    """One rank of a run, from its start to its farewell."""

    def __init__(self, config: WorkerConfig) -> None:
        """Reads the plan, chooses the device and builds policy and optimiser; touches neither network nor simulators.

        Raises:
            UsageError: the plan cannot be read, or the output folder not be written to.
            RunError: the plan has no such rank.
            GalaError: the plan asks for what cannot be built.
        """
        self._config = config
        self._plan_file = PlanFile(config.plan_file, config.rank)
        self._needs_float32 = False
        """Whether messages are float32, whatever the spec says."""
        self._adopt(self._plan_file.plan)
        self._me = self._plan.learner(config.rank)
        self._keeper: Keeper | None = None
        """None where the parameters belong to another rank."""
        files.make_directory(config.learner_dir)
        self._own: checkpoint.Checkpoint | None = None
        """This rank's checkpoint, until it is known whose state it starts with."""
        self._stopping = False
        self._left = False
        self._released = threading.Event()
        self._counters = Counters(epoch=self._plan.epoch)
        self._generator = torch.Generator()
        """What actions are drawn with, where this rank acts."""
        self._generator_state: Tensor | None = None
        self._wall_before = 0.0
        self._training_since: float | None = None
        self._next_record = 0.0
        self._device = choose_device(config.rank, self._spec.worker.gpus)
        prepare(self._device)

    def stop(self) -> None:
        """Ends the work after the current update, with checkpoint and farewell. Signal handlers may call it."""
        self._stopping = True

    def run(self) -> bool:
        """Trains until the run has its steps, this rank is no longer in the plan, or `stop`.

        Returns: True when there is nothing more to do for this rank, False when it was stopped.
        """
        with ExitStack() as services:
            with ExitStack() as training:
                self._build(services)
                self._serve(services)
                self._listen(training)
                self._find_start()
                if self._stopping:  # before it has begun: there is nothing to save
                    return False
                self._begin(training)
                self._train()
                self._finish()
            if self._reached and not self._left:
                self._hold()
            return self._reached or self._left

    def _build(self, services: ExitStack) -> None:
        """Simulators to act in, the policy as one vector, and this rank's part in the algorithm."""
        spec, threads = self._spec, self._config.threads
        self._simulators = make_simulators(spec.environment, spec.environment.simulators, threads=threads)
        policy = make_policy(
            self._simulators.observation_space, self._simulators.action_space, spec.policy, seed=self._plan.seed
        )
        self._policy = policy.to(self._device)
        self._flat = FlatState(self._policy, self._policy.gossiped_buffers())
        if self._policy.normalisation is not None and spec.gossip.precision != "float32":
            log.info(
                "messages are float32: what is known of the observations does not survive %s", spec.gossip.precision
            )
            self._needs_float32 = True
            self._adopt(self._plan)
        convolutional = isinstance(self._policy.trunk, Nature32)
        torch.set_num_threads(choose_threads(threads, convolutional=convolutional))
        self._compute_type = choose_compute_type(spec.precision, convolutional=convolutional, device=self._device)
        self._loop = LoopThread()
        services.callback(self._loop.stop)
        self._algorithm = make_algorithm(
            Setup(
                plan=self._plan,
                me=self._me,
                incarnation=self._config.incarnation,
                policy=self._policy,
                flat=self._flat,
                observation_space=self._simulators.observation_space,
                device=self._device,
                compute_type=self._compute_type,
                loop=self._loop,
                learner_dir=self._config.learner_dir,
                stopping=lambda: self._stopping,
            )
        )
        if not self._algorithm.acts:
            self._simulators.close()  # they have told what they look like

    def _serve(self, services: ExitStack) -> None:
        """Metrics and HTTP: from here on launchers are answered."""
        config, plan = self._config, self._plan
        self._telemetry = Telemetry(
            run=plan.run_name,
            uid=plan.run_uid,
            rank=config.rank,
            incarnation=config.incarnation,
            total_steps=self._spec.total_steps,
        )
        # A learner that waits for its neighbours, as its staleness bound tells it to, is no learner that hangs.
        self._heartbeat = Heartbeat(HUNG_SECONDS + self._spec.gossip.peer_timeout_seconds)
        self._metrics = MetricsWriter(
            config.learner_dir,
            run=plan.run_name,
            rank=config.rank,
            incarnation=config.incarnation,
            wall_seconds=self._wall_seconds,
        )
        services.callback(self._metrics.close)
        self._skipped = SkippedUpdates(
            self._spec.environment.id, self._me, self._metrics, is_keeper=config.rank in plan.keepers
        )
        self._server = StatusServer(
            self._me.address.http,
            status=self._status,
            exposition=self._metrics.exposition,
            heartbeat=self._heartbeat,
        )
        self._loop.run(self._server.start())
        services.callback(lambda: self._loop.run(self._server.stop(), timeout_seconds=5.0))
        if config.rank in plan.keepers:
            self._keeper = Keeper(
                plan,
                config.rank,
                config.learner_dir,
                flat=self._flat,
                algorithm=self._algorithm,
                metrics=self._metrics,
                telemetry=self._telemetry,
            )

    def _listen(self, training: ExitStack) -> None:
        """From here on the other ranks are answered."""
        self._own = self._keeper.latest() if self._keeper else None
        self._algorithm.open(resumes=self._own is not None)
        training.callback(self._algorithm.close)

    def _find_start(self) -> None:
        """The neighbours' state if it is ahead of this learner's own checkpoint; else that; else the seed.

        A learner that was away has an old checkpoint, and mixing it in would pull its neighbours back. After a stop of
        the whole run nobody is ahead of anybody, and every learner takes its own.
        """
        own, self._own = self._own, None
        states = (own, self._fetch())
        start = restore_furthest(states, self._config.rank, self._flat, self._algorithm.optimizer_state)
        event = "seeded"
        if start is not None:
            found, self._counters = start
            self._counters.epoch = self._plan.epoch
            self._wall_before = self._counters.wall_seconds
            if found is own:
                event, self._generator_state = "resumed", found.tensors.get(ACTION_GENERATOR)
            else:
                event = "joined"
        steps, own_steps = self._counters.global_steps, self._counters.steps
        self._metrics.event(event, globalSteps=steps, steps=own_steps, device=str(self._device))
        log.info("%s at %s global steps, %s of its own", event, f"{steps:,}", f"{own_steps:,}")

    def _fetch(self) -> checkpoint.Checkpoint | None:
        """The state of a live neighbour; None if nobody answers."""
        content = self._algorithm.fetch_state(JOIN_SECONDS)
        if content is None:
            return None
        try:
            return checkpoint.loads(content, self._flat.schema.hash)
        except CheckpointError as error:
            log.warning("a neighbour's state is not usable: %s", error)
            return None

    def _begin(self, training: ExitStack) -> None:
        """Starts the simulators, and joins the others."""
        self._collector = self._make_collector(training) if self._algorithm.acts else None
        if self._keeper:
            training.callback(self._keeper.close)
        self._training_since = time.monotonic()
        self._algorithm.begin(self._collector, self._counters)
        self._telemetry.publish(self._counters, self._algorithm.stats())
        self._telemetry.state = "training"
        precision = str(self._compute_type).removeprefix("torch.")
        self._metrics.event("started", epoch=self._plan.epoch, role=self._me.role, precision=precision)

    def _make_collector(self, training: ExitStack) -> Collector:
        spec = self._spec
        clip = spec.hyperparameters.reward_clipping
        # Who keeps no state cannot tell its first life from a later one by its counters.
        life = self._counters.updates if self._keeper else self._config.incarnation
        training.callback(self._simulators.close)
        collector = Collector(
            self._simulators,
            self._policy,
            rollout_length=spec.hyperparameters.rollout_length,
            clip_rewards=is_atari(spec.environment.id) if clip is None else clip,
            compute_type=self._compute_type,
            device=self._device,
            # A later life starts other games than the one before, within this rank's own range of seeds.
            seed=self._me.seed + life % (names.MAX_SIMULATORS - self._simulators.num_simulators + 1),
            record=self._algorithm.records,
            observe=self._algorithm.observes,
        )
        self._generator = collector.generator
        if self._generator_state is not None:
            self._resume_generator(self._generator_state)
        return collector

    def _resume_generator(self, state: Tensor) -> None:
        """Goes on drawing actions where the checkpoint has it, if that was on a device of this kind."""
        now = self._generator.get_state()
        if (state.dtype, state.shape) != (now.dtype, now.shape):
            log.info("the checkpoint is of another kind of device than %s: actions are drawn anew", self._device.type)
            return
        try:
            self._generator.set_state(state)
        except RuntimeError as error:
            log.warning("the checkpoint's state of the action generator is none: %s; actions are drawn anew", error)

    def _train(self) -> None:
        """Until the run has its steps, this rank is no longer in the plan, or somebody says stop."""
        counters, algorithm = self._counters, self._algorithm
        next_tick = 0.0
        if self._keeper:
            self._keeper.follow(self._plan, counters)
        while not (self._stopping or self._left or self._reached):
            update = algorithm.step(counters, measure=counters.updates % MEASURE_EVERY_UPDATES == 0)
            self._skipped.note(update, self._collector, counters)
            self._telemetry.note_update(update, self._collector.pop_episodes() if self._collector else (), counters)
            algorithm.answer_joiners(self._state_for_joiner)
            counters.wall_seconds = self._wall_seconds()
            if self._keeper:
                self._keeper.attend(counters, self._generator)
            self._heartbeat.beat()
            if (now := time.monotonic()) >= next_tick:
                next_tick = now + TICK_SECONDS
                self._follow_plan()
                self._tick(now)

    @property
    def _reached(self) -> bool:
        """Whether the run has its steps."""
        return self._algorithm.has_reached(self._counters)

    def _finish(self) -> None:
        """Checkpoint and final model."""
        reached = self._reached
        self._telemetry.state = "finished" if reached else "stopping"
        with self._heartbeat.paused("saving", seconds=60.0):
            if self._keeper:
                self._keeper.save(self._counters, self._generator)
                if reached:
                    self._keeper.export(self._counters)
            self._tick(math.inf)
            self._metrics.event("finished" if reached else "stopped", globalSteps=self._counters.global_steps)
        self._algorithm.saved()

    def _hold(self) -> None:
        """Serves the result until it is released, told to stop, or forgotten. The neighbours have had a farewell.

        Forgotten is a worker whose /status nobody has asked for, for as long as it was told to hold: whoever still
        means to fetch the result may take days until there is room to do it, though not for ever.
        """
        seconds = self._config.hold_seconds
        if seconds == 0 or self._stopping:
            return
        self._metrics.close()  # what is served does not change any more
        self._server.hold(Downloads(self._config.learner_dir), self._released.set)
        log.info("finished; holding the result until nobody has asked for %s s", f"{seconds:,}")
        while not self._stopping and not self._released.is_set() and not self._server.is_forgotten(seconds):
            with self._heartbeat.paused("holding", seconds=HOLD_POLL_SECONDS):
                self._released.wait(HOLD_POLL_SECONDS)
        log.info("released" if self._released.is_set() else "holding no longer")

    def _tick(self, now: float) -> None:
        """What is due about once a second: what the algorithm noticed, /status and, less often, a record."""
        for event in self._algorithm.events():
            self._metrics.event(**event)
        stats = self._algorithm.stats()
        self._telemetry.publish(self._counters, stats)
        if now >= self._next_record:
            self._next_record = now + RECORD_SECONDS
            self._metrics.train(self._telemetry.record(self._counters, stats, self._flat.trainable))

    def _follow_plan(self) -> None:
        """A changed epoch in the plan file is a changed ring, and perhaps another end of the run."""
        plan = self._plan_file.follow()
        if plan is None:
            return
        plan = self._adopt(plan)
        self._counters.epoch = plan.epoch
        self._telemetry.total_steps = plan.spec.total_steps
        if self._keeper:
            self._keeper.follow(plan, self._counters)
        self._left = self._config.rank not in plan.ranks
        if not self._left:
            self._algorithm.set_plan(plan)
        details = {"learners": len(plan.ranks), "left": self._left, "totalSteps": plan.spec.total_steps}
        self._metrics.event("ring", epoch=plan.epoch, **details)

    def _adopt(self, plan: RunPlan) -> RunPlan:
        """The plan as this rank follows it."""
        # bfloat16 has 8 significant bits: of observations around 5,000 with deviation 1 the mean would be noise.
        self._plan = plan.with_gossip_precision("float32") if self._needs_float32 else plan
        self._spec = self._plan.spec
        return self._plan

    def _state_for_joiner(self) -> bytes:
        return checkpoint.dumps(capture(self._flat, self._algorithm.optimizer_state, self._counters))

    def _status(self) -> dict[str, Any]:
        """The answer to /status; on the asyncio thread."""
        status = self._telemetry.status()
        if status["state"] == "training" and self._algorithm.is_waiting:
            status["state"] = "waiting"
        return status

    def _wall_seconds(self) -> float:
        """In training since the run's first start; counted on after a restart, without the time in between."""
        if self._training_since is None:
            return self._wall_before
        return self._wall_before + time.monotonic() - self._training_since
