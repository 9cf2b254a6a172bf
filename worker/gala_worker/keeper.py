"""What a rank that has parameters to keep does with them: checkpoints, evaluations on the way, the final model.

Place in the flow: `worker` asks after every update what is due. Actors, and the ranks of A3C that only push gradients,
have no keeper: what they act with belongs to another rank.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch

from gala import names
from gala.errors import CheckpointError
from gala.plan import RunPlan
from gala_worker import checkpoint
from gala_worker.algorithms.algorithm import Algorithm
from gala_worker.evaluation import BackgroundEvaluator, EvaluationResult
from gala_worker.flat import FlatState
from gala_worker.metrics import MetricsWriter
from gala_worker.model_file import export_model
from gala_worker.state import Counters, capture
from gala_worker.telemetry import Telemetry

log = logging.getLogger(__name__)


class Keeper:
    """Belongs to the learner thread, but for `_evaluated`."""

    def __init__(
        self,
        plan: RunPlan,
        rank: int,
        learner_dir: Path,
        *,
        flat: FlatState,
        algorithm: Algorithm,
        metrics: MetricsWriter,
        telemetry: Telemetry,
    ) -> None:
        """Nothing is due before `follow`."""
        self._plan = plan
        self._rank = rank
        self._learner_dir = learner_dir
        self._flat = flat
        self._algorithm = algorithm
        self._metrics = metrics
        self._telemetry = telemetry
        self._next_checkpoint = self._next_evaluation = math.inf
        metrics.expect("checkpoint")
        self._evaluator = BackgroundEvaluator(
            plan.spec,
            schema_hash=flat.schema.hash,
            seed=plan.learner(rank).seed + names.MAX_SIMULATORS,
            on_result=self._evaluated,
        )

    def latest(self) -> checkpoint.Checkpoint | None:
        """This rank's newest checkpoint that can be read, if there is one."""
        return checkpoint.load_latest(self._checkpoints, self._flat.schema.hash)

    def follow(self, plan: RunPlan, counters: Counters) -> None:
        """From here on evaluations and checkpoints are due as this plan says."""
        self._plan = plan
        self._next_checkpoint = _next_multiple(plan.spec.checkpoint.every_steps, counters.global_steps)
        self._next_evaluation = _next_multiple(plan.spec.evaluation.every_steps, counters.global_steps)

    def attend(self, counters: Counters, generator: torch.Generator) -> None:
        """After an update: what is due now."""
        spec, steps = self._plan.spec, counters.global_steps
        if steps >= self._next_evaluation:
            self._evaluate(self._next_evaluation, steps)
            self._next_evaluation = _next_multiple(spec.evaluation.every_steps, steps)
        if steps >= self._next_checkpoint:
            self.save(counters, generator)
            self._next_checkpoint = _next_multiple(spec.checkpoint.every_steps, steps)

    def save(self, counters: Counters, generator: torch.Generator) -> None:
        """A checkpoint. A disk that does not take it is logged, and so are parameters that nobody could go on from."""
        if not torch.isfinite(self._flat.vector).all():
            log.error("the parameters are not finite any more; no checkpoint is written, the earlier ones are kept")
            return
        weight = self._algorithm.stats().weight
        content = capture(self._flat, self._algorithm.optimizer_state, counters, generator, weight=weight)
        try:
            path = checkpoint.save(self._checkpoints, content, self._plan.spec.checkpoint.keep)
        except CheckpointError as error:
            # A full disk must not end the training of a learner that is otherwise well.
            log.error("%s; training goes on without it", error)
            return
        self._metrics.event("checkpoint", globalSteps=counters.global_steps, path=path.name)

    def export(self, counters: Counters) -> None:
        """The final model.

        Raises:
            OSError: the disk does not take it.
        """
        weight = self._algorithm.stats().weight
        export_model(self._learner_dir, self._flat, self._plan, self._rank, counters, weight=weight)

    def close(self) -> None:
        """Ends an evaluation that runs."""
        self._evaluator.close()

    def _evaluate(self, milestone: float, steps: int) -> None:
        """Evaluation number k is the job of the k-th rank that has the parameters, round and round."""
        ranks = self._plan.keepers
        number = int(milestone // (self._plan.spec.evaluation.every_steps or milestone))
        if ranks[number % len(ranks)] == self._rank:
            self._evaluator.submit(self._flat.vector, global_steps=steps)

    def _evaluated(self, result: EvaluationResult, global_steps: int) -> None:
        """On the evaluation's thread."""
        self._metrics.evaluation(result, global_steps=global_steps)
        self._telemetry.evaluation = {
            "globalSteps": global_steps,
            "mode": result.mode,
            "meanReturn": result.mean_return,
        }

    @property
    def _checkpoints(self) -> Path:
        return self._learner_dir / names.CHECKPOINTS_DIRECTORY


def _next_multiple(every: int | None, steps: int) -> float:
    """The first multiple of `every` above `steps`; infinity where there is no `every`."""
    return math.inf if every is None else (steps // every + 1) * every
