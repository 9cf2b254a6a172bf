"""Every algorithm on a real cluster: each trains CartPole to its end, and outlives the loss of whom others wait for."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = "pole"
RESUMED = re.compile(r"resumed at ([\d,]+) global steps")


def example(algorithm: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / f"cartpole-{algorithm}.yaml").read_text())
    return document


@pytest.mark.timeout(400, func_only=True)
@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "a3c", "impala"])
def test_an_example_trains_cartpole_from_apply_to_its_full_score(namespace, algorithm):
    run = example(algorithm)
    assert run["spec"]["worker"]["gpus"] == 0
    name, learners = run["metadata"]["name"], run["spec"]["learners"]
    namespace.kubectl("apply", "-f", str(EXAMPLES / f"cartpole-{algorithm}.yaml"))
    status = namespace.wait_state(name, "Succeeded", "Failed", seconds=360)

    assert status["state"] == "Succeeded", status["message"]
    assert status["finalModel"]["meanReturn"] >= 475
    assert status["finalModel"]["globalSteps"] >= run["spec"]["totalSteps"]
    centred = algorithm in ("a3c", "impala")
    assert status["finalModel"]["averaged"] == ([0] if centred else list(range(learners)))
    assert [learner["failures"] for learner in status["learnerStatuses"]] == [0] * learners
    roles = {pod["metadata"]["labels"]["gala.dev/role"] for pod in namespace.pods(name).values()}
    assert (
        roles
        == {
            "a2c": {"actor-learner", "results"},
            "ppo": {"actor-learner", "results"},
            "a3c": {"server", "actor-learner", "results"},
            "impala": {"learner", "actor", "results"},
        }[algorithm]
    )


def progressing(status: dict[str, Any]) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == "Progressing"), {})


# How each goes on, and what the run has of one that does not take long to learn from.
ALGORITHMS = {
    "IMPALA": ("its checkpoint", {"rolloutLength": 10, "batchRollouts": 4}),
    "A2C": ("their state", {"rolloutLength": 10}),
}


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_others_wait_for_an_essential_learner_that_is_killed_and_the_run_goes_on(
    namespace, slow_pole, until, algorithm
):
    if not namespace.cluster.node:
        pytest.skip("needs the inside of the node")
    goes_on, hyperparameters = ALGORITHMS[algorithm]
    namespace.apply(
        slow_pole(
            RUN,
            algorithm=algorithm,
            learners=3,
            hyperparameters=hyperparameters,
            checkpoint={"everySteps": 200, "volume": {"size": "1Gi"}},
        )
    )
    namespace.wait_condition(RUN, "RingFormed", "Formed", 150)
    namespace.wait("galaruns", RUN, lambda found: found["status"].get("steps", 0) >= 600, what="600 steps")
    before, lives = namespace.status(RUN), namespace.lives(RUN)

    [container] = namespace.get("pods", f"{RUN}-0")["status"]["containerStatuses"]
    namespace.cluster.enter(
        "ctr", "task", "kill", "--signal", "SIGKILL", container["containerID"].removeprefix("containerd://")
    )
    status = namespace.wait(
        "galaruns",
        RUN,
        lambda found: found["status"] if progressing(found["status"]).get("reason") == "EssentialLearnerAway" else None,
        what="the status says that the others wait",
    )
    assert status["state"] == "Degraded"
    assert f"the others wait for {RUN}-0, which goes on from {goes_on}" in status["message"]
    assert progressing(status)["status"] == "False"
    until("another learner says that it waits", lambda: namespace.worker_status(f"{RUN}-1").get("state") == "waiting")

    def goes_on_again(found: dict[str, Any]) -> bool:
        now = found["status"]
        return now["state"] == "Running" and progressing(now)["reason"] == "Training" and now["steps"] > before["steps"]

    namespace.wait("galaruns", RUN, goes_on_again, 150, f"the steps rise beyond {before['steps']}")
    namespace.wait_condition(RUN, "RingFormed", "Formed")
    after = namespace.lives(RUN)
    assert after[f"{RUN}-0"][0] != lives[f"{RUN}-0"][0]
    assert {name: after[name] for name in (f"{RUN}-1", f"{RUN}-2")} == {
        f"{RUN}-1": (lives[f"{RUN}-1"][0], 0),
        f"{RUN}-2": (lives[f"{RUN}-2"][0], 0),
    }
    assert [learner["failures"] for learner in namespace.status(RUN)["learnerStatuses"]] == [1, 0, 0]
    if algorithm == "IMPALA":
        [steps] = RESUMED.findall(namespace.kubectl("logs", f"{RUN}-0"))
        assert int(steps.replace(",", "")) >= 500

    namespace.patch(RUN, totalSteps=namespace.status(RUN)["steps"] + 500)
    status = namespace.wait_state(RUN, "Succeeded", "Failed", seconds=150)
    assert status["state"] == "Succeeded", status["message"]
    assert status["finalModel"]["averaged"] == ([0] if algorithm == "IMPALA" else [0, 1, 2])
