"""Environments whose every step is known."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

LENGTH = 3


class Count(gymnasium.Env[np.ndarray, Any]):
    """Observes `[episode, step]`; each step's reward is 10; terminates or is truncated after LENGTH steps."""

    observation_space: gymnasium.Space[Any] = spaces.Box(-100.0, 100.0, (2,), np.float64)
    action_space: gymnasium.Space[Any] = spaces.Discrete(2)

    def __init__(self, truncates: bool = False, both: bool = False, length: int = LENGTH) -> None:
        self.truncates, self.both, self.length = truncates, both, length
        self.episode, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.steps < self.length, "stepped beyond the end of an episode"
        self.steps += 1
        end = self.steps == self.length
        return self.observe(), 10.0, end and (self.both or not self.truncates), end and self.truncates, {}

    def observe(self) -> Any:
        return np.array([self.episode, self.steps], np.float64)


class Telling(Count):
    """`Count` whose info is one of `infos`, lists as arrays; simulator i, told by its seed, begins with number i."""

    def __init__(self, infos: list[Any]) -> None:
        super().__init__()
        self.infos, self.next = infos, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.next = self.next if seed is None else seed
        return super().reset(seed=seed, options=options)[0], self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], self.info()

    def info(self) -> dict[str, Any]:
        self.next += 1
        info = self.infos[self.next % len(self.infos)]
        return {"told": np.array(info) if isinstance(info, list) else info}


class Counting(Count):
    """`Count` that counts in the settings it is given how many were made of them; its reward is that number."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        config["made"] += 1
        if config.pop("fail", False):
            raise RuntimeError("not in this test")
        self.reward = float(config["made"])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, self.reward, *rest


class Leaving(Count):
    """`Count` that ends the process it is in: when it is made, reset, stepped or closed, as `at` says."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at
        self.leave("made")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.leave("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.leave("stepped")
        return super().step(action)

    def close(self) -> None:
        self.leave("closed")

    def leave(self, now: str) -> None:
        if self.at == now:
            sys.exit()


class Sticking(Count):
    """`Count` that cannot be closed."""

    def close(self) -> None:
        raise RuntimeError("it sticks")


class StickingVector(SyncVectorEnv):
    """A vector environment that cannot be closed."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        super().__init__([Count] * num_envs)

    def close_extras(self, **_: Any) -> None:
        self.closed = True  # else Gymnasium tries again when the memory is freed
        raise RuntimeError("it sticks")


class Flawed(Count):
    """`Count` with numbers of the test's choice: as reward, as every observation after a step, or only at the end.

    `only`: that simulator alone, told by its seed, has flaws.
    """

    def __init__(
        self, reward: float = 1.0, on_the_way: float = 0.0, at_the_end: float = 0.0, only: int | None = None
    ) -> None:
        super().__init__()
        self.reward, self.on_the_way, self.at_the_end, self.only = reward, on_the_way, at_the_end, only

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None and self.only not in (None, seed):
            self.reward, self.on_the_way, self.at_the_end = 1.0, 0.0, 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.reward, terminated, truncated, info

    def observe(self) -> Any:
        shown = self.at_the_end if self.steps == self.length else self.on_the_way if self.steps else 0.0
        return super().observe() + shown if self.steps < self.length else np.full(2, shown)


class Spaces(gymnasium.Env[Any, Any]):
    """Any observation and action space; the observation is what `observation` says; records the actions it gets."""

    def __init__(self, observation_space: Any = None, action_space: Any = None, observation: Any = None) -> None:
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.observation = np.zeros(1, np.float32) if observation is None else observation
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.noise = self.np_random.random()
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        return self.observation, self.noise, False, False, {}


class SameStepVector(SyncVectorEnv):
    """A vector environment that resets in the step that ends an episode, as some libraries' do."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        super().__init__([Count] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


class CountingVector(SyncVectorEnv):
    """`Counting` as a vector environment of its own, which makes all of one dictionary."""

    def __init__(self, num_envs: int, config: dict[str, Any]) -> None:
        super().__init__([lambda: Counting(config)] * num_envs)


class RewardingDummies(SyncVectorEnv):
    """A vector environment whose dummy steps carry a reward."""

    def __init__(self, num_envs: int, **_: Any) -> None:
        super().__init__([Count] * num_envs)

    def step(self, actions: Any) -> Any:
        observations, _, terminated, truncated, info = super().step(actions)
        return observations, np.full(self.num_envs, 10.0), terminated, truncated, info
