"""How a run ends, and what is left of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gala_operator.actions import Actions
from gala_operator.conditions import Conditions
from gala_operator.status import with_problem


def made(actions: Actions) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in actions.create]


def deleted(actions: Actions) -> list[str]:
    return [deletion.name for deletion in actions.delete]


def test_the_results_pod_is_made_when_every_learner_that_is_ready_has_finished(scene: Any) -> None:
    run = scene().start()
    for rank in (0, 1):
        run.answer(rank, state="finished")
    assert made(run.step()) == []
    assert run.status["finishingTime"] == "2026-11-22T18:00:20Z"
    assert run.step(after=10).requeue_at == run.at(80)
    run.answer(2, state="finished")
    assert made(run.step(after=10)) == ["pong-results"]
    assert run.status["finishingTime"] == "2026-11-22T18:00:20Z"
    assert run.condition("Progressing")["reason"] == "Finishing"


@pytest.mark.parametrize(
    ("refusal", "requests"),
    [
        ("minimum cpu usage per Container is 100m, but request is 50m", {"cpu": "4", "memory": "8Gi"}),
        ("cpu max limit to request ratio per Pod is 10, but provided ratio is 80.0", {"cpu": "4", "memory": "8Gi"}),
        ("exceeded quota: pods, requested: pods=1", {"cpu": "50m", "memory": "128Mi"}),
    ],
)
@pytest.mark.parametrize("after_the_end", [False, True])
def test_a_results_pod_that_a_limit_range_refuses_asks_for_what_a_learner_asks_for(
    scene: Any, refusal: str, requests: dict[str, str], after_the_end: bool
) -> None:
    run = scene(
        learners=1,
        worker={"resources": {"requests": {"cpu": "4", "memory": "8Gi"}}},
        checkpoint={"volume": {"size": "1Gi"}},
    ).start()
    run.answer(0, state="finished")
    if after_the_end:
        run.step()
        run.pod(None)
        run.answer_results()
        run.step()
        assert run.status["state"] == "Succeeded"
        del run.pods["pong-results"]
    (pod,) = run.step().create
    assert pod["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "50m", "memory": "128Mi"}
    message = f'pods "pong-results" is forbidden: {refusal}'
    refused = with_problem(run.status, "Refused", message, generation=run.run.generation, now=run.now)
    run.run = dataclasses.replace(run.run, status=refused)
    (pod,) = run.step(after=5).create
    assert pod["spec"]["containers"][0]["resources"]["requests"] == requests


LITTLE = {"cpu": "50m", "memory": "128Mi"}
LOW = {"cpu": "500m", "memory": "1Gi"}
LEARNERS = {"cpu": "4", "memory": "8Gi"}
QUOTA = "exceeded quota: team, requested: limits.cpu=4,limits.memory=8Gi, used: limits.cpu=4, limited: limits.cpu=6"
MINIMUM = "minimum cpu usage per Container is 100m, but request is 50m"


def resources_after(run: Any, refusal: str, requests: dict[str, str], limits: dict[str, str]) -> None:
    refused = with_problem(run.status, "Refused", refusal, generation=run.run.generation, now=run.now)
    run.run = dataclasses.replace(run.run, status=refused)
    (pod,) = run.step(after=5).create
    assert pod["spec"]["containers"][0]["resources"] == {"requests": requests, "limits": limits}


def test_a_results_pod_whose_limits_a_quota_refuses_is_made_with_lower_ones(scene: Any) -> None:
    run = scene(learners=1, worker={"resources": {"requests": LEARNERS, "limits": LEARNERS}}).start()
    run.answer(0, state="finished")
    run.step()
    resources_after(run, "exceeded quota: team, requested: requests.cpu=50m, used: limits.cpu=4", LITTLE, LEARNERS)
    resources_after(run, QUOTA, LITTLE, LOW)
    assert "its pod may use less than a learner" in run.condition("Progressing")["message"]
    resources_after(run, "exceeded quota: team, requested: pods=1, used: pods=2, limited: pods=2", LITTLE, LOW)


def test_a_results_pod_that_has_run_out_of_memory_is_not_given_less(scene: Any) -> None:
    run = scene(learners=1, worker={"resources": {"requests": LEARNERS, "limits": LEARNERS}}).start()
    run.answer(0, state="finished")
    run.step()
    run.pod(None)
    run.step()
    run.fail(None, termination_reason="OOMKilled", exit_code=137)
    run.step()
    del run.pods["pong-results"]
    resources_after(run, QUOTA, LITTLE, LEARNERS)


@pytest.mark.parametrize("refusals", [(QUOTA, MINIMUM), (MINIMUM, QUOTA)], ids=["quota first", "limit range first"])
def test_where_a_quota_and_a_limit_range_refuse_a_results_pod_both_are_heeded(
    scene: Any, refusals: tuple[str, str]
) -> None:
    run = scene(learners=1, worker={"resources": {"requests": LEARNERS, "limits": LEARNERS}}).start()
    run.answer(0, state="finished")
    run.step()
    one = {QUOTA: (LITTLE, LOW), MINIMUM: (LEARNERS, LEARNERS)}
    resources_after(run, refusals[0], *one[refusals[0]])
    resources_after(run, refusals[1], LOW, LOW)
    resources_after(run, refusals[1], LITTLE, LEARNERS)  # from the start: something may have changed


def test_a_learner_that_does_not_come_to_its_end_is_left_out_after_a_while(scene: Any) -> None:
    run = scene().start()
    run.answer(0, state="finished")
    run.step()
    assert made(run.step(after=59)) == []
    assert made(run.step(after=1)) == ["pong-results"]


def test_a_learner_that_is_not_ready_is_not_waited_for_nor_replaced(scene: Any) -> None:
    run = scene().start()
    del run.pods["pong-2"]
    for rank in (0, 1):
        run.answer(rank, state="finished")
    assert made(run.step()) == ["pong-results"]


def test_a_pod_that_has_succeeded_has_finished(scene: Any) -> None:
    run = scene(learners=1).start()
    run.answer(0, state="finished")
    run.step()
    run.progress.clear()
    run.pod(0, phase="Succeeded", ready=False, exit_code=0)
    assert made(run.step()) == ["pong-results"]


def test_a_pod_that_left_in_the_midst_of_training_is_replaced_and_does_not_count(scene: Any) -> None:
    run = scene().start()
    run.pod(1, phase="Succeeded", ready=False, exit_code=0)
    actions = run.step()
    assert (deleted(actions), run.entry(1)["failures"]) == (["pong-1"], 0)
    assert "finishingTime" not in run.status


def test_a_final_model_makes_the_run_succeed(scene: Any) -> None:
    run = scene().start().finish()
    run.answer_results(score=9.5)
    actions = run.step(after=5)
    assert (run.status["state"], run.condition("Succeeded")["status"]) == ("Succeeded", "True")
    assert (run.condition("Failed")["status"], run.condition("Progressing")["status"]) == ("False", "False")
    assert run.status["completionTime"] == "2026-11-22T18:00:25Z"
    assert run.status["finalModel"] == {
        "globalSteps": 300,
        "meanReturn": 9.5,
        "sha256": "ab" * 32,
        "averaged": [0, 1, 2],
        "location": "pod/pong-results",
    }
    assert (actions.delete, actions.release) == ((), ())
    assert [event.reason for event in actions.events] == ["Succeeded"]


@pytest.mark.parametrize(("score", "state"), [(10.0, "Succeeded"), (9.99, "Failed"), (None, "Failed")])
def test_the_final_model_must_reach_the_least_return(scene: Any, score: float | None, state: str) -> None:
    run = scene(evaluation={"minReturn": 10}).start().finish()
    run.answer_results(score=score)
    run.step()
    assert run.status["state"] == state
    if state == "Failed":
        assert run.condition("Failed")["reason"] == "ScoreTooLow"
    assert run.status["finalModel"]["sha256"] == "ab" * 32


def test_without_a_final_model_the_run_fails(scene: Any) -> None:
    run = scene().start().finish()
    run.answer_results(state="failed", message="no learner answered")
    run.step()
    assert run.condition("Failed")["reason"] == "NoFinalModel"
    assert "no learner answered" in run.status["message"]


def test_the_answer_of_an_earlier_results_pod_says_nothing(scene: Any) -> None:
    run = scene().start().finish()
    run.answer_results()
    run.pods.pop("pong-results")
    run.pod(None, uid="another")
    run.step()
    assert run.status["state"] == "Running"


def test_a_results_pod_is_tried_three_times(scene: Any) -> None:
    run = scene().start().finish()
    for failures in (1, 2):
        run.fail(None, uid=f"results-{failures}")
        run.step()
        assert run.status["results"]["failures"] == failures
        assert deleted(run.step(after=10)) == ["pong-results"]
        del run.pods["pong-results"]
        assert made(run.step()) == ["pong-results"]
        run.pod(None)
    run.fail(None, uid="results-3")
    run.step()
    assert run.condition("Failed")["reason"] == "NoFinalModel"


def test_a_disrupted_results_pod_is_replaced_and_does_not_count(scene: Any) -> None:
    run = scene().start().finish()
    run.fail(None, disrupted=True)
    actions = run.step(after=10)
    assert deleted(actions) == ["pong-results"]
    assert "results" not in run.status


def test_finished_learners_are_let_go_before_anything_is_cleaned_up(scene: Any) -> None:
    run = scene().start().end()
    actions = run.step(after=1)
    assert sorted(actions.release) == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert (actions.delete, actions.requeue_at) == ((), run.at(50))
    for rank in range(3):
        run.pod(rank, phase="Succeeded", ready=False, exit_code=0)
    actions = run.step(after=1)
    assert (actions.release, actions.delete) == ((), ())
    assert (run.status["ready"], run.status["state"], run.entry(0)["state"]) == ("0/3", "Succeeded", "finished")
    assert run.decide(after=1000) == Actions(status=run.status)


@pytest.mark.parametrize(
    ("policy", "gone"),
    [
        ("None", ["pong-1"]),
        ("Running", ["pong-1"]),
        ("All", ["pong-0", "pong-1", "pong-2", "pong-results"]),
    ],
)
def test_pods_are_cleaned_up_by_policy(scene: Any, policy: str, gone: list[str]) -> None:
    run = scene(runPolicy={"cleanPodPolicy": policy}).start().end()
    for rank in (0, 2):
        run.pod(rank, phase="Succeeded", ready=False, exit_code=0)
    assert deleted(run.step(after=29)) == []
    assert deleted(run.step(after=1)) == gone


@pytest.mark.parametrize(("policy", "gone"), [("None", []), ("Running", ["pong-0"])])
def test_a_pod_in_which_only_a_sidecar_goes_on_is_not_kept_running(scene: Any, policy: str, gone: list[str]) -> None:
    run = scene(learners=1, runPolicy={"cleanPodPolicy": policy}).start().end()
    run.pod(0, phase="Succeeded", ready=False, exit_code=0, lingering=True)
    actions = run.step(after=1)
    assert (deleted(actions), actions.release) == (gone, ())


@pytest.mark.parametrize("policy", ["None", "Running"])
@pytest.mark.parametrize("fields", [{"phase": "Pending", "ready": False, "ip": None}, {}], ids=["waits", "trains"])
def test_a_learner_that_was_not_at_the_end_is_stopped_whatever_the_policy(
    scene: Any, policy: str, fields: dict[str, Any]
) -> None:
    run = scene(runPolicy={"cleanPodPolicy": policy}).start().end()
    run.pod(0, phase="Succeeded", ready=False, exit_code=0)
    run.fail(2)
    run.pod(1, **fields)
    run.answer(1, state="training")
    assert deleted(run.step(after=29)) == []
    assert deleted(run.step(after=1)) == ["pong-1"]


def test_an_end_is_for_good(scene: Any) -> None:
    run = scene().start().end()
    run.pods.clear()
    for spec in (
        {"learners": 5},
        {"totalSteps": 10**9},
        {"runPolicy": {"suspend": True}},
        {"seed": 5},
        {"learners": 0},
    ):
        run.edit(**spec)
        actions = run.step(after=100)
        assert (actions.apply, actions.create, actions.delete) == ((), (), ())
        assert run.status["state"] == "Succeeded"
        assert run.status["observedGeneration"] == run.run.generation


def test_learners_that_have_gone_after_the_end_are_not_called_ready(scene: Any) -> None:
    run = scene().start().end()
    run.pods.clear()
    run.step(after=100)
    assert (run.status["ready"], run.condition("PodsReady")["status"]) == ("0/3", "False")
    assert run.condition("PodsReady")["reason"] == "Ended"
    assert (run.condition("RingFormed")["status"], run.condition("Succeeded")["status"]) == ("True", "True")


def test_what_the_learners_died_of_stays_after_the_end(scene: Any) -> None:
    run = scene(runPolicy={"minLearners": 3, "backoffLimit": 0}).start()
    run.fail(1)
    run.step()
    run.step()
    assert run.status["state"] == "Failed"
    run.pods.clear()
    run.step(after=100)
    assert run.condition("PodsReady")["reason"] == "BackoffLimitExceeded"


@pytest.mark.parametrize("reason", ["Refused", "NameTaken"])
def test_an_obstacle_after_the_end_is_told_for_as_long_as_it_lasts(scene: Any, reason: str) -> None:
    run = scene().start().end()
    ended = run.status
    refused = with_problem(ended, reason, "exceeded quota", generation=run.run.generation, now=run.now)
    assert (refused["message"], refused["conditions"]) == (f"{reason}: exceeded quota", ended["conditions"])
    run.run = dataclasses.replace(run.run, status=refused)
    run.step(after=5)
    assert run.status["message"] == ended["message"]


@pytest.mark.parametrize("reason", ["Refused", "NameTaken"])
def test_an_obstacle_that_was_there_at_the_end_is_forgotten(scene: Any, reason: str) -> None:
    run = scene().start().end()
    table = Conditions(run.status, generation=run.run.generation, now=run.now)
    table.set("PodsReady", False, reason, "exceeded quota")
    run.run = dataclasses.replace(run.run, status={**run.status, "conditions": table.document()})
    run.step(after=5)
    assert run.condition("PodsReady")["reason"] == "Ended"


def test_a_run_is_deleted_when_its_time_to_live_is_over(scene: Any) -> None:
    run = scene(runPolicy={"ttlSecondsAfterFinished": 500}).start().end()
    run.pods.clear()
    actions = run.step(after=1)
    assert (actions.delete_run, actions.requeue_at) == (False, run.at(520))
    assert run.step(after=499).delete_run


def test_finished_learners_that_are_lost_before_the_results_train_again(scene: Any) -> None:
    run = scene(learners=1).start()
    run.answer(0, state="finished")
    run.step()
    run.pods.clear()
    actions = run.step()
    assert made(actions) == ["pong-0"]
    assert "finishingTime" not in run.status
