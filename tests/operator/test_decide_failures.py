"""Learners that fail: what counts, when they try again, when they are left out, and what the status says meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gala import names
from gala_operator.actions import Actions
from gala_operator.stuck import SLOW_START


def deleted(actions: Actions) -> list[str]:
    return [deletion.name for deletion in actions.delete]


def fail(run: Any, number: int, rank: int = 1, **how: Any) -> None:
    """The learner's pod fails, is counted, deleted and made again."""
    run.fail(rank, uid=f"failed-{number}", attempt=number - 1, **how)
    run.step()


def replace(run: Any, number: int, rank: int = 1) -> None:
    del run.pods[f"pong-{rank}"]
    (pod,) = run.step().create
    assert pod["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] == str(number)
    run.pod(rank, uid=f"pod-{number + 1}", attempt=number)
    run.answer(rank)
    run.step()


def test_a_failure_is_in_the_status_before_its_pod_is_deleted(scene: Any) -> None:
    run = scene().start()
    run.fail(1, uid="failed")
    first = run.step()
    assert (first.delete, first.create, first.requeue_at) == ((), (), run.at(21))
    assert run.entry(1) == {
        "rank": 1,
        "ready": False,
        "state": "backing off",
        "steps": 100,
        "stepsPerSecond": 0.0,
        "meanReturn": 1.0,
        "failures": 1,
        "lastFailure": {
            "podUID": "failed",
            "reason": "Error",
            "message": "ValueError: no; exit code 1",
            "time": "2026-11-22T18:00:20Z",
        },
    }
    second = run.step(after=1)
    assert [(deletion.name, deletion.uid) for deletion in second.delete] == [("pong-1", "failed")]
    assert run.entry(1)["failures"] == 1


def test_a_pass_that_does_not_see_its_own_status_yet_counts_the_same_failure(scene: Any) -> None:
    run = scene().start()
    run.fail(1)
    first, again = run.decide(), run.decide()
    assert first == again
    assert again.delete == ()


def test_back_off_begins_with_a_second_and_doubles_to_its_bound(scene: Any) -> None:
    run = scene(runPolicy={"backoffLimit": 20}).start()
    for number, wait in enumerate((1, 10, 20, 40, 80, 160, 300, 300), start=1):
        fail(run, number)
        before = run.decide(after=wait - 0.5)
        assert (before.delete, before.create, before.requeue_at) == ((), (), run.at(run.seconds + 0.5))
        assert deleted(run.step(after=0.5)) == ["pong-1"]
        replace(run, number)
        run.seconds += 1000


def test_a_learner_whose_pod_is_gone_waits_for_its_back_off_all_the_same(scene: Any) -> None:
    run = scene().start()
    fail(run, 1)
    run.step(after=1)
    replace(run, 1)
    fail(run, 2)
    del run.pods["pong-1"]
    actions = run.step(after=4)
    assert (actions.create, run.entry(1)["state"]) == ((), "backing off")
    assert len(run.step(after=6).create) == 1


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_back_off_limit_is_exact(scene: Any, limit: int) -> None:
    run = scene(runPolicy={"backoffLimit": limit}).start()
    for number in range(1, limit + 1):
        fail(run, number)
        assert deleted(run.step(after=400)) == ["pong-1"]
        replace(run, number)
    fail(run, limit + 1)
    actions = run.step(after=400)
    assert (actions.delete, actions.create, run.entry(1)["state"]) == ((), (), "failed")
    assert (run.status["state"], run.condition("PodsReady")["reason"]) == ("Degraded", "BackoffLimitExceeded")
    assert run.decide(after=5000).requeue_at is None
    del run.pods["pong-1"]
    assert run.step().create == ()


def test_a_higher_limit_gives_a_learner_that_was_left_out_another_try(scene: Any) -> None:
    run = scene(runPolicy={"backoffLimit": 0}).start()
    fail(run, 1)
    run.edit(runPolicy={"backoffLimit": 1})
    assert deleted(run.step(after=10)) == ["pong-1"]


def test_the_users_mistake_is_not_tried_again(scene: Any) -> None:
    run = scene().start()
    fail(run, 1, exit_code=2, termination_message="spec.environment.id: no such environment")
    assert (run.entry(1)["state"], run.entry(1)["lastFailure"]["reason"]) == ("failed", "Misconfigured")
    assert run.condition("PodsReady")["reason"] == "Misconfigured"
    assert "spec.environment.id: no such environment" in run.status["message"]
    assert run.decide(after=1000).delete == ()


def test_too_few_learners_fail_the_run(scene: Any) -> None:
    run = scene(runPolicy={"backoffLimit": 0, "minLearners": 2}).start()
    fail(run, 1, rank=0)
    assert run.status["state"] == "Degraded"
    fail(run, 1, rank=1)
    assert (run.status["state"], run.condition("Failed")["reason"]) == ("Failed", "TooFewLearners")
    actions = run.step()
    assert deleted(actions) == ["pong-2"]
    assert set(run.pods) >= {"pong-0", "pong-1"}


def test_all_learners_may_fail_at_once(scene: Any) -> None:
    run = scene().start()
    for rank in range(3):
        run.fail(rank)
    run.step()
    assert run.status["state"] == "Starting"
    assert deleted(run.step(after=1)) == ["pong-0", "pong-1", "pong-2"]


def test_failures_of_a_rank_that_leaves_the_plan_are_forgotten(scene: Any) -> None:
    run = scene().start()
    fail(run, 1, rank=2)
    run.edit(learners=2)
    assert deleted(run.step()) == ["pong-2"]
    del run.pods["pong-2"]
    run.edit(learners=3)
    (pod,) = run.step().create
    assert pod["metadata"]["annotations"][names.ANNOTATION_ATTEMPT] == "0"


def test_a_lost_status_does_not_make_a_learner_young_again(scene: Any) -> None:
    run = scene().start()
    run.fail(1, attempt=4)
    run.run = type(run.run)(**{**{field: getattr(run.run, field) for field in run.run.__slots__}, "status": {}})
    run.step()
    assert run.entry(1)["failures"] == 5


def test_a_node_whose_clock_is_ahead_does_not_delay_a_restart(scene: Any) -> None:
    run = scene().start()
    run.fail(1, finished_at=run.at(9999))
    run.step()
    assert deleted(run.step(after=1)) == ["pong-1"]


@pytest.mark.parametrize(
    ("number", "how", "reason", "words"),
    [
        (1, {"termination_reason": "OOMKilled", "exit_code": 137}, "OOMKilled", "exit code 137 (SIGKILL)"),
        (1, {}, "Error", "pong-1 restarts after 1 failure (limit 6); Error: ValueError: no"),
        (2, {}, "CrashLoopBackOff", "pong-1 restarts after 2 failures (limit 6); Error: ValueError: no"),
    ],
)
def test_the_status_says_why_a_learner_is_restarted(
    scene: Any, number: int, how: dict[str, Any], reason: str, words: str
) -> None:
    run = scene().start()
    run.fail(1, attempt=number - 1, **how)
    actions = run.step()
    assert run.condition("PodsReady")["reason"] == reason
    assert words in run.condition("PodsReady")["message"]
    assert words in run.status["message"]
    assert "LearnerRestarted" in [event.reason for event in actions.events]


def test_the_reason_stays_while_the_next_pod_starts_and_goes_when_it_is_ready(scene: Any) -> None:
    run = scene().start()
    run.fail(1, termination_reason="OOMKilled", exit_code=137)
    run.step()
    run.step(after=1)
    del run.pods["pong-1"]
    run.step()
    assert run.condition("PodsReady")["reason"] == "OOMKilled"
    run.pod(1, uid="next", attempt=1, phase="Pending", ready=False)
    run.step()
    assert run.condition("PodsReady")["reason"] == "OOMKilled"
    run.pod(1, phase="Running", ready=True)
    run.step()
    assert run.condition("PodsReady")["status"] == "True"


def test_a_failure_of_long_ago_does_not_explain_a_disruption_of_today(scene: Any) -> None:
    run = scene().start()
    fail(run, 1)
    run.step(after=1)
    replace(run, 1)
    run.seconds += 5000
    del run.pods["pong-1"]
    run.step()
    assert run.condition("PodsReady")["reason"] == "Waiting"


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        ({"waiting_reason": "ErrImagePull", "waiting_message": "not found"}, "ErrImagePull", "pong-1: not found"),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "a" not found'},
            "CreateContainerConfigError",
            'pong-1: secret "a" not found',
        ),
        ({"scheduling_problem": "0/1 nodes are available."}, "Unschedulable", "pong-1: 0/1 nodes are available."),
        ({"waiting_reason": "ContainerCreating"}, "Waiting", "2 of 3 learners are ready."),
    ],
)
def test_the_reason_behind_a_pod_that_does_not_start_is_lifted(
    scene: Any, pod: dict[str, Any], reason: str, words: str
) -> None:
    run = scene().start()
    run.pod(1, phase="Pending", ready=False, **pod)
    run.step()
    assert (run.condition("PodsReady")["reason"], run.condition("PodsReady")["message"]) == (reason, words)


