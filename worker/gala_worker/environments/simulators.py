"""What every simulator promises a learner, whatever runs behind it.

Shape legend: `B` simulators step together; `...` is the shape of one observation or action.

Episodes end in two ways, and mixing them up ruins training silently:

* A *real* end: the game is over or its time is up. The observation of that step is still the episode's last one (so at
  a time limit its value can be bootstrapped). The next step is a dummy: its action is ignored, its reward is 0, its
  observation is the first of the new episode. (Gymnasium calls this NEXT_STEP autoreset.)
* An end *for the learner only*: a life was lost. The game, its score and its step count go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt

Observations = npt.NDArray[Any]
Rewards = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Transition:
    """What one step in B simulators gave. The arrays may be reused by the next step: copy what must outlive it."""

    observations: Observations
    """`[B, ...]`, of the kind that `observation_space` says; at a real end, the episode's last observation."""
    rewards: Rewards
    """float32 `[B]`, raw: clipping is the learner's business, or the true score would be lost."""
    terminated: Flags
    """bool `[B]`: nothing follows for the learner: a real end that is no time limit, or a lost life."""
    truncated: Flags
    """bool `[B]`: a time limit; the return goes on as the value of this step's observation."""
    valid: Flags
    """bool `[B]`: False where the policy's action was not the one carried out: learn nothing from that entry. In
    simulators made for evaluation, False only for a dummy step: then the rewards of valid steps add up to the score."""
    starts: Flags
    """bool `[B]`: this step's observation is the first of an episode for the learner: recurrent state starts anew."""
    new_frames: int | None = None
    """Of stacked frames: as many last ones of each observation are new, the others are those of the observation before,
    moved to the front. None: nothing of the kind is known."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A real episode: a whole game, however many lives it took."""

    return_: float
    """Sum of the raw rewards, undiscounted."""
    steps: int
    """Steps of the environment, dummy steps not counted. Atari frames are four times as many."""


class Simulators(Protocol):
    """B environments of one kind that step together. Not thread-safe: one thread owns it."""

    num_simulators: int
    observation_space: gymnasium.Space[Any]
    """Of one simulator, as `step` returns it: a uint8 image `[C, H, W]` or a float32 vector `[N]`."""
    action_space: gymnasium.Space[Any]
    """Of one simulator, as `step` takes it: Discrete from 0, MultiBinary, or a one-dimensional float32 Box."""
    max_episode_steps: int | None
    """Decisions after which the environment itself ends an episode; None where it does not say."""

    def reset(self, seed: int) -> Observations:
        """Starts B new episodes; simulator i draws all its randomness from `seed + i`. Returns `[B, ...]`."""

    def step(self, actions: npt.NDArray[Any]) -> Transition:
        """Carries out `actions` `[B, ...]`. Box actions outside of their bounds are clipped to them."""

    def pop_episodes(self) -> list[Episode]:
        """Real episodes that ended since the last call, in the order of their ends."""

    def close(self) -> None:
        """Releases threads, processes and memory. Calling it again does nothing."""


class EpisodeLog:
    """Sums up raw rewards and decisions until each simulator's real end."""

    def __init__(self, num_simulators: int) -> None:
        self._returns = np.zeros(num_simulators, np.float64)
        self._steps = np.zeros(num_simulators, np.int64)
        self._finished: list[Episode] = []

    def restart(self) -> None:
        """Forgets the episodes under way; those that ended stay."""
        self._returns.fill(0.0)
        self._steps.fill(0)

    def record(self, rewards: npt.NDArray[Any]) -> None:
        """Adds a step's raw rewards `[B]`."""
        self._returns += rewards
        self._steps += 1

    def finish(self, ended: Flags) -> None:
        """Closes the episodes of the simulators at a real end, bool `[B]`. Costs something: call it when any is."""
        for i in np.flatnonzero(ended):
            self._finished.append(Episode(float(self._returns[i]), int(self._steps[i])))
        self._returns[ended] = 0.0
        self._steps[ended] = -1  # the dummy step that follows brings it to 0

    def pop(self) -> list[Episode]:
        """Episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished
