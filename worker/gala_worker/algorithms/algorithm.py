"""The seam between a worker and what it runs: one rank's part in an algorithm.

Place in the flow: `worker` starts, watches and saves; it knows nothing of gossip, gradients or rollouts on the wire. It
asks `make_algorithm` for the part that its plan gives it, and from then on calls `step`. What differs between
algorithms is in the subclasses: who holds the parameters, what crosses the wire, what one update is.

    open -> fetch_state -> (the worker restores a state) -> begin -> step, step, step ... -> close
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import gymnasium
import torch
from torch import Tensor

from gala.plan import LearnerPlan, RunPlan
from gala_worker.algorithms.a2c import Update
from gala_worker.flat import FlatState
from gala_worker.gossip.loop_thread import LoopThread
from gala_worker.gossip.stats import GossipStats
from gala_worker.model import ActorCritic
from gala_worker.rollout import Collector
from gala_worker.state import Counters

WAIT_SECONDS: Final = 1.0
"""How long a `step` that has nothing to do may wait before it answers None: the worker has other duties too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a worker has prepared for its algorithm."""

    plan: RunPlan
    me: LearnerPlan
    incarnation: int
    policy: ActorCritic
    flat: FlatState
    """The parameters of `policy`, as vectors."""
    observation_space: gymnasium.Space[Any]
    """Of one simulator: what `policy` sees."""
    device: torch.device
    compute_type: torch.dtype
    """float32 or bfloat16: what the networks' trunks compute in."""
    loop: LoopThread
    """All network of a worker lives on it."""
    learner_dir: Path
    stopping: Callable[[], bool]
    """Whether somebody has said stop; whatever waits asks it."""


class Algorithm(ABC):
    """One rank's part. Belongs to the learner thread, but for `is_waiting`, which any thread may ask."""

    acts: ClassVar[bool] = True
    """Whether this rank has simulators."""
    observes: ClassVar[bool] = True
    """Whether acting changes the observation statistics; False where they come with the parameters of others."""

    def __init__(self, setup: Setup) -> None:
        """Builds what needs neither network nor simulators."""
        self.setup = setup
        self.plan = setup.plan

    @property
    def records(self) -> bool:
        """Whether rollouts are to keep their observations: `Collector(record=True)`."""
        return False

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for others, as the algorithm tells it to."""
        return False

    def has_reached(self, counters: Counters) -> bool:
        """Whether the run has its steps, as far as this rank can tell."""
        return counters.global_steps >= self.plan.spec.total_steps

    @property
    def optimizer_state(self) -> Mapping[str, Tensor]:
        """Tensors beside the parameters that a checkpoint keeps, by name; they are changed in place."""
        return {}

    @abstractmethod
    def open(self, *, resumes: bool = False) -> None:
        """From here on the others are answered. `resumes`: this rank has a checkpoint to go on from.

        Raises: GalaError when the address cannot be had.
        """

    def fetch_state(self, seconds: float) -> bytes | None:
        """The state of somebody who is further, as `checkpoint.dumps` gives it; None if nobody answers in time."""
        return None

    @abstractmethod
    def begin(self, collector: Collector | None, counters: Counters) -> None:
        """Joins the others, standing where `counters` say; `collector` is there where the rank acts."""

    @abstractmethod
    def step(self, counters: Counters, *, measure: bool) -> Update | None:
        """One update of the parameters that this rank holds, or one rollout of an actor; changes `counters`.

        Returns: what the update was, if this rank made one. It comes back after `WAIT_SECONDS` if there is nothing to
        do, then without having changed `counters.updates`.
        Args:
            measure: measure the length of the update, which costs a pass over the parameters.
        """

    def set_plan(self, plan: RunPlan) -> None:
        """Follows a plan of a newer epoch, in which this rank still is."""
        self.plan = plan

    def saved(self) -> None:  # noqa: B027 only a centre has others who must not leave before
        """Called once the last checkpoint and, at the run's end, the final model are on disk.

        A centre may now let the others leave.
        """

    def answer_joiners(self, make_state: Callable[[], bytes]) -> None:  # noqa: B027 nobody asks a centre or an actor
        """Gives `make_state()` to those who have asked; next to nothing when nobody has."""

    @abstractmethod
    def stats(self) -> GossipStats:
        """What has crossed the wire. `in_peers` and `out_peers` are who is connected now."""

    def events(self) -> list[dict[str, Any]]:
        """What is worth an entry in metrics.jsonl since the last call: `event`, and details."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Says farewell. Quick, and without effect when called again."""

    def done(self, counters: Counters) -> float:
        """How far the run is, in [0, 1]: what learning-rate schedules follow."""
        return min(1.0, counters.global_steps / self.plan.spec.total_steps)
