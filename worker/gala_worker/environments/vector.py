"""Every environment but Atari, as Gymnasium's vector environment (`making`): classic control, MuJoCo, a user's own.

What a policy sees and does is brought to the few kinds that the networks and action heads take (see `Simulators`):

* Box of uint8 with two or three axes: an image, channels first: `[H, W, C]` is turned, `[H, W]` gets one channel.
* Any other Box, and MultiBinary: a float32 vector, flattened.
* Discrete of up to 1024 values: one-hot.
* Actions: Discrete (counted from 0), MultiBinary, and Box (flattened; clipped to its bounds).

The vector environment must use NEXT_STEP autoreset: with SAME_STEP the observation at a time limit would be the next
episode's first, and its value would be bootstrapped from the wrong state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments.making import closing, make, time_limit
from gala_worker.environments.simulators import Episode, EpisodeLog, Flags, Observations, Transition

MAX_ONE_HOT: Final = 1024
MAX_IMAGE_CHANNELS: Final = 4
"""An image whose last axis is at most this, and whose first is more, has its channels last."""

Adapter = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


class VectorSimulators:
    """B Gymnasium environments of one kind. See `Simulators` for the promises."""

    def __init__(self, environment: Environment, num: int) -> None:
        self._id = environment.id
        self._env: VectorEnv[Any, Any, Any] | None = None
        env = self._env = make(environment, num)
        try:
            if (mode := env.metadata.get("autoreset_mode")) is not AutoresetMode.NEXT_STEP:
                raise SimulatorError(
                    f"spec.environment.id: the vector environment of {environment.id} resets in mode "
                    f"{getattr(mode, 'name', mode)} and NEXT_STEP is needed; "
                    f"remove vectorization_mode from spec.environment.kwargs"
                )
            self.observation_space, self._observe = _observations(environment.id, env.single_observation_space)
            self.action_space, self._act = _actions(environment.id, env.single_action_space)
        except SimulatorError:
            self.close()
            raise
        self.num_simulators = num
        self.max_episode_steps = time_limit(environment)
        self._log = EpisodeLog(num)
        self._none: Flags = np.zeros(num, np.bool_)
        self._all: Flags = np.ones(num, np.bool_)
        self._resetting = self._none

    def reset(self, seed: int) -> Observations:
        """Starts B new episodes, `[B, ...]`; environment i gets `seed + i`."""
        observations, _ = self._open().reset(seed=seed)
        self._resetting = self._none
        self._log.restart()
        return self._observe(observations)

    def step(self, actions: npt.NDArray[Any]) -> Transition:
        """One step in every environment. See `Simulators.step`."""
        observations, rewards, terminated, truncated, _ = self._open().step(self._act(actions))
        starts, valid = self._resetting, self._all
        if starts is not self._none:
            valid = ~starts
            rewards = np.where(starts, 0.0, rewards)  # vector environments of others may say something else
        self._log.record(rewards)
        ended = terminated | truncated
        self._resetting = self._none
        if ended.any():
            self._log.finish(ended)
            truncated = truncated & ~terminated
            self._resetting = ended
        return Transition(self._observe(observations), rewards.astype(np.float32), terminated, truncated, valid, starts)

    def pop_episodes(self) -> list[Episode]:
        """Episodes that ended since the last call."""
        return self._log.pop()

    def close(self) -> None:
        """Closes the environments."""
        env, self._env = self._env, None
        if env is not None:
            with closing(self._id):
                env.close()

    def _open(self) -> VectorEnv[Any, Any, Any]:
        if self._env is None:
            raise RuntimeError("these simulators are closed")
        return self._env


def _observations(environment_id: str, space: gymnasium.Space[Any]) -> tuple[gymnasium.Space[Any], Adapter]:
    """The space that the policy sees, and what brings a batch of `space` to it."""
    if isinstance(space, spaces.Box):
        shape = space.shape
        if 0 in shape:
            raise SimulatorError(
                f"spec.environment.id: {environment_id} has the observation space {_short(space)}, whose axes must be "
                f"at least 1 long, got {list(shape)}; let it show at least one number, be it always the same"
            )
        if space.dtype == np.uint8 and len(shape) == 2:
            return _image((1, *shape)), lambda batch: batch[:, None]
        if space.dtype == np.uint8 and len(shape) == 3:
            if shape[-1] <= MAX_IMAGE_CHANNELS < shape[0]:
                return _image((shape[-1], *shape[:-1])), lambda batch: np.moveaxis(batch, -1, 1)
            return _image(shape), lambda batch: batch
        low, high = (bound.astype(np.float32).reshape(-1) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.float32), _flatten
    if isinstance(space, spaces.Discrete) and space.n <= MAX_ONE_HOT:
        rows, start = np.eye(int(space.n), dtype=np.float32), space.start
        return spaces.Box(0.0, 1.0, (int(space.n),), np.float32), lambda batch: rows[batch - start]
    if isinstance(space, spaces.MultiBinary):
        return spaces.Box(0.0, 1.0, (int(np.prod(space.shape)),), np.float32), _flatten
    raise SimulatorError(
        f"spec.environment.id: {environment_id} has the observation space {_short(space)}, which no policy takes; wrap "
        f"it in gymnasium.wrappers.FlattenObservation in a module of your own and register that"
    )


def _actions(environment_id: str, space: gymnasium.Space[Any]) -> tuple[gymnasium.Space[Any], Adapter]:
    """The space that the policy acts in, and what brings a batch of its actions to `space`."""
    if isinstance(space, spaces.Discrete):
        start = space.start
        return spaces.Discrete(space.n), (lambda batch: batch + start) if start else (lambda batch: batch)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return space, lambda batch: batch.astype(np.int8, copy=False)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high, dtype, shape = space.low, space.high, space.dtype, space.shape
        flat = spaces.Box(low.astype(np.float32).reshape(-1), high.astype(np.float32).reshape(-1), dtype=np.float32)
        return flat, lambda batch: np.clip(batch.reshape(-1, *shape), low, high).astype(dtype, copy=False)
    raise SimulatorError(
        f"spec.environment.id: {environment_id} has the action space {_short(space)}, which no policy offers; "
        f"Discrete, MultiBinary and Box of floats are supported: wrap it in gymnasium.wrappers.TransformAction"
    )


def _flatten(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return batch.reshape(len(batch), -1).astype(np.float32, copy=False)


def _image(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def _short(space: gymnasium.Space[Any]) -> str:
    text = str(space)
    return text if len(text) <= 120 else text[:117] + "..."
