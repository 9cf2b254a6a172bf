"""Algorithms whose ranks are not all alike: who is waited for, whose loss ends the run, and who makes its result."""

from __future__ import annotations

from typing import Any

import pytest

from gala_operator.actions import Actions

CENTRED = ("A3C", "IMPALA")
VOLUME = {"everySteps": 1000, "volume": {"size": "1Gi"}}


def connected(rank: int, ranks: set[int], algorithm: str) -> tuple[int, ...]:
    """Whom a learner hears, with those ranks alive."""
    others = ranks - {rank}
    return tuple(sorted(others if rank == 0 or algorithm not in CENTRED else others & {0}))


def answers(run: Any, algorithm: str, ranks: set[int], **fields: Any) -> None:
    for rank in ranks:
        run.answer(rank, in_peers=connected(rank, ranks, algorithm), **fields)


def started(scene: Any, algorithm: str, **spec: Any) -> Any:
    """A run of three learners that hear each other."""
    run = scene(algorithm=algorithm, **spec)
    run.step()
    for rank in range(3):
        run.pod(rank)
    answers(run, algorithm, {0, 1, 2})
    run.step(after=20)
    assert (run.status["state"], run.condition("RingFormed")["status"]) == ("Running", "True")
    return run


def made(actions: Actions) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in actions.create]


@pytest.mark.parametrize("algorithm", ["A2C", *CENTRED])
def test_while_an_essential_learner_is_away_the_run_is_degraded_and_says_who_is_waited_for(
    scene: Any, algorithm: str
) -> None:
    run = started(scene, algorithm, checkpoint=VOLUME)
    run.fail(0, termination_reason="OOMKilled", exit_code=137)
    run.step()
    answers(run, algorithm, {1, 2}, state="waiting")
    actions = run.step(after=1)
    goes_on = "their state" if algorithm == "A2C" else "its checkpoint"
    assert (run.status["state"], run.status["ready"]) == ("Degraded", "2/3")
    assert f"the others wait for pong-0, which goes on from {goes_on}; OOMKilled: pong-0" in run.status["message"]
    progressing = run.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "EssentialLearnerAway")
    assert progressing["message"] == f"The others wait for pong-0, which goes on from {goes_on}."
    assert run.condition("PodsReady")["reason"] == "OOMKilled"
    assert run.condition("RingFormed")["reason"] == "Reforming"
    assert run.condition("RingFormed")["message"] == "pong-1 is not connected to pong-0."
    assert [deletion.name for deletion in actions.delete] == ["pong-0"]

    del run.pods["pong-0"]
    assert made(run.step()) == ["pong-0"]
    run.pod(0, uid="next", attempt=1)
    answers(run, algorithm, {0, 1, 2})
    run.step()
    assert (run.status["state"], run.condition("Progressing")["status"]) == ("Running", "True")
    assert run.condition("RingFormed")["status"] == "True"
    assert [run.entry(rank)["failures"] for rank in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("algorithm", CENTRED)
def test_without_a_volume_it_is_said_that_the_centre_starts_over(scene: Any, algorithm: str) -> None:
    run = started(scene, algorithm)
    run.pod(0, deleting=True, ready=False)
    run.step()
    assert "the others wait for pong-0, which starts over when it is back" in run.status["message"]


@pytest.mark.parametrize("algorithm", [*CENTRED, "GALA-A2C", "GALA-PPO"])
def test_nobody_waits_for_a_learner_that_is_not_essential(scene: Any, algorithm: str) -> None:
    run = started(scene, algorithm)
    run.fail(2)
    run.step()
    answers(run, algorithm, {0, 1})
    run.step()
    assert (run.status["state"], run.condition("Progressing")["reason"]) == ("Degraded", "Training")
    assert "wait" not in run.status["message"]
    assert run.condition("RingFormed")["status"] == "True"


@pytest.mark.parametrize(("algorithm", "rank"), [("A2C", 0), ("A2C", 2), ("A3C", 0), ("IMPALA", 0)])
def test_an_essential_learner_that_has_used_up_its_restarts_ends_the_run(scene: Any, algorithm: str, rank: int) -> None:
    run = started(scene, algorithm, runPolicy={"backoffLimit": 0})
    run.fail(rank)
    run.step()
    failed = run.condition("Failed")
    assert (run.status["state"], failed["reason"]) == ("Failed", "EssentialLearnerFailed")
    assert failed["message"].startswith(f"pong-{rank} is left out after 1 failure; Error: ValueError: no")
    assert failed["message"].endswith("the others cannot go on without it")
    others = {f"pong-{other}" for other in range(3)} - {f"pong-{rank}"}
    assert {deletion.name for deletion in run.step().delete} == others, "they would wait for ever"


@pytest.mark.parametrize("algorithm", CENTRED)
def test_the_loss_of_another_does_not_end_the_run(scene: Any, algorithm: str) -> None:
    run = started(scene, algorithm, runPolicy={"backoffLimit": 0})
    run.fail(1)
    run.step()
    assert (run.status["state"], run.entry(1)["state"]) == ("Degraded", "failed")


def test_a_start_in_which_the_centre_is_the_last_to_come_is_no_loss(scene: Any) -> None:
    run = scene(algorithm="IMPALA")
    run.step()
    for rank in (1, 2):
        run.pod(rank)
        run.answer(rank, in_peers=(), state="waiting")
    run.pod(0, phase="Pending", ready=False)
    run.step()
    assert (run.status["state"], run.condition("Progressing")["status"]) == ("Starting", "True")


def test_a_centre_that_cannot_start_is_named_as_what_all_wait_for(scene: Any) -> None:
    run = scene(algorithm="A3C")
    run.step()
    for rank in (1, 2):
        run.pod(rank)
        run.answer(rank, in_peers=(), state="waiting")
    run.pod(0, phase="Pending", ready=False, scheduling_problem="0/1 nodes are available.")
    run.step()
    assert run.status["state"] == "Degraded"
    assert "the others wait for pong-0" in run.status["message"]
    assert "Unschedulable: pong-0: 0/1 nodes are available." in run.status["message"]
    assert run.condition("RingFormed")["message"] == "pong-1 is not connected to pong-0."


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("GALA-A2C", "Every learner that is ready hears a neighbour."),
        ("A2C", "Every learner is connected to every other."),
        ("A3C", "pong-0 and every other learner that is ready are connected."),
        ("IMPALA", "pong-0 and every other learner that is ready are connected."),
    ],
)
def test_a_formed_ring_says_who_is_connected_to_whom(scene: Any, algorithm: str, words: str) -> None:
    assert started(scene, algorithm).condition("RingFormed")["message"] == words


