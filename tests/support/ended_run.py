"""A run's folder for tests of its end: a plan, and learners whose parameters the test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gala.plan import RunPlan, plan
from gala.spec import parse
from gala_worker import checkpoint, model_file
from gala_worker.environments import make_simulators
from gala_worker.evaluation import make_evaluation_policy
from gala_worker.flat import FlatState
from gala_worker.state import Counters


def make_plan(environment: str = "CartPole-v1", **spec: Any) -> RunPlan:
    document = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": "test"},
        "spec": {"environment": {"id": environment}, "learners": 3, "evaluation": {"episodes": 2}, **spec},
    }
    return plan(parse(document), uid="uid-1")


def flat_state(made: RunPlan) -> FlatState:
    simulators = make_simulators(made.spec.environment, 1)
    policy = make_evaluation_policy(made.spec, simulators)
    simulators.close()
    return FlatState(policy, policy.gossiped_buffers())


class Run:
    """A run's folder whose learners' parameters the test chooses."""

    def __init__(self, directory: Path, made: RunPlan) -> None:
        self.directory = directory
        self.plan = made
        self.flat = flat_state(made)
        self.start = self.flat.vector.clone()
        (directory / "plan.json").write_text(made.to_json())

    def learner(self, rank: int) -> Path:
        return self.directory / f"learner-{rank}"

    def export(
        self,
        rank: int,
        offset: float = 0.0,
        *,
        global_steps: int = 1000,
        plan: RunPlan | None = None,
        weight: Any = 1.0,
        record: dict[str, Any] | None = None,
    ) -> Path:
        """`record`: what the file says instead."""
        self.flat.vector.copy_(self.start + offset)
        counters = Counters(steps=global_steps, wall_seconds=60.0 + rank, progress={0: global_steps})
        made = plan or self.plan
        path = model_file.export_model(self.learner(rank), self.flat, made, rank, counters, weight=weight)
        if record is not None:
            model = model_file.load_model(path)
            model_file.save_model(path, model.tensors, model.schema_hash, made.spec, {**model.record, **record})
        return path

    def save_checkpoint(self, rank: int, offset: float, global_steps: int, *, weight: Any = 1.0) -> None:
        saved = checkpoint.Checkpoint(
            tensors={checkpoint.VECTOR: self.start + offset},
            counters={"weight": weight},
            schema_hash=self.flat.schema.hash,
            global_steps=global_steps,
        )
        checkpoint.save(self.learner(rank) / "checkpoints", saved)
