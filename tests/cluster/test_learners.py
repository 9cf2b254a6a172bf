"""A learner ends, for every reason there is: it comes back under its name, and the others do not notice."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from live_cluster import PATIENCE_SECONDS

RUN = "pole"


@dataclass
class Ring:
    """The run's learners at one time, to be compared with later."""

    namespace: Any
    uids: dict[int, str] = field(init=False)
    steps: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        pods = self.namespace.pods(RUN)
        self.uids = {int(pod["metadata"]["labels"]["gala.dev/rank"]): pod["metadata"]["uid"] for pod in pods.values()}
        self.steps = self.now()

    def now(self) -> dict[int, int]:
        """Each learner's steps as the status has them."""
        return {entry["rank"]: entry.get("steps", 0) for entry in self.namespace.status(RUN)["learnerStatuses"]}

    def untouched(self, *ranks: int) -> None:
        """Their pods are the same, have never restarted, and go on learning."""
        pods = self.namespace.pods(RUN)
        for rank in ranks:
            pod = pods[f"{RUN}-{rank}"]
            assert pod["metadata"]["uid"] == self.uids[rank], f"{RUN}-{rank} was replaced"
            assert [status["restartCount"] for status in pod["status"]["containerStatuses"]] == [0]
        at_least = self.now()
        self.namespace.wait(
            "galaruns",
            RUN,
            lambda found: all(
                entry.get("steps", 0) > max(self.steps[entry["rank"]], at_least[entry["rank"]])
                for entry in found["status"]["learnerStatuses"]
                if entry["rank"] in ranks
            ),
            what=f"the steps of {ranks} rise beyond {at_least}",
        )

    def replaced(self, rank: int) -> str:
        """It has another pod under its name, which is ready and began with a neighbour's state; its log."""
        name = f"{RUN}-{rank}"
        self.namespace.wait_replaced(name, self.uids[rank])
        log: str = self.namespace.kubectl("logs", name)
        assert "joined at " in log, log
        # Of its own steps no more than some seconds' are lost, although it has no volume.
        self.namespace.wait(
            "galaruns",
            RUN,
            lambda found: found["status"]["learnerStatuses"][rank].get("steps", 0) >= self.steps[rank],
            what=f"{name} has the {self.steps[rank]} steps of its former life",
        )
        return log


@pytest.mark.usefixtures("operator")
@pytest.mark.timeout(600, func_only=True)
def test_a_learner_that_ends_for_whatever_reason_is_replaced_and_the_others_go_on(namespace, slow_pole):
    namespace.apply(slow_pole(RUN, learners=3))
    namespace.wait_condition(RUN, "RingFormed", "Formed", 120)
    namespace.wait_state(RUN, "Running")
    first = namespace.status(RUN)["steps"]
    namespace.wait("galaruns", RUN, lambda found: found["status"]["steps"] > first, what="steps rise in the status")

    def loses(rank: int, end: Callable[[], object], seen: Callable[[dict[str, Any]], Any] | None = None) -> int:
        """The learner's failures afterwards."""
        before = Ring(namespace)
        end()
        if seen is not None:
            namespace.wait(
                "galaruns", RUN, lambda found: seen(found["status"]), what=f"the end of {rank} in the status"
            )
        before.replaced(rank)
        before.untouched(*({0, 1, 2} - {rank}))
        status = namespace.wait_state(RUN, "Running")
        failures: int = status["learnerStatuses"][rank]["failures"]
        return failures

    def degraded_by(*reasons: str) -> Callable[[dict[str, Any]], bool]:
        def seen(status: dict[str, Any]) -> bool:
            pods_ready = next(c for c in status["conditions"] if c["type"] == "PodsReady")
            degraded = (status["state"], pods_ready["status"]) == ("Degraded", "False")
            return degraded and pods_ready["reason"] in reasons

        return seen

    # Deleted by somebody.
    assert loses(0, lambda: namespace.kubectl("delete", "pod", f"{RUN}-0", "--wait=false")) == 0

    # Its process is killed on the node.
    def kill() -> None:
        [container] = namespace.get("pods", f"{RUN}-1")["status"]["containerStatuses"]
        container_id = container["containerID"].removeprefix("containerd://")
        namespace.cluster.enter("ctr", "task", "kill", "--signal", "SIGKILL", container_id)

    assert loses(1, kill, degraded_by("Error")) == 1
    last = namespace.status(RUN)["learnerStatuses"][1]["lastFailure"]
    assert "exit code 137 (SIGKILL)" in last["message"]

    # It takes more memory than its limit.
    def take_memory() -> None:
        namespace.kubectl("exec", f"{RUN}-2", "--", "touch", "/tmp/take-memory")

    # Old versions of containerd sometimes tell of the end before they know its cause (containerd's issue 8180).
    assert loses(2, take_memory, degraded_by("OOMKilled", "Error")) == 1
    last = namespace.status(RUN)["learnerStatuses"][2]["lastFailure"]
    assert last["reason"] == "OOMKilled" or "exit code 137" in last["message"], last

    # The kubelet evicts it, because a volume of its holds more than it may.
    def fill_volume() -> None:
        namespace.kubectl("exec", f"{RUN}-1", "--", "dd", "if=/dev/zero", "of=/scratch/full", "bs=1M", "count=8")

    assert loses(1, fill_volume, degraded_by("CrashLoopBackOff")) == 2, "its own use of storage is its own fault"
    last = namespace.status(RUN)["learnerStatuses"][1]["lastFailure"]
    assert last["reason"] == "Evicted"
    assert "exceeds the limit" in last["message"]

    # Its node is drained; one learner at a time, and it comes back when the node does.
    before = Ring(namespace)
    node = namespace.get("pods", f"{RUN}-2")["spec"]["nodeName"]
    first = f"--pod-selector=gala.dev/run={RUN},gala.dev/rank=0"
    try:
        namespace.cluster.kubectl("drain", node, first, "--delete-emptydir-data", f"--timeout={PATIENCE_SECONDS:g}s")
        stuck = namespace.wait_condition(RUN, "PodsReady", "Unschedulable")
        assert stuck["message"].startswith(f"{RUN}-0: ")
        assert namespace.status(RUN)["state"] == "Degraded"
        refused = evict(namespace, f"{RUN}-1")
        assert "disruption budget" in refused
    finally:
        namespace.cluster.kubectl("uncordon", node)
    before.replaced(0)
    before.untouched(1, 2)
    assert [entry["failures"] for entry in namespace.status(RUN)["learnerStatuses"]] == [0, 2, 1]


