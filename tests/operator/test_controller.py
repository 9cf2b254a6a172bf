"""The controller: what decide says is carried out in order, once, and nothing else."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller_world import KEY, NOW, STATUS, World, labelled
from gala_operator.actions import Actions, AnnotatePod, DeletePod, RunEvent
from gala_operator.cluster import ApiError
from gala_operator.controller import CHANGED_SECONDS, NameTakenError
from gala_operator.observed import Observed, RunObject
from gala_operator.patches import merge_patch, without_nulls
from gala_operator.testing import child_raw, merged, pod_raw, run_raw


def test_actions_are_carried_out_in_the_order_of_the_contract() -> None:
    actions = Actions(
        apply=(labelled(child_raw("Service")), labelled(child_raw("ConfigMap", "pong-plan"))),
        delete=(DeletePod(name="pong-3", uid="pod-pong-3"),),
        create=(labelled(pod_raw(0)),),
        annotate=(AnnotatePod(name="pong-1", uid="pod-pong-1", annotations={"gala.dev/plan-epoch": "4"}),),
        release=("10.0.0.9",),
        status=STATUS,
        events=(RunEvent(type="Normal", reason="Created", message="2 learners"),),
        poll=True,
    )
    world = World(lambda run, observed: actions)
    world.see(run_raw())
    world.see(child_raw("Service"))
    world.see(pod_raw(1))
    world.see(pod_raw(3))
    assert world.reconcile() is None
    verbs = [(verb, resource) for verb, resource, _ in world.cluster.writes]
    assert verbs == [
        ("apply", "Service"),
        ("create", "ConfigMap"),
        ("delete", "Pod"),
        ("create", "Pod"),
        ("patch", "Pod"),
        ("patch", "GalaRun/status"),
        ("create", "Event"),
    ]
    assert world.workers.released == ["10.0.0.9"]
    assert world.workers.watched == {KEY: True}
    assert world.results() == {"success": 1, "error": 0}


def test_what_was_written_is_known_at_once_without_waiting_for_the_watch() -> None:
    seen: list[Observed] = []

    def decide(run: RunObject, observed: Observed) -> Actions:
        seen.append(observed)
        if observed.children:
            return Actions(status=STATUS)
        return Actions(
            apply=(labelled(child_raw("Service")),),
            create=tuple(labelled(pod_raw(rank)) for rank in range(2)),
            status=STATUS,
        )

    world = World(decide)
    world.see(run_raw())
    world.reconcile()
    writes = len(world.cluster.writes)
    world.reconcile()
    assert [pod.name for pod in seen[1].pods] == ["pong-0", "pong-1"]
    assert len(world.cluster.writes) == writes


def test_the_steady_state_makes_no_request_at_all() -> None:
    world = World(lambda run, observed: Actions(status=STATUS, poll=True))
    world.see(run_raw(status=dict(STATUS)))
    world.see(pod_raw(0, phase="Running"))
    for _ in range(3):
        world.reconcile()
    assert world.cluster.calls == []


def test_a_restart_costs_no_request_if_nothing_has_changed() -> None:
    def decide(run: RunObject, observed: Observed) -> Actions:
        missing = [rank for rank in range(2) if rank not in {pod.rank for pod in observed.pods}]
        return Actions(
            apply=() if observed.children else (labelled(child_raw("Service")),),
            create=tuple(labelled(pod_raw(rank)) for rank in missing),
            status=STATUS,
        )

    first = World(decide)
    first.see(run_raw())
    first.reconcile()
    second = World(decide)
    second.cluster = first.cluster
    for raw in first.cluster.objects.values():
        if raw["kind"] in ("GalaRun", "Pod", "Service"):
            second.cache.put(raw["kind"], raw)
    calls = len(first.cluster.calls)
    second.controller._cluster = first.cluster
    second.reconcile()
    assert len(first.cluster.calls) == calls


WEBHOOK = ApiError(500, "InternalError", "failed calling webhook: no endpoints available")


def test_one_failure_ends_the_pass_before_status_and_events_and_the_next_one_tries_again() -> None:
    actions = Actions(
        apply=(labelled(child_raw("Service")),),
        create=(labelled(pod_raw(0)),),
        status=STATUS,
        events=(RunEvent(type="Normal", reason="Created", message="2 learners"),),
    )
    world = World(lambda run, observed: actions)
    world.see(run_raw())
    world.cluster.fail("create", "Service", ApiError(500, "InternalError", "etcd is away"))
    with pytest.raises(ApiError, match="etcd is away"):
        world.reconcile()
    assert world.cluster.writes == [("create", "Service", "pong")]
    assert world.results() == {"success": 0, "error": 1}
    world.reconcile()
    assert ("create", "Pod", "pong-0") in world.cluster.writes
    assert world.results() == {"success": 1, "error": 1}


def test_a_failure_that_comes_again_is_told_as_a_refusal_and_the_learners_are_asked_meanwhile() -> None:
    actions = Actions(create=(labelled(pod_raw(0)),), status={"state": "Degraded"}, poll=True)
    world = World(lambda run, observed: actions)
    world.see(run_raw())
    world.cluster.fail("create", "Pod", WEBHOOK, times=2)
    for expected in (None, "Refused: failed calling webhook: no endpoints available"):
        with pytest.raises(ApiError, match="no endpoints"):
            world.reconcile()
        run = world.cache.run(KEY)
        assert run is not None
        assert run.status.get("message") == expected
    assert run.status["state"] == "Degraded"
    assert world.workers.watched == {KEY: True}
    assert [raw["reason"] for raw in world.cluster.objects.values() if raw["kind"] == "Event"] == ["Refused"]
    world.reconcile()
    assert world.cluster.objects["GalaRun", "lab", "pong"]["status"] == {"state": "Degraded"}


def test_two_failures_with_a_success_between_them_are_a_moment_each() -> None:
    world = World(lambda run, observed: Actions(create=(labelled(pod_raw(0)),), status=STATUS))
    world.see(run_raw())
    for _ in range(2):
        world.cluster.fail("create", "Pod", WEBHOOK)
        with pytest.raises(ApiError):
            world.reconcile()
        world.reconcile()
        assert world.cluster.objects["GalaRun", "lab", "pong"]["status"] == STATUS
    assert not [raw for raw in world.cluster.objects.values() if raw["kind"] == "Event"]


@pytest.mark.parametrize("status", [0, 409, 429])
def test_a_failure_that_says_nothing_about_what_was_asked_for_is_not_told(status: int) -> None:
    world = World(lambda run, observed: Actions(create=(labelled(pod_raw(0)),), status=STATUS))
    world.see(run_raw())
    world.cluster.fail("create", "Pod", ApiError(status, "Any", "not now"), times=3)
    for _ in range(3):
        with pytest.raises(ApiError):
            world.reconcile()
    assert world.cluster.writes == [("create", "Pod", "pong-0")] * 3


def test_one_pod_that_cannot_be_made_does_not_keep_the_others_from_being_made() -> None:
    actions = Actions(create=tuple(labelled(pod_raw(rank)) for rank in range(4)), status=STATUS)
    world = World(lambda run, observed: actions)
    world.see(run_raw())
    world.cluster.fail("create", "Pod", ApiError(403, "Forbidden", "exceeded quota: pods"))
    with pytest.raises(ApiError, match="exceeded quota"):
        world.reconcile()
    assert {pod.name for pod in world.cache.pods(KEY)} == {"pong-1", "pong-2", "pong-3"}


def claim_raw(rank: int) -> dict[str, Any]:
    return labelled(child_raw("PersistentVolumeClaim", f"pong-{rank}"))


@pytest.mark.parametrize("how", ["over quota", "somebody else's"])
def test_a_claim_that_is_refused_keeps_back_its_own_pod_only(how: str) -> None:
    actions = Actions(
        apply=tuple(claim_raw(rank) for rank in range(3)),
        delete=(DeletePod(name="pong-3", uid="pod-pong-3"),),
        create=tuple(labelled(pod_raw(rank)) for rank in range(3)),
        annotate=(AnnotatePod(name="pong-4", uid="pod-pong-4", annotations={"gala.dev/plan-epoch": "4"}),),
        release=("10.0.0.9",),
        status={"state": "Degraded"},
    )
    world = World(lambda run, observed: actions)
    for raw in (run_raw(), pod_raw(3), pod_raw(4)):
        world.see(raw)
    if how == "over quota":
        world.cluster.fail(
            "create", "PersistentVolumeClaim", ApiError(403, "Forbidden", "exceeded quota: storage"), times=1
        )
    else:
        metadata = {"name": "pong-0", "namespace": "lab"}
        world.cluster.put({"kind": "PersistentVolumeClaim", "metadata": metadata})
    with pytest.raises(ApiError, match="exceeded quota" if how == "over quota" else "does not belong to this run"):
        world.reconcile()
    assert {pod.name for pod in world.cache.pods(KEY)} == {"pong-1", "pong-2", "pong-4"}
    assert ("patch", "Pod", "pong-4") in world.cluster.writes
    assert world.workers.released == ["10.0.0.9"]
    run = world.cache.run(KEY)
    assert run is not None
    assert run.status["state"] == "Degraded"
    assert run.status["message"].startswith("Refused: " if how == "over quota" else "NameTaken: ")


def test_a_disruption_budget_that_is_refused_keeps_no_pod_back() -> None:
    budget = labelled(child_raw("PodDisruptionBudget"))
    world = World(lambda run, observed: Actions(apply=(budget,), create=(labelled(pod_raw(0)),), status=STATUS))
    world.see(run_raw())
    world.cluster.fail("create", "PodDisruptionBudget", ApiError(403, "Forbidden", "no right to make it"))
    with pytest.raises(ApiError, match="no right to make it"):
        world.reconcile()
    assert [pod.name for pod in world.cache.pods(KEY)] == ["pong-0"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("Service", ApiError(403, "Forbidden", "no")), ("PersistentVolumeClaim", ApiError(500, "InternalError", "no"))],
    ids=["no pod goes without it", "it may be made at the next try"],
)
def test_what_every_pod_needs_and_what_may_yet_be_made_ends_the_pass(kind: str, error: ApiError) -> None:
    child = labelled(child_raw(kind, "pong-1"))
    world = World(lambda run, observed: Actions(apply=(child,), create=(labelled(pod_raw(0)),), status=STATUS))
    world.see(run_raw())
    world.cluster.fail("create", kind, error)
    with pytest.raises(ApiError):
        world.reconcile()
    assert world.cache.pods(KEY) == ()


def test_a_refusal_is_told_in_an_event_and_again_only_in_other_words() -> None:
    world = World(lambda run, observed: Actions(create=(labelled(pod_raw(0)),)))
    world.see(run_raw())
    for message in ("exceeded quota: pods", "denied by a policy"):
        world.cluster.fail("create", "Pod", ApiError(403, "Forbidden", message), times=2)
        for _ in range(2):
            with pytest.raises(ApiError):
                world.reconcile()
    events = [raw for raw in world.cluster.objects.values() if raw["kind"] == "Event"]
    assert [(event["reason"], event["type"], event["message"], event["count"]) for event in events] == [
        ("Refused", "Warning", "exceeded quota: pods", 1),
        ("Refused", "Warning", "denied by a policy", 1),
    ]


def test_a_refusal_is_in_the_status_and_the_rest_of_the_status_goes_on() -> None:
    world = World(lambda run, observed: Actions(create=(labelled(pod_raw(0)),), status={"state": "Degraded"}))
    world.see(run_raw())
    world.cluster.fail("create", "Pod", ApiError(403, "Forbidden", "exceeded quota: pods"), times=2)
    for _ in range(2):
        with pytest.raises(ApiError):
            world.reconcile()
    run = world.cache.run(KEY)
    assert run is not None
    assert (run.status["state"], run.status["message"]) == ("Degraded", "Refused: exceeded quota: pods")
    (condition,) = run.status["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("PodsReady", "False", "Refused")


def refused_with(pods_ready: dict[str, Any]) -> Mapping[str, Any]:
    """The run's status when a disruption budget is refused."""
    budget = labelled(child_raw("PodDisruptionBudget"))
    status = {"state": "Running", "conditions": [{"type": "PodsReady", **pods_ready}]}
    world = World(lambda run, observed: Actions(apply=(budget,), status=status))
    world.see(run_raw())
    world.cluster.fail("create", "PodDisruptionBudget", ApiError(403, "Forbidden", "no right to make it"))
    with pytest.raises(ApiError):
        world.reconcile()
    run = world.cache.run(KEY)
    assert run is not None
    assert run.status["message"] == "Refused: no right to make it"
    return run.status["conditions"][0]


@pytest.mark.parametrize(
    "pods_ready",
    [{"status": "True", "reason": "AllReady"}, {"status": "False", "reason": "Unschedulable", "message": "pong-0: no"}],
    ids=["all are ready", "one needs help for another reason"],
)
def test_a_refusal_leaves_what_is_true_of_the_pods(pods_ready: dict[str, Any]) -> None:
    assert refused_with(pods_ready) == {"type": "PodsReady", **pods_ready}


def test_a_refusal_is_why_pods_are_not_ready_that_only_wait() -> None:
    said = refused_with({"status": "False", "reason": "Waiting", "message": "1 of 2 learners are ready."})
    assert (said["status"], said["reason"], said["message"]) == ("False", "Refused", "no right to make it")


def test_a_pod_that_is_there_already_is_success() -> None:
    world = World(lambda run, observed: Actions(create=(labelled(pod_raw(0)),), status=STATUS))
    world.see(run_raw())
    world.cluster.put(pod_raw(0, phase="Running"))
    world.reconcile()
    assert [pod.phase for pod in world.cache.pods(KEY)] == ["Running"]


@pytest.mark.parametrize("kind", ["Pod", "Service"])
def test_an_object_of_somebody_else_is_left_alone_and_the_user_is_told(kind: str) -> None:
    manifest = labelled(pod_raw(0) if kind == "Pod" else child_raw("Service"))
    world = World(lambda run, observed: Actions(create=(manifest,)) if kind == "Pod" else Actions(apply=(manifest,)))
    world.see(run_raw())
    theirs = {"kind": kind, "metadata": {"name": manifest["metadata"]["name"], "namespace": "lab"}, "theirs": True}
    world.cluster.put(theirs)
    with pytest.raises(NameTakenError, match="does not belong to this run"):
        world.reconcile()
    assert world.cluster.objects[kind, "lab", manifest["metadata"]["name"]]["theirs"]
    assert any(raw.get("reason") == "NameTaken" for raw in world.cluster.objects.values())


