"""Atari 2600 games in ale-py's native vector environment: `ALE/<Game>-v5`.

The traps of this environment that are handled here, each with a test that fails without it:

* It clips rewards by default and reports no episode return: the true score would be lost. Clipping is off, always.
* Its `episodic_life` resets the whole game at every lost life. The practice since DQN is to end the episode for the
  learner and play on; so the end of a life is found here, from the emulator's count of lives, and nothing is reset.
* After a lost life some games (Breakout) wait for FIRE and nothing else; a policy that never presses it stalls for
  108,000 frames. The preset `paper` presses it for the agent; `AtariSimulators._lose` says how.
* The step after a real end ignores its action: it is marked invalid.
* Its default number of threads looks at the machine, not at the container's quota: it is always given.
* Its `close` keeps the threads; they end with the native object, which is dropped here.
* Seeds of 2**31 and more are refused by the native code: they wrap around.

Observations are uint8 `[B, 4, 84, 84]`: four grey frames, the newest last. Each step returns fresh arrays.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Final

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments import games
from gala_worker.environments.simulators import Episode, EpisodeLog, Flags, Observations, Transition

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # Mnih et al. 2015 and the GALA paper. The emulator draws 0 to noop_max - 1 no-ops, hence 31 for "up to 30".
    "paper": {"noop_max": 31, "repeat_action_probability": 0.0, "full_action_space": False},
    # Machado et al. 2018: the randomness comes from sticky actions in place of no-ops, and all 18 actions are offered.
    "modern": {"noop_max": 0, "repeat_action_probability": 0.25, "full_action_space": True},
}

_RESERVED: Final = {
    "game": "it follows from spec.environment.id",
    "num_envs": "set spec.environment.simulators",
    "batch_size": "all simulators of a learner step together",
    "num_threads": "a learner's threads follow from the cores it may use",
    "autoreset_mode": "the learner relies on NEXT_STEP",
    "reward_clipping": "scores would be lost; set spec.hyperparameters.rewardClipping",
    "episodic_life": "it resets the game at every lost life; set spec.environment.preset",
    "life_loss_info": "set spec.environment.preset: paper ends an episode at a lost life, modern does not",
}
"""Options of the native environment that are not the user's, with what to do instead."""

_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "img_height": (1, 1024),
    "img_width": (1, 1024),
    "stack_num": (1, 64),
    "frameskip": (1, 1000),
    "noop_max": (0, 10_000),
    "max_num_frames_per_episode": (1, 2**31 - 1),
    "repeat_action_probability": (0.0, 1.0),
}
"""What the emulator does not check: with a zero among the first three it hangs instead."""

_SEEDS: Final = 2**31