def test_synchronous_learners_are_not_together_before_each_hears_all_others(scene: Any) -> None:
    run = started(scene, "A2C")
    run.answer(1, in_peers=(0,))
    run.step()
    assert run.condition("RingFormed")["message"] == "pong-1 is not connected to pong-2."
    assert run.condition("RingFormed")["status"] == "False"


def test_one_synchronous_learner_needs_no_other(scene: Any) -> None:
    run = scene(algorithm="A2C", learners=1)
    run.step()
    run.pod(0)
    run.step()
    assert (run.status["state"], run.condition("RingFormed")["status"]) == ("Running", "True")
    run.fail(0)
    run.step()
    assert run.status["state"] == "Starting"
    assert "wait" not in run.status["message"], "there is nobody who could"


@pytest.mark.parametrize("algorithm", CENTRED)
def test_the_end_comes_when_the_centre_has_finished_and_waits_for_nobody_else(scene: Any, algorithm: str) -> None:
    run = started(scene, algorithm)
    run.answer(1, state="finished", in_peers=(0,))
    assert made(run.step()) == []
    assert "finishingTime" not in run.status, "an actor has nothing to give"
    run.answer(0, state="finished", in_peers=(1, 2))
    assert made(run.step()) == ["pong-results"], "the last actor may take its time"


def test_a_centre_that_is_lost_while_actors_have_finished_comes_back_and_finishes_itself(scene: Any) -> None:
    run = started(scene, "IMPALA", checkpoint=VOLUME)
    for rank in (1, 2):
        run.answer(rank, state="finished", in_peers=())
    del run.pods["pong-0"]
    assert made(run.step()) == ["pong-0"]


def test_actors_that_finished_before_the_end_was_lost_with_the_learner_are_made_anew(scene: Any) -> None:
    run = started(scene, "IMPALA", checkpoint=VOLUME)
    for rank in (1, 2):
        run.answer(rank, state="finished", in_peers=())
    run.fail(0)
    run.step()
    run.step(after=1)
    del run.pods["pong-0"]
    run.step()
    run.pod(0, uid="next", attempt=1)
    run.answer(0, state="waiting", in_peers=())
    actions = run.step(after=5)
    assert actions.delete == (), "it may have come back at the end"
    assert run.condition("RingFormed")["message"] == "pong-0 is connected to no other learner."
    assert actions.requeue_at is not None
    actions = run.step(after=60)
    assert [deletion.name for deletion in actions.delete] == ["pong-1", "pong-2"]
    for rank in (1, 2):
        del run.pods[f"pong-{rank}"]
    assert made(run.step()) == ["pong-1", "pong-2"]
    assert [run.entry(rank)["failures"] for rank in range(3)] == [1, 0, 0]


def test_synchronous_learners_all_give_their_model(scene: Any) -> None:
    run = started(scene, "A2C")
    for rank in (0, 1):
        run.answer(rank, state="finished", in_peers=(0, 1, 2))
    actions = run.step()
    assert made(actions) == []
    assert run.status["message"] == "2 of 3 learners have finished; pong-2 has not yet."


def test_the_scale_subresource_finds_pods_of_every_role(scene: Any) -> None:
    run = started(scene, "IMPALA")
    assert run.status["selector"] == "gala.dev/run=pong,gala.dev/rank"