def test_events_are_posted_only_if_the_status_was_written() -> None:
    actions = Actions(status=STATUS, events=(RunEvent(type="Normal", reason="RingFormed", message="2 learners"),))
    world = World(lambda run, observed: actions)
    world.see(run_raw())
    world.cluster.fail("patch", "GalaRun/status", ApiError(500, "InternalError", "away"))
    with pytest.raises(ApiError):
        world.reconcile()
    assert not [raw for raw in world.cluster.objects.values() if raw["kind"] == "Event"]
    world.reconcile()
    assert [raw["reason"] for raw in world.cluster.objects.values() if raw["kind"] == "Event"] == ["RingFormed"]


def test_an_event_that_cannot_be_posted_does_not_fail_the_pass() -> None:
    actions = Actions(status=STATUS, events=(RunEvent(type="Normal", reason="RingFormed", message="2 learners"),))
    world = World(lambda run, observed: actions)
    world.see(run_raw())
    world.cluster.fail("create", "Event", ApiError(403, "Forbidden", "no"))
    world.reconcile()
    assert world.cluster.objects["GalaRun", "lab", "pong"]["status"] == STATUS


def test_only_what_changed_of_the_status_is_sent() -> None:
    patches: list[Mapping[str, Any]] = []
    statuses: list[dict[str, Any]] = [
        {"state": "Starting", "steps": None, "finalModel": {"a": 1, "b": 2}},
        {"state": "Running", "steps": 5, "finalModel": {"a": 1}},
    ]
    world = World(lambda run, observed: Actions(status=statuses[0]))
    patch_status = world.cluster.patch_status

    async def spy(namespace: str, name: str, version: str, patch: Mapping[str, Any]) -> Any:
        patches.append(patch)
        return await patch_status(namespace, name, version, patch)

    world.cluster.patch_status = spy  # type: ignore[method-assign]
    world.see(run_raw())
    world.reconcile()
    statuses.pop(0)
    world.reconcile()
    assert patches == [
        {"state": "Starting", "finalModel": {"a": 1, "b": 2}},
        {"state": "Running", "steps": 5, "finalModel": {"b": None}},
    ]
    assert world.cluster.objects["GalaRun", "lab", "pong"]["status"] == without_nulls(statuses[0])


