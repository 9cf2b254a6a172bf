"""What is lost: pods on nodes that do not answer, and the pod that serves the result of a run that has ended."""

from __future__ import annotations

from typing import Any

import pytest

from gala_operator.actions import Actions

VOLUME = {"volume": {"size": "1Gi"}}


def made(actions: Actions) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in actions.create]


def deleted(actions: Actions) -> list[str]:
    return [deletion.name for deletion in actions.delete]


def told(actions: Actions) -> list[str]:
    return [event.reason for event in actions.events]


def test_a_pod_whose_node_does_not_confirm_its_end_is_a_lost_node(scene: Any) -> None:
    run = scene().start()
    run.pod(1, deleting=True, ready=False, end_due=run.at(50), node="gpu-7")
    actions = run.step()
    assert (run.condition("PodsReady")["reason"], actions.requeue_at) == ("Waiting", run.at(110))
    assert run.decide(after=89.5).status == run.status
    actions = run.step(after=0.5)
    assert (run.status["state"], run.entry(1)["state"]) == ("Degraded", "stopping")
    ready = run.condition("PodsReady")
    assert ready["reason"] == "NodeLost"
    assert ready["message"].startswith("pong-1 was to end by 2026-11-22T18:00:50Z, and node gpu-7 does not confirm it")
    assert "NodeLost" in told(actions)
    assert (made(actions), deleted(actions)) == ([], []), "there must never be two of one name"
    later = run.step(after=3600)
    assert (made(later), deleted(later), told(later)) == ([], [], [])


def test_once_the_pod_on_a_lost_node_is_gone_its_successor_is_made_and_nothing_is_counted(scene: Any) -> None:
    run = scene().start()
    run.pod(1, deleting=True, ready=False, end_due=run.at(0), node="gpu-7")
    run.step(after=100)
    del run.pods["pong-1"]
    assert made(run.step()) == ["pong-1"]
    assert run.entry(1)["failures"] == 0
    assert run.condition("PodsReady")["reason"] == "Waiting"


def test_a_run_that_cannot_be_suspended_for_a_lost_node_says_so(scene: Any) -> None:
    run = scene().start()
    run.edit(runPolicy={"suspend": True})
    run.step()
    for rank in (0, 2):
        del run.pods[f"pong-{rank}"]
    run.pod(1, deleting=True, ready=False, end_due=run.at(50), node="gpu-7")
    assert run.step().requeue_at == run.at(110)
    run.step(after=90)
    assert run.status["message"].startswith("NodeLost: pong-1 was to end")
    assert (run.status["state"], run.condition("Suspended")["status"]) == ("Running", "False")
    del run.pods["pong-1"]
    run.step()
    assert run.status["state"] == "Suspended"


def test_a_results_pod_on_a_lost_node_is_named_as_what_the_end_waits_for(scene: Any) -> None:
    run = scene().start().finish()
    run.pod(None, deleting=True, end_due=run.at(30), node="gpu-7")
    assert run.step(after=20).requeue_at == run.at(90)
    run.step(after=100)
    assert run.status["message"].startswith("The final model cannot be made yet: NodeLost: pong-results was to end")


def ended(scene: Any, **spec: Any) -> Any:
    """A run that has succeeded and whose learners are let go."""
    run = scene(**spec).start().end()
    for rank in range(3):
        run.pod(rank, phase="Succeeded", ready=False, exit_code=0)
    run.step(after=60)
    return run


def test_a_results_pod_that_is_lost_after_the_end_is_made_again_where_its_volume_is(scene: Any) -> None:
    run = ended(scene, checkpoint=VOLUME)
    said = run.status["message"]
    del run.pods["pong-results"]
    actions = run.step()
    assert (made(actions), told(actions)) == (["pong-results"], ["ResultServedAgain"])
    volumes = actions.create[0]["spec"]["volumes"]
    assert {"name": "gala-output", "persistentVolumeClaim": {"claimName": "pong-results"}} in volumes
    assert (run.status["state"], run.status["message"]) == ("Succeeded", said)
    run.pod(None, uid="another")
    assert run.step(after=100) == Actions(status=run.status)