class AtariSimulators:
    """B games of one Atari ROM. See `Simulators` for the promises."""

    def __init__(self, environment: Environment, num: int, *, threads: int, for_evaluation: bool = False) -> None:
        rom = games.rom(environment.id)
        options = PRESETS[environment.preset] | _checked(environment.kwargs)
        try:
            self._env: AtariVectorEnv | None = AtariVectorEnv(
                rom,
                num,
                num_threads=threads,
                autoreset_mode=AutoresetMode.NEXT_STEP,
                reward_clipping=False,
                **options,
            )
        except (TypeError, ValueError, RuntimeError, OSError, gymnasium.error.Error) as error:
            reason = str(error).splitlines()[0][:200]
            raise SimulatorError(
                f"spec.environment.kwargs: {environment.id} does not accept {environment.kwargs}: {reason}"
            ) from error
        self.num_simulators = num
        self.observation_space: gymnasium.Space[Any] = self._env.single_observation_space
        self.action_space: gymnasium.Space[Any] = self._env.single_action_space
        if len(self.observation_space.shape or ()) != 3:
            raise SimulatorError(
                "spec.environment.kwargs.grayscale: colour frames in a stack have four axes, which no network takes; "
                "remove it"
            )
        box = self.action_space if isinstance(self.action_space, gymnasium.spaces.Box) else None
        self._bounds = None if box is None else (box.low, box.high)
        frames, skip = (options.get(name, _default(name)) for name in ("max_num_frames_per_episode", "frameskip"))
        self.max_episode_steps: int | None = math.ceil(frames / skip)
        self._watches_lives = environment.preset == "paper"
        self._life_loss_ends = self._watches_lives and not for_evaluation
        self._fire = self._fire_action() if self._watches_lives and options.get("use_fire_reset", True) else None
        self._log = EpisodeLog(num)
        self._none: Flags = np.zeros(num, np.bool_)
        self._all: Flags = np.ones(num, np.bool_)
        self._lives: npt.NDArray[np.int32] = np.zeros(num, np.int32)
        self._forced = self._none
        self._pressing = self._none
        self._starting = self._none
        self._resets = False

    def reset(self, seed: int) -> Observations:
        """Starts B new games, `[B, 4, 84, 84]`. About 0.1 s a game: seeding reloads the ROM."""
        env = self._open()
        seeds = (seed + np.arange(self.num_simulators)) % _SEEDS
        observations, info = env.reset(seed=seeds)
        self._lives = info["lives"]
        self._forced = self._pressing = self._starting = self._none
        self._resets = False
        self._log.restart()
        return observations  # type: ignore[no-any-return]

    def step(self, actions: npt.NDArray[Any]) -> Transition:
        """Four frames in every game. See `Simulators.step`; the arrays of the transition are fresh ones."""
        env = self._env or self._open()
        if self._pressing is not self._none:
            actions = np.where(self._pressing, self._fire or 0, actions)
        elif self._bounds is not None:
            actions = np.clip(actions, *self._bounds)
        observations, rewards, terminated, truncated, info = env.step(actions)
        self._log.record(rewards)
        valid = self._all if self._forced is self._none else ~self._forced
        transition = Transition(
            observations,
            rewards.astype(np.float32),
            terminated,
            truncated,
            valid,
            starts=self._starting,
            new_frames=None if self._resets else 1,
        )
        self._forced = self._pressing = self._starting = self._none
        self._resets = False
        ended = terminated | truncated
        lives = info["lives"]
        if self._watches_lives:
            lost = lives < self._lives
            if lost.any():
                self._lose(lost, ended, transition)
        if ended.any():
            self._end(ended, transition)
            lives[ended] = 0  # so that a new game which starts with fewer lives than the old one had left loses none
        self._lives = lives
        return transition

    def pop_episodes(self) -> list[Episode]:
        """Whole games that ended since the last call."""
        return self._log.pop()

    def close(self) -> None:
        """Ends the emulator's threads."""
        if self._env is not None:
            self._env.close()
            self._env = None  # its own close() keeps the threads: they live as long as the native object

    def _lose(self, lost: Flags, ended: Flags, transition: Transition) -> None:
        """Lives are lost: an end for the learner, and FIRE at the next step (which a game that is over ignores).

        FIRE is what the baselines' wrappers press after every lost life, hidden from the agent. Here it shows as a
        step that is not the policy's and hence not valid; the learner's new episode starts after it. In an evaluation
        nobody learns from it, and it is a step of the game like any other.
        """
        if self._life_loss_ends:
            transition.terminated = transition.terminated | lost
        if self._fire is None:
            transition.starts = transition.starts | (lost & ~ended)
            return
        self._pressing = self._starting = lost
        if self._life_loss_ends:
            self._forced = lost

    def _end(self, ended: Flags, transition: Transition) -> None:
        """A game is over, or its time is up: the next step only resets."""
        self._log.finish(ended)
        transition.truncated = transition.truncated & ~transition.terminated
        self._forced = self._forced | ended
        self._starting = self._starting | ended
        self._resets = True

    def _fire_action(self) -> int | None:
        """The index of FIRE among the game's actions, if it is one."""
        actions = list(self._open().ale.get_action_set())
        return actions.index(ale_py.Action.FIRE) if self._bounds is None and ale_py.Action.FIRE in actions else None

    def _open(self) -> AtariVectorEnv:
        if self._env is None:
            raise RuntimeError("these simulators are closed")
        return self._env


def _default(option: str) -> Any:
    """Of the native environment."""
    return inspect.signature(AtariVectorEnv.__init__).parameters[option].default


def _checked(kwargs: dict[str, Any]) -> dict[str, Any]:
    """`spec.environment.kwargs`, if the native environment has each of them and it is the user's to set."""
    parameters = [name for name in inspect.signature(AtariVectorEnv.__init__).parameters if name != "self"]
    for name, value in kwargs.items():
        if name in _RESERVED:
            raise SimulatorError(f"spec.environment.kwargs.{name}: cannot be set: {_RESERVED[name]}")
        if name not in parameters:
            possible = ", ".join(sorted(set(parameters) - _RESERVED.keys()))
            raise SimulatorError(
                f"spec.environment.kwargs.{name}: unknown to Atari environments; possible are {possible}"
            )
        if name in _BOUNDS:
            low, high = _BOUNDS[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise SimulatorError(
                    f"spec.environment.kwargs.{name}: must be a number from {low} to {high}, got {value!r}"
                )
    return kwargs