def test_what_the_server_prunes_of_the_status_is_not_sent_again_and_again() -> None:
    world = World(lambda run, observed: Actions(status={**STATUS, "unknownToAnOldCrd": 1}))
    patch_status = world.cluster.patch_status

    async def prune(namespace: str, name: str, version: str, patch: Mapping[str, Any]) -> Any:
        known = {field: value for field, value in patch.items() if field in STATUS}
        return await patch_status(namespace, name, version, known)

    world.cluster.patch_status = prune  # type: ignore[method-assign]
    world.see(run_raw())
    for _ in range(3):
        world.reconcile()
    assert world.cluster.writes == [("patch", "GalaRun/status", "pong")]


def test_the_status_is_sent_again_if_somebody_else_has_changed_it() -> None:
    world = World(lambda run, observed: Actions(status=STATUS))
    world.see(run_raw())
    world.reconcile()
    world.see({**run_raw(), "status": {"state": "Nonsense"}})
    world.reconcile()
    assert world.cluster.objects["GalaRun", "lab", "pong"]["status"] == STATUS


@pytest.mark.parametrize("change", ["replaced", "edited"])
def test_a_status_that_was_decided_for_a_run_of_the_past_is_not_written_to_what_is_there_now(change: str) -> None:
    event = RunEvent(type="Warning", reason="Failed", message="left out")
    world = World(lambda run, observed: Actions(status={"state": "Failed"}, events=(event,)))
    world.see(run_raw())

    async def scenario() -> float | None:
        tell = await world.controller.reconcile(KEY)
        if change == "replaced":
            del world.cluster.objects["GalaRun", "lab", "pong"]
        world.cluster.put(run_raw(uid="its-successor") if change == "replaced" else run_raw(spec={"learners": 3}))
        return await tell()

    assert asyncio.run(scenario()) == CHANGED_SECONDS, "should the change's own event be lost"
    assert "status" not in world.cluster.objects["GalaRun", "lab", "pong"]
    assert not [raw for raw in world.cluster.objects.values() if raw["kind"] == "Event"]
    world.see(world.cluster.objects["GalaRun", "lab", "pong"])
    assert world.reconcile() is None
    assert world.cluster.objects["GalaRun", "lab", "pong"]["status"] == {"state": "Failed"}


