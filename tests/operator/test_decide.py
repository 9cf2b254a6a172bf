"""The life of a run, decision by decision."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gala import names
from gala_operator.actions import Actions
from gala_operator.observed import ObservedChild, ObservedPod


def made(actions: Actions) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in actions.create]


def applied(actions: Actions) -> list[str]:
    return [f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in actions.apply]


def deleted(actions: Actions) -> list[str]:
    return [deletion.name for deletion in actions.delete]


def told(actions: Actions) -> list[str]:
    return [event.reason for event in actions.events]


def test_a_new_run_gets_its_service_before_its_pods_and_is_pending(scene: Any) -> None:
    run = scene()
    actions = run.step()
    assert applied(actions) == [
        "Service/pong",
        "ConfigMap/pong-plan",
        "NetworkPolicy/pong",
        "PodDisruptionBudget/pong",
    ]
    assert made(actions) == ["pong-0", "pong-1", "pong-2"]
    assert (run.status["state"], run.status["ready"], run.status["epoch"]) == ("Pending", "0/3", 0)
    assert run.condition("Accepted")["status"] == "True"


def test_before_its_pods_are_seen_they_are_asked_for_again_and_nothing_else(scene: Any) -> None:
    run = scene()
    run.step()
    again = run.decide(after=1)
    assert (applied(again), made(again), again.status) == ([], ["pong-0", "pong-1", "pong-2"], run.status)


def test_a_ring_that_has_formed_is_running_and_then_nothing_is_to_be_done(scene: Any) -> None:
    run = scene()
    run.step()
    for rank in range(3):
        run.pod(rank, phase="Pending", ready=False)
    assert run.step().status["state"] == "Starting"
    for rank in range(3):
        run.pod(rank, phase="Running", ready=True)
        run.answer(rank)
    actions = run.step(after=10)
    assert (run.status["state"], run.condition("RingFormed")["status"]) == ("Running", "True")
    assert "RingFormed" in told(actions)
    later = run.decide(after=3600)
    assert later == Actions(status=run.status, poll=True)


def test_a_start_with_some_learners_ready_is_no_loss(scene: Any) -> None:
    run = scene()
    run.step()
    run.pod(0)
    run.pod(1)
    run.pod(2, phase="Pending", ready=False)
    for rank in (0, 1):
        run.answer(rank)
    run.step()
    assert (run.status["state"], run.status["ready"]) == ("Starting", "2/3")


def test_a_learner_that_cannot_be_placed_does_not_keep_the_rest_from_training(scene: Any) -> None:
    run = scene()
    run.step()
    run.pod(
        2, phase="Pending", ready=False, scheduling_problem="0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    )
    for rank in (0, 1):
        run.pod(rank)
        run.answer(rank)
    actions = run.step()
    assert run.status["state"] == "Degraded"
    assert run.condition("RingFormed")["status"] == "True"
    assert run.condition("PodsReady")["reason"] == "Unschedulable"
    assert "pong-2: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu." in run.status["message"]
    assert {"Unschedulable", "RingDegraded"} <= set(told(actions))


def test_a_run_of_one_learner_is_a_ring_at_once(scene: Any) -> None:
    run = scene(learners=1)
    run.step()
    run.pod(0)
    run.step()
    assert (run.status["state"], run.condition("RingFormed")["status"]) == ("Running", "True")


def test_a_deleted_learner_is_waited_for_and_then_made_again_under_its_name(scene: Any) -> None:
    run = scene().start()
    run.pod(1, deleting=True, ready=False)
    actions = run.step()
    assert (made(actions), deleted(actions)) == ([], [])
    assert (run.status["state"], run.entry(1)["state"]) == ("Degraded", "stopping")
    del run.pods["pong-1"]
    actions = run.step()
    assert made(actions) == ["pong-1"]
    assert actions.create[0]["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] == "0"
    assert run.entry(1)["failures"] == 0
    assert told(actions) == ["LearnerReplaced"]


def test_a_disrupted_learner_is_replaced_and_does_not_count(scene: Any) -> None:
    run = scene().start()
    pod = run.fail(1, disrupted=True, termination_reason="Evicted", exit_code=143)
    actions = run.step()
    assert [(deletion.name, deletion.uid) for deletion in actions.delete] == [("pong-1", pod.uid)]
    assert run.entry(1)["failures"] == 0
    assert "LearnerDisrupted" in told(actions)


def test_why_the_cluster_ended_a_learner_is_said_until_it_is_ready_again(scene: Any) -> None:
    run = scene().start()
    run.fail(1, disrupted=True, termination_reason="Evicted", termination_message="The node was low on memory. ")
    actions = run.step()
    why = "(Evicted: The node was low on memory); it is replaced."
    assert f"The cluster ended pong-1 {why}" in [event.message for event in actions.events]
    del run.pods["pong-1"]
    run.step()
    run.pod(1, phase="Pending", ready=False, uid="its-successor")
    run.step()
    ready = run.condition("PodsReady")
    assert (ready["reason"], ready["message"]) == ("Disrupted", f"pong-1: the cluster ended it {why}")
    run.pod(1, phase="Running", ready=True)
    run.pod(0, ready=False)
    run.step()
    assert run.condition("PodsReady")["reason"] == "Waiting"


def test_a_node_that_refuses_pods_is_not_offered_one_after_the_other(scene: Any) -> None:
    run = scene().start()
    del run.pods["pong-1"]
    run.pod(1, phase="Failed", ready=False, disrupted=True, termination_reason="UnexpectedAdmissionError")
    assert (deleted(run.step(after=1)), run.decide().requeue_at) == ([], run.at(30))
    assert deleted(run.decide(after=9)) == ["pong-1"]


def test_scaling_up_makes_a_new_plan_and_the_missing_pods_and_tells_the_others(scene: Any) -> None:
    run = scene().start()
    run.edit(learners=4)
    actions = run.step()
    assert applied(actions) == ["ConfigMap/pong-plan"]
    assert made(actions) == ["pong-3"]
    assert deleted(actions) == []
    assert [(note.name, note.annotations) for note in actions.annotate] == [
        (f"pong-{rank}", {names.ANNOTATION_PLAN_EPOCH: "1"}) for rank in range(3)
    ]
    assert (run.status["epoch"], run.status["ready"], told(actions)) == (1, "3/4", ["RingDegraded", "Scaled"])


def test_scaling_down_applies_the_new_plan_and_deletes_only_the_ranks_that_left(scene: Any) -> None:
    run = scene().start()
    run.edit(learners=2)
    actions = run.step()
    assert (applied(actions), deleted(actions)) == (["ConfigMap/pong-plan"], ["pong-2"])
    assert (run.status["state"], run.status["ready"]) == ("Running", "2/2")
    assert len(run.status["learnerStatuses"]) == 2


def test_the_ring_is_formed_again_once_the_learners_know_the_new_plan(scene: Any) -> None:
    run = scene().start()
    run.edit(learners=2)
    run.step()
    assert (run.condition("RingFormed")["status"], run.condition("RingFormed")["reason"]) == ("False", "Reforming")
    del run.pods["pong-2"]
    for rank in (0, 1):
        run.pod(rank, plan_epoch=1)
        run.answer(rank, epoch=1)
    run.step(after=10)
    assert run.condition("RingFormed")["status"] == "True"


def test_back_to_an_earlier_size_is_a_further_epoch(scene: Any) -> None:
    run = scene().start()
    for learners, epoch in ((4, 1), (3, 2)):
        run.edit(learners=learners)
        run.step()
        assert run.status["epoch"] == epoch


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"runPolicy": {"backoffLimit": 9}}, id="runPolicy"),
        pytest.param({"worker": {"image": "other:2"}}, id="image"),
    ],
)
def test_what_the_learners_need_not_know_is_no_new_epoch_and_touches_no_pod(scene: Any, spec: dict[str, Any]) -> None:
    run = scene().start()
    run.edit(**spec)
    actions = run.step()
    assert (made(actions), deleted(actions), actions.annotate) == ([], [], ())
    assert run.status["epoch"] == 0


def test_another_operator_touches_no_pod_and_makes_no_new_epoch(scene: Any) -> None:
    run = scene().start()
    run.settings = dataclasses.replace(run.settings, worker_image="worker:2", monitoring_namespace="monitoring")
    run.progress.clear()
    actions = run.step(after=60)
    assert (made(actions), deleted(actions), actions.annotate) == ([], [], ())
    assert applied(actions) == ["NetworkPolicy/pong"]
    assert (run.status["epoch"], run.status["state"]) == (0, "Running")


def test_a_restarted_operator_that_has_asked_nobody_writes_nothing(scene: Any) -> None:
    run = scene().start()
    run.progress.clear()
    assert run.decide(after=600) == Actions(status=run.status, poll=True)


@pytest.mark.parametrize("child", ["Service/pong", "NetworkPolicy/pong", "PodDisruptionBudget/pong"])
def test_a_child_that_somebody_has_deleted_or_changed_is_applied_again(scene: Any, child: str) -> None:
    run = scene().start()
    before = run.children.pop(child)
    assert applied(run.decide()) == [child]
    run.children[child] = dataclasses.replace(before, annotations={})
    assert applied(run.decide()) == [child]


def test_a_deleted_plan_comes_back_with_its_epoch(scene: Any) -> None:
    run = scene().start()
    run.edit(learners=2)
    run.step()
    del run.children["ConfigMap/pong-plan"]
    actions = run.step()
    assert applied(actions) == ["ConfigMap/pong-plan"]
    assert run.status["epoch"] == 1


def test_claims_are_made_where_asked_for_and_those_of_learners_that_left_stay(scene: Any) -> None:
    run = scene(checkpoint={"volume": {"size": "1Gi"}})
    claims = [child for child in applied(run.step()) if child.startswith("PersistentVolumeClaim")]
    assert claims == [f"PersistentVolumeClaim/pong-{which}" for which in (0, 1, 2, "results")]
    run.edit(learners=2)
    run.step()
    assert "PersistentVolumeClaim/pong-2" in run.children


def foreign(kind: Any, owner_uid: str | None, *, deleting: bool = False) -> ObservedChild:
    return ObservedChild(kind=kind, name="pong", uid="x", owner_uid=owner_uid, deleting=deleting)


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (foreign("Service", None), "Service pong is not this run's"),
        (foreign("Service", "run-0"), "Service pong of an earlier run is still there"),
        (foreign("Service", "run-1", deleting=True), "Service pong is being deleted"),
    ],
)
def test_nothing_is_taken_from_others_and_pods_wait(scene: Any, child: ObservedChild, words: str) -> None:
    run = scene()
    run.children["Service/pong"] = child
    actions = run.step()
    assert "Service/pong" not in applied(actions)
    assert made(actions) == []
    assert words in run.status["message"]
    assert actions.requeue_at == run.at(5)


def test_a_claim_that_is_being_deleted_keeps_only_its_own_learner_waiting(scene: Any) -> None:
    run = scene(checkpoint={"volume": {"size": "1Gi"}}).start()
    key = "PersistentVolumeClaim/pong-2"
    run.children[key] = dataclasses.replace(run.children[key], deleting=True)
    del run.pods["pong-1"]
    del run.pods["pong-2"]
    actions = run.step()
    assert made(actions) == ["pong-1"]
    assert run.condition("PodsReady")["message"] == "PersistentVolumeClaim pong-2 is being deleted"
    assert actions.requeue_at == run.at(25)
    del run.children[key]
    actions = run.step()
    assert (applied(actions), made(actions)) == ([key], ["pong-1", "pong-2"])


def test_pods_of_an_earlier_run_of_the_name_are_waited_for(scene: Any) -> None:
    run = scene()
    old = run.pod(1, run_uid="run-0")
    actions = run.step()
    assert made(actions) == ["pong-0", "pong-2"]
    assert deleted(actions) == []
    assert run.condition("PodsReady")["reason"] == "NameConflict"
    assert isinstance(old, ObservedPod)


def test_a_run_that_is_being_deleted_is_left_to_the_garbage_collector(scene: Any) -> None:
    run = scene().start()
    run.run = dataclasses.replace(run.run, deleting=True)
    run.pods.clear()
    assert run.decide() == Actions(status=run.status)


def test_suspending_deletes_all_pods_and_is_done_when_they_are_gone(scene: Any) -> None:
    run = scene().start()
    run.edit(runPolicy={"suspend": True})
    actions = run.step()
    assert deleted(actions) == ["pong-0", "pong-1", "pong-2"]
    assert (run.status["state"], run.condition("Suspended")["status"]) == ("Running", "False")
    for rank in range(3):
        run.pod(rank, deleting=True, ready=False)
    assert deleted(run.step()) == []
    run.pods.clear()
    actions = run.step()
    assert (run.status["state"], run.condition("Suspended")["status"]) == ("Suspended", "True")
    assert "startTime" not in run.status
    assert "start over" in run.status["message"]
    assert [(event.type, event.reason) for event in actions.events] == [("Warning", "Suspended")]
    assert run.decide(after=3600) == Actions(status=run.status)


def test_a_run_that_is_made_suspended_has_nothing_to_lose(scene: Any) -> None:
    run = scene(runPolicy={"suspend": True})
    for _ in range(2):
        actions = run.step()
        assert (run.status["state"], run.status["message"]) == ("Suspended", "The run is suspended.")
        assert not [event for event in actions.events if event.type == "Warning"]


def test_resuming_starts_the_clock_and_the_failures_afresh(scene: Any) -> None:
    run = scene(runPolicy={"suspend": True}, checkpoint={"volume": {"claimName": "shared"}})
    run.step()
    assert (run.status["state"], run.status["message"]) == ("Suspended", "The run is suspended.")
    run.edit(runPolicy={"suspend": False})
    actions = run.step(after=100)
    assert made(actions) == ["pong-0", "pong-1", "pong-2"]
    assert (run.status["state"], run.status["startTime"]) == ("Pending", "2026-11-22T18:01:40Z")
    assert (run.condition("Suspended")["status"], run.condition("Suspended")["reason"]) == ("False", "Resumed")
    assert "Resumed" in told(actions)


def test_a_deadline_fails_the_run_and_stops_its_learners(scene: Any) -> None:
    run = scene(runPolicy={"activeDeadlineSeconds": 100, "cleanPodPolicy": "None"}).start()
    assert run.decide().requeue_at == run.at(100)
    run.step(after=80)
    assert (run.status["state"], run.condition("Failed")["reason"]) == ("Failed", "DeadlineExceeded")
    assert run.condition("Succeeded")["status"] == "False"
    assert deleted(run.step()) == ["pong-0", "pong-1", "pong-2"]


def test_all_problems_of_a_bad_spec_are_listed_and_what_runs_is_left_alone(scene: Any) -> None:
    run = scene().start()
    run.edit(learners=0, totalSteps=-1)
    actions = run.step()
    assert (made(actions), deleted(actions), applied(actions)) == ([], [], [])
    accepted = run.condition("Accepted")
    assert (accepted["status"], accepted["reason"], accepted["observedGeneration"]) == ("False", "InvalidSpec", 2)
    assert "spec.learners" in accepted["message"]
    assert "spec.totalSteps" in accepted["message"]
    assert (run.status["state"], told(actions)) == ("Running", ["InvalidSpec"])
    assert run.decide(after=60) == Actions(status=run.status, poll=True)
    run.edit(learners=3, totalSteps=10_000)
    run.step()
    assert run.condition("Accepted")["status"] == "True"


def test_a_run_that_never_was_valid_is_pending(scene: Any) -> None:
    run = scene(learners="many")
    actions = run.step()
    assert (run.status["state"], actions.create, actions.apply) == ("Pending", (), ())
    assert run.decide() == Actions(status=run.status)


def test_fewer_learners_than_the_least_are_refused(scene: Any) -> None:
    run = scene(runPolicy={"minLearners": 2}).start()
    run.edit(learners=1)
    run.step()
    assert run.condition("Accepted")["reason"] == "InvalidSpec"
    assert "spec.runPolicy.minLearners" in run.status["message"]


@pytest.mark.parametrize("change", [{"hyperparameters": {"rolloutLength": 7}}, {"precision": "float32"}], ids=str)
def test_what_all_workers_must_have_alike_changes_only_while_there_are_none(scene: Any, change: dict[str, Any]) -> None:
    run = scene(algorithm="IMPALA").start()
    run.edit(**change)
    actions = run.step()
    assert (run.condition("Accepted")["reason"], actions.apply) == ("ImmutableFieldChanged", ())
    assert "runPolicy.suspend" in run.status["message"]
    assert run.status["state"] == "Running"
    run.edit(runPolicy={"suspend": True})
    assert len(run.step().delete) == 3
    run.pods.clear()
    run.step()
    run.edit(runPolicy={"suspend": False})
    assert run.step().apply, "the plan with what is new in it"
    assert run.condition("Accepted")["status"] == "True"
    for rank in range(3):
        run.pod(rank)
    run.edit(hyperparameters={"rolloutLength": 9}, precision="auto")
    run.step()
    assert run.condition("Accepted")["reason"] == "ImmutableFieldChanged"


def test_what_learners_that_gossip_read_at_their_start_may_change(scene: Any) -> None:
    run = scene().start()
    run.edit(hyperparameters={"learningRate": 0.5})
    run.step()
    assert run.condition("Accepted")["status"] == "True"


def test_a_change_of_an_immutable_field_is_refused_where_the_server_let_it_through(scene: Any) -> None:
    run = scene().start()
    run.edit(seed=7)
    actions = run.step()
    assert (run.condition("Accepted")["reason"], actions.apply) == ("ImmutableFieldChanged", ())
    assert run.status["state"] == "Running"
    run.edit(seed=1)
    run.step()
    assert run.condition("Accepted")["status"] == "True"
