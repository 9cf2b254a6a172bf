"""What a launcher tells a worker: a rank, a plan file, an output folder. Nothing else reads the environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gala import names
from gala.cores import available_cores
from gala.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """Read from the environment once, by `__main__`."""

    rank: int
    """0 to the number of learners - 1."""
    plan_file: Path
    """plan.json, watched for new epochs."""
    output_dir: Path
    """The run's folder; this worker writes below `learner-<rank>/`."""
    threads: int
    """Compute threads of this learner; the simulators share them."""
    incarnation: int
    """Rises with every start of this rank: neighbours prefer the newest."""
    hold_seconds: int = 0
    """A finished worker serves its files until it is released, or nobody has asked for its /status for so long; for 30
    times as long at most."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> WorkerConfig:
        """Reads `GALA_*`.

        Raises:
            UsageError: a variable is missing or is not what it should be.
        """
        return cls(
            rank=_whole_number(environment, names.ENV_RANK, 0),
            plan_file=Path(_required(environment, names.ENV_PLAN_FILE)),
            output_dir=Path(_required(environment, names.ENV_OUTPUT_DIR)),
            threads=_whole_number(environment, names.ENV_THREADS, 1, default=available_cores),
            incarnation=_whole_number(environment, names.ENV_INCARNATION, 0, default=_milliseconds),
            hold_seconds=_whole_number(environment, names.ENV_HOLD, 0, default=lambda: 0),
        )

    @property
    def learner_dir(self) -> Path:
        """Where this learner's metrics, checkpoints and final model go."""
        return self.output_dir / names.learner_directory(self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsConfig:
    """What `python -m gala_worker.results` is told."""

    plan_file: Path
    output_dir: Path
    """The run's folder, as it is to be filled."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ResultsConfig:
        """Reads `GALA_*`.

        Raises:
            UsageError: a variable is missing.
        """
        return cls(
            plan_file=Path(_required(environment, names.ENV_PLAN_FILE)),
            output_dir=Path(_required(environment, names.ENV_OUTPUT_DIR)),
        )


def _required(environment: Mapping[str, str], key: str) -> str:
    value = environment.get(key, "")
    if not value:
        raise UsageError(f"{key} is not set: start workers by `gala run` or the operator, not by hand")
    return value


def _whole_number(
    environment: Mapping[str, str], key: str, at_least: int, *, default: Callable[[], int] | None = None
) -> int:
    if default is not None and not environment.get(key):
        return default()
    text = _required(environment, key)
    try:
        number = int(text)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise UsageError(f"{key} must be a whole number of at least {at_least}, got {text!r}")
    return number


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
