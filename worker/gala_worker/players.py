"""A run's policy put together again, to play: what `finalize` and `evaluate` share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor

from gala import answers, names
from gala.cores import available_cores
from gala.errors import CheckpointError, RunError, UsageError, reading
from gala.plan import SEEDS_PER_LEARNER, RunPlan
from gala.spec import RunSpec
from gala_worker import checkpoint, model_file
from gala_worker.evaluation import (
    EvaluationResult,
    Mode,
    evaluate,
    make_evaluation_policy,
    make_evaluation_simulators,
)
from gala_worker.flat import FlatState, Schema

MOST_CHECKPOINTS_BEHIND: Final = 2
"""A learner whose newest checkpoint is older than that, by the others' count, has failed or been away: its parameters
are of another time, and left out of an average of checkpoints."""


class Player:
    """Simulators and a policy of a run's shape. The parameters are the seed's until `load`. Close it after use."""

    def __init__(self, spec: RunSpec, episodes: int) -> None:
        """Ready to play `episodes` at a time, on the CPU. Sets this process's compute threads to one.

        Raises:
            SimulatorError: the environment cannot be made.
        """
        self._spec = spec
        self._episodes = episodes
        # Ten observations are little work: several compute threads gain nothing, and on a machine that is busy with
        # another run they wait for each other at every layer (measured: 40 ms instead of 1 ms).
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        self.simulators = make_evaluation_simulators(spec, episodes, threads=available_cores())
        self.policy = make_evaluation_policy(spec, self.simulators)
        self._flat = FlatState(self.policy, self.policy.gossiped_buffers())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.simulators.close()

    @property
    def schema(self) -> Schema:
        """Of the policy: models and checkpoints of another one are refused by it."""
        return self._flat.schema

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a model's tensors.

        Raises:
            CheckpointError: they are not this policy's.
        """
        try:
            self.policy.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise CheckpointError(f"the model does not fit the policy of the run: {error}") from error

    def load_vector(self, vector: Tensor) -> None:
        """Takes a flat vector [N].

        Raises:
            CheckpointError: it has another length.
        """
        if vector.shape != self._flat.vector.shape:
            raise CheckpointError(f"{list(vector.shape)} parameters do not fit {list(self._flat.vector.shape)}")
        self._flat.vector.copy_(vector)

    def play(self, *, mode: Mode, seed: int) -> EvaluationResult:
        """Plays the episodes and scores them."""
        return evaluate(
            self.policy,
            self.simulators,
            environment_id=self._spec.environment.id,
            episodes=self._episodes,
            mode=mode,
            seed=seed,
        )


def open_plan(run_dir: Path) -> RunPlan:
    """The plan of the run in `run_dir`.

    Raises:
        UsageError: there is none, or it is no text.
        SpecError: it cannot be read.
    """
    try:
        text = (run_dir / names.PLAN_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{run_dir} is not a run's folder: no {names.PLAN_FILE} in it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{run_dir / names.PLAN_FILE}: cannot be read: it is no text") from error
    return RunPlan.from_json(text)


def evaluation_seed(plan: RunPlan) -> int:
    """The seed of a run's final evaluation: in the half of the first learner's range that training does not use."""
    return plan.learners[0].seed + SEEDS_PER_LEARNER // 2


def load_newest(player: Player, run_dir: Path, plan: RunPlan) -> str:
    """Gives `player` the final model or, where there are newer checkpoints, the average of the newest ones.

    That is while the run is not finished, and while a finished one trains on. With push-sum it is the weighted average,
    as of the final model.

    Returns:
        What was loaded, in words.

    Raises:
        RunError: there is neither.
        UsageError: whether there is a final model cannot be seen.
        CheckpointError: the final model cannot be used.
    """
    final = run_dir / names.FINAL_DIRECTORY / names.MODEL_FILE
    with reading(final):
        finished = final.exists()
    model = model_file.load_model(final, player.schema) if finished else None
    newest = {}
    for rank in plan.ranks:
        directory = run_dir / names.learner_directory(rank) / names.CHECKPOINTS_DIRECTORY
        if (found := checkpoint.load_latest(directory, player.schema.hash)) is not None:
            newest[rank] = found
    steps = max((found.global_steps for found in newest.values()), default=0)
    of_model = steps if model is None else answers.count(model.record.get("globalSteps")) or steps
    # A learner that was stopped after the others had finished may have a later checkpoint: the run has its steps.
    if model is not None and of_model >= min(steps, plan.spec.total_steps):
        player.load(model.tensors)
        return "final model"
    if not newest:
        raise RunError(
            f"{run_dir} has nothing to evaluate yet: no final model and no checkpoint; the learners write one every "
            f"{plan.spec.checkpoint.every_steps:,} steps and when they are stopped"
        )
    oldest = steps - MOST_CHECKPOINTS_BEHIND * plan.spec.checkpoint.every_steps
    kept = [found for found in newest.values() if found.global_steps >= oldest]
    models = [{checkpoint.VECTOR: found.tensors[checkpoint.VECTOR]} for found in kept]
    mean = model_file.average(models, [model_file.share(found.counters) for found in kept])
    player.load_vector(mean[checkpoint.VECTOR])
    return f"average of {len(kept)} of {len(plan.ranks)} learners' checkpoints at {steps:,} steps"