def test_a_learner_that_fails_too_often_is_left_out_and_the_run_fails_with_too_few(namespace, slow_pole, make_operator):
    make_operator(RESTART_SECONDS="4").start()
    namespace.apply(slow_pole(RUN, env={"BREAKS": "1"}, runPolicy={"backoffLimit": 2}))

    looping = namespace.wait_condition(RUN, "PodsReady", "CrashLoopBackOff", 150)
    assert looping["message"].startswith(f"{RUN}-1 restarts after 2 failures (limit 2)")
    assert "RuntimeError: the pole broke" in looping["message"]
    failed_at = parsed(namespace.status(RUN)["learnerStatuses"][1]["lastFailure"]["time"])
    last = namespace.wait(
        "pods", f"{RUN}-1", lambda pod: pod if pod["metadata"]["annotations"]["gala.dev/attempt"] == "2" else None
    )
    assert (parsed(last["metadata"]["creationTimestamp"]) - failed_at).total_seconds() >= 4, "no back-off"

    left_out = namespace.wait_condition(RUN, "PodsReady", "BackoffLimitExceeded")
    assert left_out["message"].startswith(f"{RUN}-1 is left out after 3 failures")
    before = Ring(namespace)
    before.untouched(0)
    status = namespace.status(RUN)
    assert (status["state"], status["ready"]) == ("Degraded", "1/2")
    assert [(entry["state"], entry["failures"]) for entry in status["learnerStatuses"]] == [
        ("training", 0),
        ("failed", 3),
    ]
    assert "the pole broke" in namespace.kubectl("logs", f"{RUN}-1"), "its pod is kept for its log"
    assert namespace.get("pods", f"{RUN}-1")["metadata"]["uid"] == last["metadata"]["uid"]

    namespace.patch(RUN, runPolicy={"minLearners": 2})
    namespace.wait_condition(RUN, "Failed", "TooFewLearners")
    assert namespace.status(RUN)["state"] == "Failed"
    namespace.wait("galaruns", RUN, lambda _: list(namespace.pods(RUN)) == [f"{RUN}-1"], what="the learner is stopped")


def parsed(time: str) -> datetime:
    return datetime.fromisoformat(time)


def evict(namespace: Any, pod: str) -> str:
    """Asks the Eviction API; what it answers."""
    versions = json.loads(namespace.kubectl("get", "--raw", "/apis/policy"))["versions"]
    version = versions[0]["groupVersion"]
    document = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace.name}}
    path = f"{namespace.path('pods')}/{pod}/eviction"
    answer: str = namespace.cluster.run(
        "sh", "-c", f"kubectl create --raw {path} -f - 2>&1 || true", stdin=json.dumps(document)
    )
    return answer
