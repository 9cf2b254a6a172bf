"""`decide` against a small cluster in which everything happens: hypothesis chooses what, and in which order.

The cluster has what makes real ones hard: the operator sees each kind of object as it was some writes ago, forgets all
between two passes, and is replaced by one of another version. Pods start when the kubelet gets to it, fail, are
disrupted, deleted and vanish.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gala.algorithms import ALGORITHMS
from gala_operator.decide import decide
from gala_operator.observed import Observed, ObservedPod, RunObject
from gala_operator.settings import OperatorSettings
from small_cluster import Cluster


class Life(RuleBasedStateMachine):
    """A run from its creation to whatever becomes of it."""

    @initialize(
        learners=st.integers(1, 4),
        least=st.integers(1, 2),
        policy=st.sampled_from(["None", "Running", "All"]),
        limit=st.integers(0, 2),
        algorithm=st.sampled_from(["GALA-A2C", "GALA-A2C", "A2C", "IMPALA"]),
        volume=st.booleans(),
        runs=st.booleans(),
    )
    def begin(
        self, learners: int, least: int, policy: str, limit: int, algorithm: str, volume: bool, runs: bool
    ) -> None:
        self.fewest = 1 if ALGORITHMS[algorithm].centre is None else 2
        learners = max(learners, self.fewest)
        self.cluster = Cluster(learners, min(least, learners), policy, limit, algorithm, volume)
        if runs:
            self.cluster.settle()
        self.history = [self.snapshot()]
        self.seen = [0, 0, 0]
        self.steps = 0

    def snapshot(self) -> tuple[RunObject, Observed]:
        return self.cluster.run, self.cluster.observed()

    def remember(self) -> None:
        self.steps += 1
        self.history.append(self.snapshot())

    @rule(lag=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), dies=st.booleans())
    def reconcile(self, lag: tuple[int, int, int], dies: bool) -> None:
        """A pass over what the watches have delivered so far; each of them lags for itself, and none goes back."""
        newest = len(self.history) - 1
        self.seen = [max(seen, newest - behind) for seen, behind in zip(self.seen, lag, strict=True)]
        run, pods, children = (self.history[index] for index in self.seen)
        observed = dataclasses.replace(pods[1], children=children[1].children)
        # The spec is as old as the run; what may be deleted is judged by the newest spec, so keep that in step.
        run_object = dataclasses.replace(self.cluster.run, status=run[0].status)
        actions = decide(run_object, observed, self.cluster.now, self.cluster.settings)
        self.cluster.carry_out(actions, dies=dies)
        self.remember()

    @precondition(lambda self: self.cluster.pods)
    @rule(which=st.integers(0, 4))
    def kubelet(self, which: int) -> None:
        names_ = sorted(self.cluster.pods)
        self.cluster.kubelet(names_[which % len(names_)])
        self.remember()

    @rule()
    def kubelets(self) -> None:
        for name in list(self.cluster.pods):
            self.cluster.kubelet(name)
        self.remember()

    @rule(seconds=st.sampled_from([1, 5, 10, 20, 61, 400]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.now += timedelta(seconds=seconds)

    def victims(self) -> list[ObservedPod]:
        """Learners of the plan that are at work."""
        if self.cluster.has_ended or self.cluster.suspended:
            return []
        return [
            pod
            for pod in self.cluster.learners()
            if pod.phase == "Running"
            and not pod.deleting
            and (pod.rank or 0) < self.cluster.spec["learners"]
            and pod.uid not in self.cluster.finished
        ]

    def victim(self, which: int) -> ObservedPod:
        victims = self.victims()
        return victims[which % len(victims)]

    @precondition(lambda self: self.victims() and not self.cluster.finished)
    @rule(which=st.integers(0, 1), reason=st.sampled_from(["OOMKilled", "Error"]), soon=st.booleans())
    def learner_fails(self, which: int, reason: str, soon: bool) -> None:
        """`soon` = before the watch has delivered anything else."""
        pod = self.victim(which)
        self.cluster.end_pod(pod, exit_code=137 if reason == "OOMKilled" else 1, termination_reason=reason)
        self.cluster.failures[pod.rank or 0] = self.cluster.failures.get(pod.rank or 0, 0) + 1
        self.remember()
        if not soon:
            self.reconcile((0, 0, 0), False)

    @precondition(lambda self: self.victims())
    @rule(which=st.integers(0, 3))
    def learner_is_disrupted(self, which: int) -> None:
        self.cluster.end_pod(self.victim(which), exit_code=143, termination_reason="Evicted", disrupted=True)
        self.remember()

    @precondition(lambda self: self.victims())
    @rule(which=st.integers(0, 3), vanishes=st.booleans())
    def learner_is_deleted(self, which: int, vanishes: bool) -> None:
        pod = self.victim(which)
        if vanishes:
            del self.cluster.pods[pod.name]
        else:
            self.cluster.terminate(pod)
        self.remember()

    @precondition(lambda self: not self.cluster.finished)
    @rule()
    def quiet_time(self) -> None:
        """Long enough for everything to come right."""
        self.cluster.settle()
        self.cluster.check_settled()
        self.remember()
        self.seen = [len(self.history) - 1] * 3

    @precondition(lambda self: "pong-results" in self.cluster.pods)
    @rule(fails=st.booleans())
    def results_pod_dies(self, fails: bool) -> None:
        pod = self.cluster.pods["pong-results"]
        if pod.phase == "Running" and not pod.deleting:
            self.cluster.end_pod(pod, exit_code=1, termination_reason="Error", disrupted=not fails)
            self.remember()

    @precondition(lambda self: "pong-results" in self.cluster.pods)
    @rule()
    def results_pod_vanishes(self) -> None:
        del self.cluster.pods["pong-results"]
        self.remember()

    def see_everything(self) -> None:
        """A pass without any lag."""
        self.remember()
        self.reconcile((0, 0, 0), False)

    @precondition(lambda self: not self.cluster.finished and not self.cluster.has_ended)
    @rule(learners=st.integers(1, 4))
    def scale(self, learners: int) -> None:
        learners = max(learners, self.cluster.spec["runPolicy"]["minLearners"], self.fewest)
        self.cluster.edit({"learners": learners})
        if not self.cluster.suspended:
            for rank in list(self.cluster.failures):
                if rank >= learners:
                    del self.cluster.failures[rank]
        self.see_everything()

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        if suspend != self.cluster.suspended:
            self.cluster.edit({"runPolicy": {**self.cluster.spec["runPolicy"], "suspend": suspend}})
            self.see_everything()
            if suspend and not self.cluster.has_ended:
                self.cluster.failures.clear()
                self.cluster.finished.clear()

    @rule(total=st.sampled_from([10_000, 20_000]))
    def more_steps(self, total: int) -> None:
        self.cluster.edit({"totalSteps": total})
        self.remember()

    @rule(version=st.integers(1, 3))
    def operator_is_replaced(self, version: int) -> None:
        """By one of another version, which has asked nobody yet, and at first sees what is there."""
        self.cluster.settings = OperatorSettings(worker_image=f"worker:{version}", monitoring_namespace=f"m{version}")
        self.cluster.asked.clear()
        self.remember()
        self.seen = [len(self.history) - 1] * 3

    @rule()
    def operator_asks(self) -> None:
        self.cluster.asked |= {pod.uid for pod in self.cluster.pods.values() if pod.ready}
        self.remember()

    @precondition(lambda self: any(pod.ready for pod in self.victims()))
    @rule(which=st.integers(0, 3))
    def learner_finishes(self, which: int) -> None:
        if self.steps > 12:
            pod = self.victim(which)
            if pod.ready:
                self.cluster.finished.add(pod.uid)
                self.remember()

    @precondition(lambda self: self.cluster.finished)
    @rule(state=st.sampled_from(["collecting", "ready", "failed"]))
    def results(self, state: str) -> None:
        self.cluster.results_state = state
        self.remember()

    @invariant()
    def failures_are_never_counted_twice(self) -> None:
        if self.cluster.suspended or self.cluster.has_ended or self.cluster.finished:
            return
        for entry in self.cluster.run.status.get("learnerStatuses", ()):
            assert entry["failures"] <= self.cluster.failures.get(entry["rank"], 0)

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.asked |= {pod.uid for pod in cluster.pods.values() if pod.ready}
        if cluster.finished:
            # All who can reach the end do.
            cluster.results_state = "ready"
        cluster.settle()
        cluster.asked |= {pod.uid for pod in cluster.pods.values() if pod.ready}
        cluster.settle()
        if not cluster.finished or cluster.has_ended:
            cluster.check_settled()
        before = {pod.uid for pod in cluster.learners() if pod.phase == "Running"}
        cluster.settings = OperatorSettings(worker_image="worker:another")
        cluster.settle()
        assert {pod.uid for pod in cluster.learners() if pod.phase == "Running"} == before


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=100, stateful_step_count=40, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
TestLife = pytest.mark.timeout(240)(TestLife)  # type: ignore[assignment, misc]
