"""Gymnasium's vector environment of an id, from code that may be anybody's: what goes wrong in it is told."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from gala.errors import SimulatorError
from gala.spec import Environment


class WithoutInfos(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives no infos: nobody reads them, and vector environments fail on dictionaries that do not match each other."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, _ = self.env.reset(**options)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated, truncated, {}


def make(environment: Environment, num: int) -> VectorEnv[Any, Any, Any]:
    """`gymnasium.make_vec`, with every failure of it (and of a user's module) as a SimulatorError."""
    module, colon, name = environment.id.rpartition(":")
    if colon:
        _import(module, environment.id)
    kwargs: dict[str, Any] = dict(environment.kwargs)
    mode = kwargs.pop("vectorization_mode", "sync")
    # The learner copies observations anyway: the synchronous vectorisation need not.
    vector_kwargs = {"copy": False} if mode == "sync" else {}
    wrappers = () if mode == "vector_entry_point" else (WithoutInfos,)
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise SimulatorError(
            f"spec.environment.id: {str(error).rstrip('.')}; use an id that Gymnasium or an installed package "
            f"registers, ALE/<Game>-v5, or package.module:{name} where the module registers it"
        ) from error
    try:
        return gymnasium.make_vec(
            spec.id, num, vectorization_mode=mode, vector_kwargs=vector_kwargs, wrappers=wrappers, **kwargs
        )
    except Exception as error:  # the constructor is anybody's code
        raise SimulatorError(
            f"spec.environment: {environment.id} cannot be made with kwargs {environment.kwargs}: {_told(error)}"
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
    except Exception as error:  # a user's module can fail in any way
        raise SimulatorError(f"spec.environment.id: importing {module!r} failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    """An error of somebody's code in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
