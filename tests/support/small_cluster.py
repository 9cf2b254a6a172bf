"""A cluster in which everything happens, for the state machine that `decide` is tested with."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from gala import names, status_schema
from gala.algorithms import ALGORITHMS
from gala_operator.actions import Actions
from gala_operator.decide import decide
from gala_operator.observed import LearnerProgress, Observed, ObservedChild, ObservedPod, ResultsProgress
from gala_operator.settings import OperatorSettings
from gala_operator.testing import START, run_object

ENDED = ("Succeeded", "Failed")


STATUS = status_schema.schema()
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def check(value: Any, schema: dict[str, Any], path: str = "status") -> None:
    """That an API server would take the value, and keep all of it: what it prunes would be written again and again."""
    assert isinstance(value, TYPES[schema["type"]]), path
    if isinstance(value, str):
        assert len(value) <= schema.get("maxLength", len(value)), path
        assert re.search(schema.get("pattern", ""), value), path
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), path
        for key, inner in value.items():
            check(inner, schema["properties"][key], f"{path}.{key}")
    if isinstance(value, list):
        for inner in value:
            check(inner, schema["items"], f"{path}[]")


def idle(actions: Actions) -> bool:
    """Whether nothing is to be done but to write the status."""
    return (actions.apply, actions.create, actions.delete, actions.annotate, actions.release) == ((),) * 5


class Cluster:
    """What is really there, and how the operator's actions change it."""

    def __init__(self, learners: int, min_learners: int, policy: str, limit: int, algorithm: str, volume: bool) -> None:
        self.now = START
        self.settings = OperatorSettings()
        self.limit = limit
        run_policy = {"backoffLimit": limit, "minLearners": min_learners, "cleanPodPolicy": policy}
        self.essential = ALGORITHMS[algorithm].essential
        """As a function of the number of learners."""
        checkpoint = {"volume": {"size": "1Gi"}} if volume else {}
        self.run = run_object(algorithm=algorithm, learners=learners, runPolicy=run_policy, checkpoint=checkpoint)
        self.pods: dict[str, ObservedPod] = {}
        self.children: dict[tuple[str, str], ObservedChild] = {}
        self.epochs: dict[str, int] = {}
        """Plan epoch of the worker in each pod, by uid."""
        self.finished: set[str] = set()
        """Pods whose worker is at the end of the training."""
        self.asked: set[str] = set()
        """Pods that the present operator has polled."""
        self.failures: dict[int, int] = {}
        """What really happened: failed pods of each rank."""
        self.results_state = "collecting"
        self.made = 0
        self.trace: list[str] = []

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.run.document["spec"]  # type: ignore[assignment]
        return spec

    @property
    def suspended(self) -> bool:
        return bool(self.spec["runPolicy"].get("suspend"))

    @property
    def has_ended(self) -> bool:
        return self.run.status.get("state") in ENDED

    def edit(self, change: Mapping[str, Any]) -> None:
        document = copy.deepcopy(dict(self.run.document))
        document["spec"] |= change
        self.run = dataclasses.replace(self.run, document=document, generation=self.run.generation + 1)

    def replace(self, name: str, **fields: Any) -> None:
        self.pods[name] = dataclasses.replace(self.pods[name], **fields)

    def learners(self) -> list[ObservedPod]:
        return [pod for pod in self.pods.values() if pod.rank is not None]

    def observed(self) -> Observed:
        return Observed(
            pods=tuple(self.pods.values()),
            children=tuple(self.children.values()),
            progress={
                pod.rank: self.progress(pod)
                for pod in self.learners()
                if pod.ready and pod.uid in self.asked and pod.rank is not None
            },
            results=self.results(),
        )

    def progress(self, pod: ObservedPod) -> LearnerProgress:
        assert pod.rank is not None
        return LearnerProgress(
            rank=pod.rank,
            pod_uid=pod.uid,
            state="finished" if pod.uid in self.finished else "training",
            epoch=self.epochs[pod.uid],
            steps=1000,
            global_steps=4000,
            steps_per_second=100.0,
            mean_return=1.0,
            in_peers=tuple(other.rank for other in self.learners() if other.ready and other.rank != pod.rank),  # type: ignore[misc]
        )

    def results(self) -> ResultsProgress | None:
        pod = self.pods.get("pong-results")
        if pod is None or not pod.ready or pod.uid not in self.asked:
            return None
        card = {"globalSteps": 4000, "averaged": [0], "evaluation": {"greedy": {"meanReturn": 9.5}}}
        return ResultsProgress(pod_uid=pod.uid, state=self.results_state, card=card, sha256="0" * 64)

    def carry_out(self, actions: Actions, *, dies: bool = False) -> None:
        """In the controller's order; an operator that dies does not come to write the status."""
        for manifest in actions.apply:
            metadata = manifest["metadata"]
            self.children[manifest["kind"], metadata["name"]] = ObservedChild(
                kind=manifest["kind"],
                name=metadata["name"],
                uid=metadata["name"],
                owner_uid=metadata["ownerReferences"][0]["uid"],
                annotations=metadata["annotations"],
            )
        for deletion in actions.delete:
            pod = self.pods.get(deletion.name)
            if pod is not None and pod.uid == deletion.uid:
                self.check_deletion(pod)
                self.terminate(pod)
        for manifest in actions.create:
            self.create(manifest)
        for annotation in actions.annotate:
            pod = self.pods.get(annotation.name)
            if pod is not None and pod.uid == annotation.uid:
                epoch = int(annotation.annotations[names.ANNOTATION_PLAN_EPOCH])
                assert epoch > pod.plan_epoch or epoch <= self.plan_epoch
                self.replace(pod.name, plan_epoch=max(epoch, pod.plan_epoch))
                self.epochs[pod.uid] = self.plan_epoch
        for ip in actions.release:
            for pod in self.learners():
                if pod.ip == ip and pod.phase == "Running":
                    assert self.has_ended
                    self.replace(pod.name, phase="Succeeded", ready=False, exit_code=0)
        check(actions.status, STATUS)
        if dies:
            return
        before = self.run.status
        if actions.status != before:
            if before.get("state") in ENDED:
                assert actions.status["state"] == before["state"]
                assert actions.status.get("completionTime") == before.get("completionTime")
            self.run = dataclasses.replace(self.run, status=copy.deepcopy(dict(actions.status)))

    @property
    def plan_epoch(self) -> int:
        child = self.children.get(("ConfigMap", "pong-plan"))
        return 0 if child is None else int(child.annotations[names.ANNOTATION_PLAN_EPOCH])

    def check_deletion(self, pod: ObservedPod) -> None:
        """A pod that runs is deleted by scale-down, suspension and the end, and by nothing else."""
        if pod.phase in ("Pending", "Running"):
            scaled_down = pod.rank is not None and pod.rank >= self.spec["learners"]
            assert scaled_down or self.suspended or self.has_ended, f"{pod.name} was deleted"

    def terminate(self, pod: ObservedPod) -> None:
        if pod.phase in ("Succeeded", "Failed"):
            del self.pods[pod.name]
        else:
            self.replace(pod.name, deleting=True, ready=False)

    def create(self, manifest: Mapping[str, Any]) -> None:
        metadata = manifest["metadata"]
        if self.has_ended:
            assert metadata["name"] == "pong-results", "what ended was begun again"
            assert self.spec["checkpoint"], "it has nothing to serve"
        if metadata["name"] in self.pods:
            return  # 409
        rank = metadata["labels"].get(names.LABEL_RANK)
        attempt = int(metadata["annotations"].get(names.ANNOTATION_ATTEMPT, 0))
        assert attempt <= self.limit
        self.made += 1
        self.pods[metadata["name"]] = ObservedPod(
            name=metadata["name"],
            uid=f"pod-{self.made}",
            run_uid=metadata["labels"][names.LABEL_RUN_UID],
            role=metadata["labels"][names.LABEL_ROLE],
            rank=None if rank is None else int(rank),
            attempt=attempt,
            plan_epoch=int(metadata["annotations"].get(names.ANNOTATION_PLAN_EPOCH, 0)),
            created=self.now,
            deleting=False,
            phase="Pending",
            ready=False,
            ip=None,
        )

    def kubelet(self, name: str) -> None:
        """One step in the life of a pod."""
        pod = self.pods.get(name)
        if pod is None:
            return
        if pod.deleting:
            del self.pods[name]
        elif pod.phase == "Pending":
            self.replace(name, phase="Running", ip=f"10.0.0.{self.made % 250}{len(self.pods)}{pod.uid}")
            self.epochs[pod.uid] = self.plan_epoch
        elif pod.phase == "Running":
            self.replace(name, ready=True)
            self.asked.add(pod.uid)
            self.epochs[pod.uid] = max(self.epochs[pod.uid], pod.plan_epoch)

    def end_pod(self, pod: ObservedPod, **fields: Any) -> None:
        self.replace(pod.name, phase="Failed", ready=False, finished_at=self.now, **fields)

    def settle(self) -> None:
        """Everything that is under way comes to its end."""
        for _ in range(400):
            status, pods = self.run.status, dict(self.pods)
            actions = decide(self.run, self.observed(), self.now, self.settings)
            self.carry_out(actions)
            if idle(actions) and actions.requeue_at is None:
                # The operator does not look again for the sake of its own status.
                again = decide(self.run, self.observed(), self.now, self.settings)
                assert again.status == self.run.status
                assert idle(again)
            for name in list(self.pods):
                self.kubelet(name)
            quiet = self.run.status == status and self.pods == pods
            if quiet and actions.requeue_at is None:
                return
            step = timedelta(seconds=1)
            if quiet and actions.requeue_at is not None:
                step = max(step, actions.requeue_at - self.now)
            self.now += step
        raise AssertionError(f"it does not settle: {self.run.status}")

    def check_settled(self) -> None:
        """The right state, and nothing more to do."""
        status, asked = self.run.status, self.spec["learners"]
        actions = decide(self.run, self.observed(), self.now, self.settings)
        nothing = (actions.apply, actions.create, actions.delete, actions.annotate, actions.release, actions.events)
        assert nothing == ((),) * 6
        assert actions.status == status
        assert not actions.delete_run
        if status["state"] in ENDED:
            reason = next(entry["reason"] for entry in status["conditions"] if entry["type"] == "Failed")
            out = {rank for rank in range(asked) if self.failures.get(rank, 0) > self.limit}
            if reason == "TooFewLearners":
                assert asked - len(out) < self.spec["runPolicy"]["minLearners"]
            elif reason == "EssentialLearnerFailed":
                assert out & set(self.essential(asked))
            else:
                assert self.finished
            if self.spec["runPolicy"]["cleanPodPolicy"] == "All":
                assert self.pods == {}
            assert not any(pod.phase in ("Pending", "Running") for pod in self.learners())
            return
        if self.suspended:
            assert status["state"] == "Suspended"
            assert self.pods == {}
            return
        recorded = {entry["rank"]: entry["failures"] for entry in status["learnerStatuses"]}
        assert recorded == {rank: self.failures.get(rank, 0) for rank in range(asked)}
        out = {rank for rank in range(asked) if self.failures.get(rank, 0) > self.limit}
        ready = {pod.rank for pod in self.learners() if pod.ready}
        assert ready == set(range(asked)) - out
        assert not out & set(self.essential(asked)), "the others wait for ever"
        assert status["state"] == ("Degraded" if out else "Running")
        assert status["ready"] == f"{len(ready)}/{asked}"
        assert all(pod.plan_epoch == self.plan_epoch for pod in self.learners() if pod.ready)
        assert {pod.attempt == self.failures.get(pod.rank, 0) for pod in self.learners() if pod.ready} == {True}  # type: ignore[arg-type]
        ring = next(entry for entry in status["conditions"] if entry["type"] == "RingFormed")
        assert ring["status"] == ("True" if len(ready) > 1 or asked == 1 else "False")
