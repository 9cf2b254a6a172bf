"""A GalaRun's life on a real cluster, from apply to deletion."""

from typing import Any

import pytest


def cartpole(name: str, **spec: Any) -> dict[str, Any]:
    """A run of two small learners on the CPU."""
    return {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"name": name},
        "spec": {
            "environment": {"id": "CartPole-v1", "simulators": 4},
            "learners": 2,
            "totalSteps": 10_000,
            "worker": {"gpus": 0, "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": 1, "memory": "1Gi"}}},
            "evaluation": {"episodes": 2},
            **spec,
        },
    }


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {condition["type"]: condition["status"] for condition in status.get("conditions", [])}


@pytest.mark.usefixtures("operator")
def test_a_run_trains_to_its_end_and_leaves_nothing_when_it_is_deleted(namespace):
    namespace.apply(cartpole("pole"))
    status = namespace.wait_state("pole", "Succeeded", "Failed", seconds=270)

    assert status["state"] == "Succeeded", status["message"]
    assert conditions(status)["Succeeded"] == "True"
    assert status["finalModel"]["globalSteps"] >= 10_000
    assert status["finalModel"]["averaged"] == [0, 1]
    assert len(status["finalModel"]["sha256"]) == 64
    assert [learner["failures"] for learner in status["learnerStatuses"]] == [0, 0]
    namespace.kubectl("wait", "--for=condition=Succeeded", "galarun/pole", "--timeout=5s")

    namespace.delete("galarun", "pole")
    namespace.wait_gone("pole")
