"""examples/cluster/pong.yaml on a node with four (pretended) GPUs: four learners have one each, a fifth must wait."""

from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]


@pytest.mark.usefixtures("operator")
@pytest.mark.timeout(600, func_only=True)
def test_four_learners_get_a_gpu_each_and_a_fifth_waits_while_they_learn(cluster, namespace, until):
    run = yaml.safe_load((PROJECT / "examples/cluster/pong.yaml").read_text())
    worker = run["spec"]["worker"]
    assert (run["spec"]["learners"], worker["gpus"]) == (4, 1)
    # Small enough for the test's node.
    run["spec"]["environment"]["simulators"] = 1
    worker["resources"] = {"requests": {"cpu": "50m", "memory": "300Mi"}, "limits": {"cpu": "300m", "memory": "2Gi"}}
    namespace.apply(run)
    namespace.wait_state("pong", "Running", seconds=400)
    pods = namespace.pods("pong")
    assert sorted(pods) == ["pong-0", "pong-1", "pong-2", "pong-3"]
    for pod in pods.values():
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "computing on the CPU" in namespace.kubectl("logs", "pong-0"), "there is no CUDA behind these GPUs"
    before = namespace.lives("pong")

    namespace.kubectl("scale", "galarun/pong", "--replicas=5")
    status = namespace.wait_state("pong", "Degraded")
    assert status["ready"] == "4/5"
    # For a moment it may be its claim that the scheduler misses first.
    waiting = namespace.wait_condition("pong", "PodsReady", "Unschedulable", says="Insufficient nvidia.com/gpu")
    assert "pong-4" in waiting["message"]
    steps = status["steps"]
    namespace.wait("galaruns", "pong", lambda found: found["status"]["steps"] > steps, what="it learns nevertheless")
    after = namespace.lives("pong")
    assert {name: after[name] for name in before} == before
    assert namespace.status("pong")["state"] == "Degraded"
