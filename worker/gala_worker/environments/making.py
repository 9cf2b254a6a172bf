"""Gymnasium's vector environment of an id, from code that may be anybody's: what goes wrong in it is told."""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from gala.errors import SimulatorError
from gala.spec import Environment

log = logging.getLogger(__name__)


class Sheltered(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps from the learner what it has no use for.

    * Infos: nobody reads them, and vector environments fail on dictionaries that do not match each other.
    * Errors at closing.
    * sys.exit(), which would end the learner as if it had finished: it is an error like any other.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], environment_id: str) -> None:
        super().__init__(env)
        self._id = environment_id

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        try:
            observation, _ = self.env.reset(**options)
        except SystemExit as error:
            raise self._left(error) from error
        return observation, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            observation, reward, terminated, truncated, _ = self.env.step(action)
        except SystemExit as error:
            raise self._left(error) from error
        return observation, reward, terminated, truncated, {}

    def close(self) -> None:
        with closing(self._id):
            self.env.close()

    def _left(self, error: SystemExit) -> RuntimeError:
        return RuntimeError(f"{self._id} has called sys.exit({error.code!r})")


@contextmanager
def closing(environment_id: str) -> Iterator[None]:
    """Within it an error is a warning: what an environment does at its end must not spoil what was learned before."""
    try:
        yield
    except (Exception, SystemExit) as error:  # anybody's code
        log.warning("%s cannot be closed: %s", environment_id, _told(error))


def make(environment: Environment, num: int) -> VectorEnv[Any, Any, Any]:
    """`num` of them, vectorised as the document says; every failure (also of a user's module) is a SimulatorError."""
    spec = _spec(environment)
    kwargs: dict[str, Any] = dict(environment.kwargs)
    mode = kwargs.pop("vectorization_mode", "sync")

    def make_one() -> gymnasium.Env[Any, Any]:
        # A copy for each, since an environment may change what it is given.
        return Sheltered(gymnasium.make(spec, **copy.deepcopy(kwargs)), environment.id)

    try:
        match mode:
            case "sync":
                return SyncVectorEnv([make_one] * num, copy=False)  # the learner copies observations anyway
            case "async":
                return AsyncVectorEnv([make_one] * num)
            case _:
                return gymnasium.make_vec(spec.id, num, vectorization_mode=mode, **copy.deepcopy(kwargs))
    except (Exception, SystemExit) as error:  # the constructor is anybody's code
        raise SimulatorError(
            f"spec.environment: {environment.id} cannot be made with kwargs {environment.kwargs}: {_told(error)}"
        ) from error


def time_limit(environment: Environment) -> int | None:
    """Steps after which Gymnasium cuts its episodes: the document's word, else what was registered; None for never."""
    limit: Any = environment.kwargs.get("max_episode_steps")
    limit = _spec(environment).max_episode_steps if limit is None else limit
    return None if limit == -1 else limit


def _spec(environment: Environment) -> EnvSpec:
    """What is registered under the id, once a user's module has been imported."""
    module, colon, name = environment.id.rpartition(":")
    if colon:
        _import(module, environment.id)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise SimulatorError(
            f"spec.environment.id: {str(error).rstrip('.')}; use an id that Gymnasium or an installed package "
            f"registers, ALE/<Game>-v5, or package.module:{name} where the module registers it"
        ) from error


def _import(module: str, environment_id: str) -> None:
    """Imports a user's module, from PYTHONPATH or the current directory, so that it registers its environments."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that nothing in the current directory shadows a library
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise SimulatorError(
                f"spec.environment.id: no module {module!r} for {environment_id}, neither in {here} nor on PYTHONPATH; "
                f"run from the folder that holds it, or add that folder to PYTHONPATH"
            ) from error
        raise SimulatorError(f"spec.environment.id: importing {module!r} failed: {_told(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module can fail in any way
        raise SimulatorError(f"spec.environment.id: importing {module!r} failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An error of somebody's code in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