def test_a_result_that_is_gone_with_its_pod_is_said_to_be_gone_once(scene: Any) -> None:
    run = ended(scene)
    end = {name: run.status[name] for name in ("state", "completionTime", "finalModel", "conditions")}
    del run.pods["pong-results"]
    actions = run.step(after=5)
    assert (made(actions), told(actions)) == ([], ["ResultGone"])
    assert run.status["message"] == (
        "The final model's mean return is 9.5. The result is gone with its pod: there is no spec.checkpoint.volume."
    )
    assert {name: run.status[name] for name in end} == end
    assert run.step(after=100) == Actions(status=run.status)


@pytest.mark.parametrize("how", ["evicted", "drained"])
def test_a_results_pod_that_the_cluster_ended_is_replaced(scene: Any, how: str) -> None:
    run = ended(scene, checkpoint=VOLUME)
    if how == "evicted":
        run.fail(None, disrupted=True)
    else:
        run.pod(None, phase="Succeeded", ready=False, exit_code=0)
    assert deleted(run.step()) == ["pong-results"]
    assert "results" not in run.status
    del run.pods["pong-results"]
    assert made(run.step()) == ["pong-results"]


def test_a_results_pod_that_fails_again_and_again_is_given_up_and_the_run_stays_succeeded(scene: Any) -> None:
    run = ended(scene, checkpoint=VOLUME)
    for failures in (1, 2):
        run.fail(None, uid=f"results-{failures}")
        assert deleted(run.step()) == []
        assert run.status["results"]["failures"] == failures
        assert deleted(run.step(after=10)) == ["pong-results"]
        del run.pods["pong-results"]
        assert made(run.step()) == ["pong-results"]
        run.pod(None)
    run.fail(None, uid="results-3")
    actions = run.step()
    assert (run.status["state"], told(actions)) == ("Succeeded", ["ResultGone"])
    assert "The result cannot be fetched: pong-results is left out after 3 failures" in run.status["message"]
    assert run.step(after=1000) == Actions(status=run.status)
    del run.pods["pong-results"]
    assert made(run.step()) == []


def test_a_results_pod_that_cannot_start_again_says_why(scene: Any) -> None:
    run = ended(scene, checkpoint=VOLUME)
    del run.pods["pong-results"]
    run.step()
    run.pod(None, uid="b", phase="Pending", ready=False, scheduling_problem='claim "pong-results" not found')
    run.step()
    assert run.status["message"].endswith('Unschedulable: pong-results: claim "pong-results" not found')
    run.pod(None, phase="Running", ready=True, scheduling_problem=None)
    run.step()
    assert run.status["message"] == "The final model's mean return is 9.5."


@pytest.mark.parametrize(
    "spec",
    [{"runPolicy": {"cleanPodPolicy": "All"}}, {"runPolicy": {"ttlSecondsAfterFinished": 1}}],
    ids=["it is not wanted", "the run goes"],
)
def test_no_results_pod_is_made_again_where_none_is_to_be(scene: Any, spec: dict[str, Any]) -> None:
    run = ended(scene, checkpoint=VOLUME, **spec)
    run.pods.clear()
    actions = run.step()
    assert (made(actions), told(actions)) == ([], [])


def test_a_run_without_a_final_model_has_nothing_to_serve(scene: Any) -> None:
    run = scene(checkpoint=VOLUME).start().finish()
    run.answer_results(state="failed", message="no learner answered")
    run.step()
    del run.pods["pong-results"]
    assert made(run.step(after=60)) == []


def test_a_model_that_is_not_good_enough_is_served_again_all_the_same(scene: Any) -> None:
    run = ended(scene, checkpoint=VOLUME, evaluation={"minReturn": 100})
    assert run.condition("Failed")["reason"] == "ScoreTooLow"
    del run.pods["pong-results"]
    assert made(run.step()) == ["pong-results"]
    assert "below evaluation.minReturn" in run.status["message"]


def test_a_learner_that_failed_for_good_makes_room_in_the_disruption_budget_until_it_may_try_again(scene: Any) -> None:
    run = scene(runPolicy={"backoffLimit": 0}).start()
    run.fail(1)
    (budget,) = run.step().apply
    assert (budget["kind"], budget["spec"]["maxUnavailable"]) == ("PodDisruptionBudget", 2)
    assert run.step(after=1).apply == ()
    run.edit(runPolicy={"backoffLimit": 1})
    applied = {manifest["kind"]: manifest for manifest in run.step(after=1).apply}
    assert applied["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
