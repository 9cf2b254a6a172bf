"""One simulator that can be filmed: what `gala evaluate --video` plays in."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gala.errors import SimulatorError
from gala.spec import Environment
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from gala_worker.environments import atari, games
from gala_worker.environments.simulators import Simulators
from gala_worker.environments.vector import VectorSimulators

Frame = npt.NDArray[np.uint8]
"""[H, W, 3]"""


class Camera(Protocol):
    """Looks at the one simulator it came with."""

    frames_per_second: float
    """In which the simulator's steps are real time, as a person would play."""

    def frame(self) -> Frame:
        """What the simulator shows now. A fresh array."""


def make_filmed_simulator(environment: Environment) -> tuple[Simulators, Camera]:
    """One simulator that plays whole games, and a camera on it; closing the simulator ends both.

    Raises:
        SimulatorError: the environment cannot be made, or shows no pictures.
    """
    if atari.is_atari(environment.id):
        atari_simulators = _FilmedAtari(environment)
        return atari_simulators, atari_simulators
    return _rendered(environment)


class _FilmedAtari(atari.AtariSimulators):
    """A second emulator in colour takes the same seed and the same actions, and so sees the same game.

    The policy's own simulator shows grey 84x84 pictures only. Everything random in the emulator (no-ops, sticky
    actions) follows from the seed, so that the two never part.
    """

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment, 1, threads=1, for_evaluation=True)
        options: dict[str, Any] = atari.PRESETS[environment.preset] | environment.kwargs
        options |= {"grayscale": False, "stack_num": 1, "img_height": 210, "img_width": 160}
        rom = games.rom(environment.id)
        colour = AtariVectorEnv(
            rom, 1, num_threads=1, autoreset_mode=AutoresetMode.NEXT_STEP, reward_clipping=False, **options
        )
        self.frames_per_second = 60.0 / options.get("frameskip", 4)
        self._twins = _Twins(self._env, colour)
        self._env = self._twins  # type: ignore[assignment]  # it steps both, and answers for the first

    def frame(self) -> Frame:
        return self._twins.picture


class _Twins:
    """Two emulators that are told the same."""

    def __init__(self, first: Any, second: Any) -> None:
        self._first = first
        self._second = second
        self.ale = first.ale
        self.picture: Frame = np.zeros((210, 160, 3), np.uint8)

    def reset(self, **options: Any) -> Any:
        self._see(self._second.reset(**options)[0])
        return self._first.reset(**options)

    def step(self, actions: npt.NDArray[Any]) -> Any:
        self._see(self._second.step(actions)[0])
        return self._first.step(actions)

    def close(self) -> None:
        self._second.close()
        self._first.close()

    def _see(self, observations: npt.NDArray[Any]) -> None:
        # [1, 1, 210, 160, 3]
        self.picture = np.array(observations, np.uint8).reshape(210, 160, 3)


def _rendered(environment: Environment) -> tuple[Simulators, Camera]:
    with_pictures = environment.model_copy(update={"kwargs": {**environment.kwargs, "render_mode": "rgb_array"}})
    try:
        simulators = VectorSimulators(with_pictures, 1)
        simulators.reset(0)
        camera = _RenderCamera(simulators)
        camera.frame()
    except Exception as error:  # anybody's code, and an optional dependency of it may be missing
        plain = VectorSimulators(environment, 1)  # says what is wrong if it is not the rendering
        space = plain.observation_space
        if isinstance(space, spaces.Box) and len(space.shape) == 3:
            return plain, _ObservationCamera(plain)
        plain.close()
        raise SimulatorError(
            f"{environment.id} shows no pictures to film: {_reason(error)}; its render mode rgb_array must work"
        ) from error
    return simulators, camera


class _RenderCamera:
    """Asks the environment itself."""

    def __init__(self, simulators: VectorSimulators) -> None:
        self._env = simulators.unwrapped
        self.frames_per_second = float(self._env.metadata.get("render_fps") or 30.0)

    def frame(self) -> Frame:
        pictures = self._env.render()
        if not pictures or np.ndim(pictures[0]) != 3:
            raise SimulatorError("it does not render")
        return np.array(pictures[0], np.uint8)