@pytest.mark.parametrize("rank", [1, None])
def test_a_container_that_a_node_does_not_create_for_minutes_is_told_once_and_forgotten_when_it_starts(
    scene: Any, rank: int | None
) -> None:
    run = scene().start()
    if rank is None:
        for learner in range(3):
            run.answer(learner, state="finished")
        run.step()
    since = run.now - timedelta(seconds=20)
    run.pod(rank, phase="Pending", ready=False, waiting_reason="ContainerCreating", node="gpu-7", scheduled=since)
    actions = run.step()
    assert "ContainerCreating" not in str(actions.status)
    assert actions.requeue_at is not None
    assert actions.requeue_at <= since + SLOW_START
    actions = run.step(after=SLOW_START.total_seconds() - 20)
    assert "node gpu-7 has had it since" in run.status["message"]
    assert [event.reason for event in actions.events] == ["ContainerCreating"] * (rank is not None)
    assert run.decide(after=3600).status == run.status, "said once"
    run.pod(rank, phase="Running", ready=True, waiting_reason=None)
    run.step()
    assert "node gpu-7" not in str(run.status)


def test_the_kubelets_back_off_does_not_hide_why_an_image_cannot_be_pulled(scene: Any) -> None:
    run = scene().start()
    run.pod(1, phase="Pending", ready=False, waiting_reason="ErrImagePull", waiting_message="not found")
    run.step()
    run.pod(1, waiting_reason="ImagePullBackOff", waiting_message="Back-off pulling image")
    assert run.decide().status == run.status