@pytest.mark.parametrize("gone", ["absent", "deleting"])
def test_a_run_that_goes_is_left_to_the_garbage_collector(gone: str) -> None:
    world = World(lambda run, observed: pytest.fail("nothing is to be decided"))
    if gone == "deleting":
        raw = run_raw()
        raw["metadata"]["deletionTimestamp"] = "2026-11-22T18:00:00Z"
        world.see(raw)
    world.see(pod_raw(0))
    assert world.reconcile() is None
    assert world.cluster.calls == []
    assert world.workers.watched == {KEY: False}


def test_a_run_whose_time_to_live_is_over_is_deleted_by_its_uid() -> None:
    world = World(lambda run, observed: Actions(delete_run=True, status=STATUS))
    world.see(run_raw())
    assert world.reconcile() is None
    assert world.cluster.writes == [("delete", "GalaRun", "pong")]


def test_a_status_for_a_run_that_was_deleted_meanwhile_is_no_error_and_no_event() -> None:
    actions = Actions(status=STATUS, events=(RunEvent(type="Normal", reason="RingFormed", message="2"),))
    world = World(lambda run, observed: actions)
    world.cache.put("GalaRun", run_raw())
    world.reconcile()
    assert not [raw for raw in world.cluster.objects.values() if raw["kind"] == "Event"]


@pytest.mark.parametrize(("delay", "expected"), [(90.0, 90.0), (0.0, 0.05), (-5.0, 0.05)])
def test_the_time_of_the_next_look_is_handed_to_the_queue(delay: float, expected: float) -> None:
    world = World(lambda run, observed: Actions(status=STATUS, requeue_at=NOW + timedelta(seconds=delay)))
    world.see(run_raw())
    assert world.reconcile() == pytest.approx(expected)


def test_a_pod_of_another_uid_is_not_deleted() -> None:
    world = World(lambda run, observed: Actions(delete=(DeletePod(name="pong-0", uid="an-earlier-one"),)))
    world.see(run_raw())
    world.see(pod_raw(0))
    world.reconcile()
    assert ("Pod", "lab", "pong-0") in world.cluster.objects
    assert len(world.cache.pods(KEY)) == 1


PLAIN = st.recursive(
    st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)
DOCUMENTS = st.dictionaries(st.text(max_size=3), PLAIN, max_size=5)


@given(before=DOCUMENTS, after=DOCUMENTS)
def test_a_merge_patch_makes_the_one_into_the_other_and_is_empty_only_for_equals(before: Any, after: Any) -> None:
    patch = merge_patch(before, after)
    assert merged(before, patch) == after
    assert (not patch) == (before == after)
