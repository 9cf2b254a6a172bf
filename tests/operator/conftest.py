"""A run for tests of `decide`: what is observed of it, one call away from what is to be done about it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from gala import names
from gala_operator.actions import Actions
from gala_operator.decide import decide
from gala_operator.observed import LearnerProgress, Observed, ObservedChild, ObservedPod, ResultsProgress
from gala_operator.settings import OperatorSettings
from gala_operator.testing import START, run_object


class Scene:
    """A run called pong. Times are seconds since its creation."""

    def __init__(self, **spec: Any) -> None:
        self.settings = OperatorSettings()
        self.run = run_object(**{"learners": 3, **spec})
        self.pods: dict[str, ObservedPod] = {}
        self.children: dict[str, ObservedChild] = {}
        self.progress: dict[int, LearnerProgress] = {}
        self.results: ResultsProgress | None = None
        self.seconds = 0.0

    @property
    def status(self) -> Mapping[str, Any]:
        return self.run.status

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def at(self, seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    def condition(self, type_: str) -> dict[str, Any]:
        return next((entry for entry in self.status["conditions"] if entry["type"] == type_), {})

    def entry(self, rank: int) -> dict[str, Any]:
        return next(entry for entry in self.status["learnerStatuses"] if entry["rank"] == rank)

    def edit(self, **spec: Any) -> None:
        """Another generation of the spec."""
        document = copy.deepcopy(dict(self.run.document))
        document["spec"] |= spec
        self.run = dataclasses.replace(self.run, document=document, generation=self.run.generation + 1)

    def pod(self, rank: int | None, **fields: Any) -> ObservedPod:
        """Changes a pod, or makes one that is running and ready."""
        name = "pong-results" if rank is None else f"pong-{rank}"
        if name in self.pods:
            self.pods[name] = dataclasses.replace(self.pods[name], **fields)
            return self.pods[name]
        defaults: dict[str, Any] = {
            "name": name,
            "uid": f"uid-{name}",
            "run_uid": self.run.uid,
            "role": names.ROLE_RESULTS if rank is None else names.ROLE_ACTOR_LEARNER,
            "rank": rank,
            "attempt": 0,
            "plan_epoch": int(self.status.get("epoch", 0)),
            "created": self.now,
            "deleting": False,
            "phase": "Running",
            "ready": True,
            "ip": f"10.0.0.{200 if rank is None else rank}",
        }
        self.pods[name] = ObservedPod(**{**defaults, **fields})
        return self.pods[name]

    def fail(self, rank: int | None, **fields: Any) -> ObservedPod:
        """Its pod has failed by itself."""
        how = {"exit_code": 1, "termination_reason": "Error", "termination_message": "Traceback\nValueError: no"}
        return self.pod(rank, **{"phase": "Failed", "ready": False, "finished_at": self.now, **how, **fields})

    def answer(self, rank: int, **fields: Any) -> None:
        """The learner's answer to /status."""
        defaults: dict[str, Any] = {
            "rank": rank,
            "pod_uid": self.pods[f"pong-{rank}"].uid,
            "state": "training",
            "epoch": int(self.status.get("epoch", 0)),
            "steps": 100,
            "global_steps": 300,
            "steps_per_second": 10.0,
            "mean_return": 1.0,
            "in_peers": (0,),
        }
        self.progress[rank] = LearnerProgress(**{**defaults, **fields})

    def answer_results(self, state: str = "ready", score: float | None = 9.5, message: str = "") -> None:
        """The results pod's."""
        card = {"globalSteps": 300, "averaged": [0, 1, 2], "evaluation": {"greedy": {"meanReturn": score}}}
        self.results = ResultsProgress(
            pod_uid=self.pods["pong-results"].uid, state=state, message=message, card=card, sha256="ab" * 32
        )

    def decide(self, after: float = 0.0) -> Actions:
        """What is to be done, so many seconds later. Nothing of it is carried out."""
        self.seconds += after
        observed = Observed(
            pods=tuple(self.pods.values()),
            children=tuple(self.children.values()),
            progress=self.progress,
            results=self.results,
        )
        return decide(self.run, observed, self.now, self.settings)

    def step(self, after: float = 0.0) -> Actions:
        """Likewise; children and status are then as decided, pods are not."""
        actions = self.decide(after)
        for manifest in actions.apply:
            metadata = manifest["metadata"]
            self.children[f"{manifest['kind']}/{metadata['name']}"] = ObservedChild(
                kind=manifest["kind"],
                name=metadata["name"],
                uid=metadata["name"],
                owner_uid=metadata["ownerReferences"][0]["uid"],
                annotations=metadata["annotations"],
            )
        self.run = dataclasses.replace(self.run, status=copy.deepcopy(dict(actions.status)))
        return actions

    def start(self) -> Scene:
        """All learners are ready and hear each other."""
        self.step()
        for rank in range(self.run.document["spec"]["learners"]):
            self.pod(rank)
            self.answer(rank)
        self.step(after=20)
        return self

    def finish(self) -> Scene:
        """All learners have finished, and the results pod is at work."""
        for rank in range(self.run.document["spec"]["learners"]):
            self.answer(rank, state="finished")
        self.step()
        self.pod(None)
        self.step()
        return self

    def end(self) -> Scene:
        """The run has succeeded."""
        self.finish()
        self.answer_results()
        self.step()
        return self


def idle(actions: Actions) -> bool:
    """Whether nothing is to be done to anything but the status."""
    return (actions.apply, actions.create, actions.delete, actions.annotate, actions.release) == ((),) * 5


@pytest.fixture
def scene() -> Callable[..., Scene]:
    """Makes a run; keyword arguments are fields of its spec."""
    return Scene
