"""One simulator that can be filmed: what `gala evaluate --video` plays in."""

from __future__ import annotations

import os
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments import atari, games
from gala_worker.environments.simulators import Observations, Simulators, Transition
from gala_worker.environments.vector import VectorSimulators

Frame = npt.NDArray[np.uint8]
"""[H, W, 3]"""
USUAL_FRAMES_PER_SECOND: Final = 30.0


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
    if games.is_atari(environment.id):
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


class _FilmedVector(VectorSimulators):
    """Asks the environment itself for pictures."""

    def __init__(self, environment: Environment) -> None:
        # pygame, which draws many environments, would look for a screen that it does not need, and complain.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        kwargs = {**environment.kwargs, "render_mode": "rgb_array"}
        super().__init__(environment.model_copy(update={"kwargs": kwargs}), 1)
        self.frames_per_second = float(self._open().metadata.get("render_fps") or USUAL_FRAMES_PER_SECOND)

    def frame(self) -> Frame:
        pictures = self._open().render()
        if not pictures or np.ndim(pictures[0]) != 3:
            raise SimulatorError("it renders nothing")
        return np.array(pictures[0], np.uint8)


class _FilmedObservations(VectorSimulators):
    """Shows what the policy sees, where that is an image and the environment has nothing better."""

    frames_per_second = USUAL_FRAMES_PER_SECOND

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment, 1)
        self._seen: Observations = np.zeros((1, *(self.observation_space.shape or ())), np.uint8)

    def reset(self, seed: int) -> Observations:
        self._seen = super().reset(seed)
        return self._seen

    def step(self, actions: npt.NDArray[Any]) -> Transition:
        transition = super().step(actions)
        self._seen = transition.observations
        return transition

    def frame(self) -> Frame:
        image = self._seen[0]  # [C, H, W]
        colours = image if len(image) == 3 else np.repeat(image[-1:], 3, 0)
        return np.ascontiguousarray(np.moveaxis(colours, 0, -1))


def _rendered(environment: Environment) -> tuple[Simulators, Camera]:
    try:
        filmed = _FilmedVector(environment)
        filmed.reset(0)
        filmed.frame()
        return filmed, filmed
    except Exception as error:  # anybody's code, which may lack an optional dependency
        seen = _FilmedObservations(environment)  # raises what is wrong, if it is not the rendering
        space = seen.observation_space
        if space.dtype == np.uint8 and len(space.shape or ()) == 3:
            return seen, seen
        seen.close()
        raise SimulatorError(
            f"{environment.id} cannot be filmed: its render mode rgb_array does not work: {error}"
        ) from error
