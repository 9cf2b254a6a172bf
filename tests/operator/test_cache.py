"""Slim records of what the cluster has, and the parsing of whatever it delivers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gala_operator import records
from gala_operator.cache import Cache
from gala_operator.observed import LearnerProgress
from gala_operator.testing import RUN_UID as UID
from gala_operator.testing import child_raw, pod_raw, run_raw

KEY = ("lab", "pong")


def progress(rank: int) -> LearnerProgress:
    return LearnerProgress(
        rank=rank, pod_uid="u", state="training", epoch=0, steps=1, global_steps=2, steps_per_second=3.0
    )


def test_a_run_its_pods_and_its_children_come_together_under_its_key() -> None:
    cache = Cache()
    assert cache.put("GalaRun", run_raw()) == KEY
    assert cache.put("Pod", pod_raw(0)) == KEY
    assert cache.put("Pod", pod_raw(1)) == KEY
    assert cache.put("Service", child_raw("Service")) == KEY
    assert cache.put("Pod", pod_raw(0, run="other", uid="x")) == ("lab", "other")
    observed = cache.observed(KEY)
    assert {pod.rank for pod in observed.pods} == {0, 1}
    assert [child.kind for child in observed.children] == ["Service"]
    assert cache.has_child(KEY, "Service", "pong")
    assert cache.all_keys() == {KEY, ("lab", "other")}
    run = cache.run(KEY)
    assert run is not None
    assert run.uid == UID
    assert "managedFields" not in run.document["metadata"]


def test_an_older_version_does_not_replace_a_newer_one() -> None:
    cache = Cache()
    cache.put("Pod", pod_raw(version=10, phase="Running"))
    cache.put("Pod", pod_raw(version=9, phase="Pending"))
    assert cache.observed(KEY).pods[0].phase == "Running"
    cache.put("Pod", pod_raw(version=11, phase="Failed"))
    assert cache.observed(KEY).pods[0].phase == "Failed"


def test_the_end_of_a_pod_does_not_remove_its_successor_of_the_same_name() -> None:
    cache = Cache()
    cache.put("Pod", pod_raw(uid="first", version=1))
    cache.put("Pod", pod_raw(uid="second", version=3))
    assert cache.remove("Pod", pod_raw(uid="first", version=2)) == KEY
    assert [pod.uid for pod in cache.observed(KEY).pods] == ["second"]


def test_a_removed_object_does_not_come_back_with_a_late_answer() -> None:
    cache = Cache()
    cache.remove("Pod", pod_raw(uid="first", version=5))
    cache.put("Pod", pod_raw(uid="first", version=4))
    assert cache.observed(KEY).pods == ()
    assert cache.is_gone("first")


def test_a_pod_whose_label_is_taken_away_and_given_back_is_seen_again() -> None:
    cache = Cache()
    cache.put("Pod", pod_raw(version=4))
    # To a watch with a selector it is deleted, at the version that has no label any more.
    cache.remove("Pod", pod_raw(version=5))
    for late in (4, 5):
        assert cache.put("Pod", pod_raw(version=late)) == KEY
        assert cache.observed(KEY).pods == ()
    assert cache.put("Pod", pod_raw(version=6, phase="Running")) == KEY
    assert [pod.phase for pod in cache.observed(KEY).pods] == ["Running"]
    assert not cache.is_gone("pod-pong-0")
    cache.remove("Pod", pod_raw(version=7))
    assert cache.observed(KEY).pods == ()


def test_a_pod_that_was_deleted_by_ourselves_does_not_come_back_with_any_version() -> None:
    cache = Cache()
    cache.put("Pod", pod_raw(version=4))
    assert cache.remove_uid("Pod", ("lab", "pong-0"), "pod-pong-0") == KEY
    cache.put("Pod", pod_raw(version=6))
    assert cache.observed(KEY).pods == ()


def test_a_deleted_run_takes_its_progress_along_and_a_successor_starts_without() -> None:
    cache = Cache()
    cache.put("GalaRun", run_raw())
    cache.put("Pod", pod_raw())
    cache.put_progress(KEY, progress(0))
    assert cache.observed(KEY).progress[0].steps == 1
    cache.put("GalaRun", run_raw(uid="another", version=2))
    assert cache.observed(KEY).progress == {}
    cache.put_progress(KEY, progress(0))
    cache.remove("GalaRun", run_raw(uid="another", version=3))
    assert cache.run(KEY) is None
    assert cache.observed(KEY).progress == {}
    assert len(cache.observed(KEY).pods) == 1, "the garbage collector has not come by yet"


def test_nothing_is_kept_of_a_run_of_which_nothing_is_left() -> None:
    cache = Cache()
    cache.put("GalaRun", run_raw())
    cache.put("Pod", pod_raw())
    cache.remove("GalaRun", run_raw())
    cache.remove("Pod", pod_raw())
    assert cache.all_keys() == set()
    assert cache._families == {}


def test_progress_of_an_unknown_run_is_not_kept() -> None:
    cache = Cache()
    cache.put_progress(KEY, progress(0))
    assert cache.all_keys() == set()


def test_a_pod_that_loses_its_label_is_let_go() -> None:
    cache = Cache()
    cache.put("Pod", pod_raw(version=1))
    stripped = pod_raw(version=2)
    del stripped["metadata"]["labels"]["gala.dev/run"]
    assert cache.put("Pod", stripped) == KEY
    assert cache.observed(KEY).pods == ()


def test_a_pod_that_becomes_ours_and_then_is_not_any_more_is_known_throughout() -> None:
    cache = Cache()
    stripped = pod_raw(version=1)
    del stripped["metadata"]["labels"]["gala.dev/role"]
    assert cache.put("Pod", stripped) is None
    assert cache.versions("Pod") == {"pod-pong-0": (("lab", "pong-0"), "1")}
    assert cache.put("Pod", pod_raw(version=2)) == KEY
    assert len(cache.observed(KEY).pods) == 1
    assert cache.put("Pod", stripped) == KEY
    assert len(cache.observed(KEY).pods) == 1, "an answer from before is no news"
    stripped["metadata"]["resourceVersion"] = "3"
    assert cache.put("Pod", stripped) == KEY
    assert cache.observed(KEY).pods == ()
    assert cache.versions("Pod") == {"pod-pong-0": (("lab", "pong-0"), "3")}
    cache.remove("Pod", stripped)
    assert cache.versions("Pod") == {}
    assert cache.all_keys() == set()


def test_a_snapshot_does_not_change_afterwards() -> None:
    cache = Cache()
    cache.put("GalaRun", run_raw())
    cache.put_progress(KEY, progress(0))
    before = cache.observed(KEY)
    cache.put_progress(KEY, progress(1))
    assert set(before.progress) == {0}


def test_of_a_long_last_log_its_end_is_kept() -> None:
    # The kubelet hands over up to 2048 bytes, and the error itself is on the last line.
    ended = {"exitCode": 1, "reason": "Error", "message": "x" * records.MAX_MESSAGE + "\nRuntimeError: why"}
    pod = records.pod(
        pod_raw(1, phase="Failed", containerStatuses=[{"name": "learner", "state": {"terminated": ended}}])
    )
    assert pod is not None
    assert pod.termination_message is not None
    assert pod.termination_message.endswith("RuntimeError: why")
    assert len(pod.termination_message) == records.MAX_MESSAGE


def test_a_pod_is_read_in_full() -> None:
    pod = records.pod(
        pod_raw(
            1,
            phase="Failed",
            podIP="10.0.0.7",
            conditions=[{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
            containerStatuses=[
                {
                    "name": "learner",
                    "state": {
                        "terminated": {
                            "exitCode": 137,
                            "reason": "OOMKilled",
                            "message": "the last line",
                            "finishedAt": "2026-11-22T18:05:00Z",
                        }
                    },
                }
            ],
        )
    )
    assert pod is not None
    assert (pod.rank, pod.attempt, pod.plan_epoch, pod.run_uid) == (1, 2, 3, UID)
    assert (pod.phase, pod.ready, pod.ip) == ("Failed", False, "10.0.0.7")
    assert (pod.exit_code, pod.termination_reason, pod.termination_message) == (137, "OOMKilled", "the last line")
    assert pod.finished_at is not None
    assert not pod.disrupted
    assert pod.scheduling_problem is None


LEARNER_KILLED = {"name": "learner", "state": {"terminated": {"exitCode": 137}}}


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"phase": "Failed", "reason": "Evicted"}, id="evicted"),
        pytest.param(
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage. "},
            id="evicted since the node is short of storage",
        ),
        pytest.param({"phase": "Failed", "reason": "NodeShutdown"}, id="node shutdown"),
        pytest.param(
            {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}, id="condition"
        ),
        pytest.param(
            {"phase": "Failed", "reason": "Evicted", "containerStatuses": [LEARNER_KILLED]}, id="evicted while it ran"
        ),
        pytest.param({"phase": "Failed", "reason": "TopologyAffinityError"}, id="refused by its node"),
        pytest.param(
            {
                "phase": "Failed",
                "reason": "OutOfexample.com/fpga",
                "containerStatuses": [{"name": "learner", "state": {"waiting": {}}, "lastState": {}}],
            },
            id="refused for any resource",
        ),
    ],
)
def test_a_pod_that_the_cluster_ended_is_disrupted(status: dict[str, Any]) -> None:
    pod = records.pod(pod_raw(0, **status))
    assert pod is not None
    assert pod.disrupted


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"conditions": [{"type": "DisruptionTarget", "status": "False"}]}, id="condition is false"),
        pytest.param({"containerStatuses": [LEARNER_KILLED]}, id="killed"),
        pytest.param({"reason": "Odd", "containerStatuses": [LEARNER_KILLED]}, id="started, whatever the reason"),
        pytest.param({"reason": "Odd", "containerStatuses": [{"lastState": {"terminated": {}}}]}, id="started before"),
        pytest.param({"reason": "Odd", "initContainerStatuses": [LEARNER_KILLED]}, id="an init container failed"),
        pytest.param({"reason": "DeadlineExceeded"}, id="out of time before it started"),
        pytest.param(
            {"reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '},
            id="evicted for what is in its volume",
        ),
        pytest.param(
            {
                "reason": "Evicted",
                "message": "Pod ephemeral local storage usage exceeds the total limit of containers.",
            },
            id="evicted for what the pod stores",
        ),
        pytest.param(
            {"reason": "Evicted", "message": 'Container learner exceeded its local ephemeral storage limit "1Gi". '},
            id="evicted for what the container stores",
        ),
    ],
)
def test_a_pod_that_fails_by_itself_is_not_disrupted(status: dict[str, Any]) -> None:
    pod = records.pod(pod_raw(0, phase="Failed", **status))
    assert pod is not None
    assert not pod.disrupted


PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}
LAST_WORDS = {"name": "learner", "state": {"terminated": {"exitCode": 143, "reason": "Error", "message": "step 7"}}}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        pytest.param({"reason": "Evicted", "message": "low on memory"}, "Evicted", "low on memory", id="the kubelet"),
        pytest.param({"conditions": [PREEMPTED]}, "PreemptionByScheduler", "preempting", id="the scheduler"),
        pytest.param({"reason": "NodeLost"}, "NodeLost", None, id="nobody"),
        pytest.param({}, "Error", "step 7", id="itself"),
    ],
)
def test_who_has_ended_a_pod_says_why(status: dict[str, Any], reason: str, message: str | None) -> None:
    pod = records.pod(pod_raw(0, phase="Failed", containerStatuses=[LAST_WORDS], **status))
    assert pod is not None
    assert (pod.termination_reason, pod.termination_message) == (reason, message)


def containers(**states: dict[str, Any]) -> list[dict[str, Any]]:
    """In the order of the kubelet."""
    return [{"name": name.replace("_", "-"), "state": states[name]} for name in sorted(states)]


def ended_with(code: int) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "message": "last words"}}


def test_the_learner_s_own_container_tells_and_not_a_sidecar_s() -> None:
    statuses = containers(istio_proxy={"running": {}}, learner={"waiting": {"reason": "ErrImagePull"}})
    pod = records.pod(pod_raw(0, phase="Pending", containerStatuses=statuses))
    assert pod is not None
    assert (pod.phase, pod.waiting_reason, pod.lingering) == ("Pending", "ErrImagePull", False)


def test_the_results_pod_s_own_container_tells_and_not_a_sidecar_s() -> None:
    statuses = containers(a_sidecar={"running": {}}, learner={"running": {}}, results=ended_with(1))
    raw = pod_raw(0, phase="Running", containerStatuses=statuses)
    raw["metadata"]["labels"]["gala.dev/role"] = "results"
    del raw["metadata"]["labels"]["gala.dev/rank"]
    pod = records.pod(raw)
    assert pod is not None
    assert (pod.phase, pod.exit_code) == ("Failed", 1)


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (1, "Failed"), (137, "Failed")])
def test_a_pod_whose_learner_has_ended_has_ended_though_a_sidecar_goes_on(code: int, phase: str) -> None:
    statuses = containers(istio_proxy={"running": {}}, learner=ended_with(code))
    pod = records.pod(pod_raw(0, phase="Running", containerStatuses=statuses))
    assert pod is not None
    assert (pod.phase, pod.exit_code, pod.lingering) == (phase, code, True)
    assert pod.termination_message == "last words"
    assert not pod.disrupted


def test_how_a_pod_has_ended_of_which_no_container_is_left_is_the_kubelet_s_to_say() -> None:
    # It reports the containers of an evicted pod as ended before it says that the pod was evicted.
    statuses = containers(istio_proxy=ended_with(0), learner=ended_with(137))
    pod = records.pod(pod_raw(0, phase="Running", containerStatuses=statuses))
    assert pod is not None
    assert (pod.phase, pod.lingering) == ("Running", False)


def test_the_end_of_a_sidecar_is_not_the_learner_s() -> None:
    statuses = containers(istio_proxy=ended_with(1), learner={"running": {}})
    pod = records.pod(pod_raw(0, phase="Running", containerStatuses=statuses))
    assert pod is not None
    assert (pod.phase, pod.exit_code, pod.lingering) == ("Running", None, False)


def test_the_scheduler_and_the_kubelet_are_quoted() -> None:
    pod = records.pod(
        pod_raw(
            0,
            conditions=[
                {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient nvidia.com/gpu"}
            ],
            containerStatuses=[
                {"name": "learner", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}}}
            ],
        )
    )
    assert pod is not None
    assert pod.scheduling_problem == "0/1 nodes: Insufficient nvidia.com/gpu"
    assert (pod.waiting_reason, pod.waiting_message) == ("ErrImagePull", "no such host")


@pytest.mark.parametrize("rank", ["", "-1", "1.5", "٣", "99999", "1024", None, 3])
def test_a_pod_with_a_foreign_rank_is_not_ours(rank: Any) -> None:
    raw = pod_raw()
    raw["metadata"]["labels"]["gala.dev/rank"] = rank
    assert records.pod(raw) is None


def test_a_child_says_who_owns_it_and_carries_only_our_annotations() -> None:
    child = records.child("Service", child_raw("Service"))
    assert child is not None
    assert child.owner_uid == UID
    assert dict(child.annotations) == {"gala.dev/manifest-hash": "abc"}
    foreign = child_raw("Service")
    foreign["metadata"]["ownerReferences"] = [{"kind": "Deployment", "uid": "x"}]
    record = records.child("Service", foreign)
    assert record is not None
    assert record.owner_uid is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
STATUS_KEYS = st.sampled_from(
    ["phase", "reason", "podIP", "conditions", "containerStatuses", "initContainerStatuses", "message"]
)


@given(status=st.dictionaries(STATUS_KEYS, JSON), labels=JSON, annotations=JSON, extra=JSON)
def test_no_object_that_a_cluster_may_deliver_raises(status: Any, labels: Any, annotations: Any, extra: Any) -> None:
    cache = Cache()
    for kind in ("GalaRun", "Pod", "Service"):
        raw = {"metadata": {**pod_raw()["metadata"], "annotations": annotations}, "status": status, "spec": extra}
        cache.put(kind, raw)
        cache.remove(kind, raw)
        raw["metadata"]["labels"] = labels
        cache.put(kind, raw)
        cache.put(kind, {"metadata": extra})
        cache.observed(KEY)
