"""What a launcher tells a worker: a rank, a plan file, an output folder. Nothing else reads the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gala import names
from gala.cores import available_cores
from gala.errors import UsageError
from gala.plan import RunPlan


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

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> WorkerConfig:
        """Reads `GALA_*`.

        Raises:
            UsageError: a variable is missing or is not what it should be.
        """

        def required(key: str) -> str:
            value = environment.get(key, "")
            if not value:
                raise UsageError(f"{key} is not set: start workers by `gala run`, not by hand")
            return value

        def whole_number(key: str, text: str, at_least: int) -> int:
            try:
                number = int(text)
            except ValueError:
                number = at_least - 1
            if number < at_least:
                raise UsageError(f"{key} must be a whole number of at least {at_least}, got {text!r}")
            return number

        threads = environment.get(names.ENV_THREADS) or str(available_cores())
        incarnation = environment.get(names.ENV_INCARNATION) or str(time.time_ns() // 1_000_000)
        return cls(
            rank=whole_number(names.ENV_RANK, required(names.ENV_RANK), 0),
            plan_file=Path(required(names.ENV_PLAN_FILE)),
            output_dir=Path(required(names.ENV_OUTPUT_DIR)),
            threads=whole_number(names.ENV_THREADS, threads, 1),
            incarnation=whole_number(names.ENV_INCARNATION, incarnation, 0),
        )

    @property
    def learner_dir(self) -> Path:
        """Where this learner's metrics, checkpoints and final model go."""
        return self.output_dir / names.learner_directory(self.rank)

    def load_plan(self) -> RunPlan:
        """The plan as it stands now.

        Raises:
            UsageError: the file cannot be read.
            SpecError: it is not a plan.
        """
        try:
            text = self.plan_file.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read the plan {self.plan_file}: {error.strerror}") from error
        return RunPlan.from_json(text)
