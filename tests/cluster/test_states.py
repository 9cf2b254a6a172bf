"""What a run that does not get on says of itself, and how runs end that are ended."""

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from gala_operator.cluster import Cluster


@pytest.mark.usefixtures("operator")
def test_a_run_that_is_stuck_says_why_and_goes_on_when_the_reason_is_gone(namespace, slow_pole):
    secret = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}}
    path = {"name": "PYTHONPATH", "value": "/opt/environments"}
    namespace.apply(
        slow_pole("no-image", learners=1, worker={"image": "localhost/none:1", "imagePullPolicy": "Never"}),
        slow_pole("no-registry", learners=1, worker={"image": "registry.invalid/none:1"}),
        slow_pole("no-gpus", learners=1, worker={"gpus": 5}),
        slow_pole("no-secret", learners=1, worker={"env": [path, secret]}),
        slow_pole("wrong", learners=2, topology={"peers": 2}, gossip={"everyUpdates": 5, "maxStaleness": 1}),
    )

    reasons = {
        "no-image": ("ErrImageNeverPull", "localhost/none:1"),
        "no-registry": ("ErrImagePull", "registry.invalid"),
        "no-gpus": ("Unschedulable", "Insufficient nvidia.com/gpu"),
        "no-secret": ("CreateContainerConfigError", 'secret "token" not found'),
    }
    for run, (reason, words) in reasons.items():
        message = namespace.wait_condition(run, "PodsReady", reason)["message"]
        assert message.startswith(f"{run}-0: ")
        assert words in message
        status = namespace.status(run)
        assert status["state"] == "Starting"
        assert status["message"] == f"0 of 1 learners are ready; {reason}: {message}"

    refused = namespace.wait_condition("wrong", "Accepted", "InvalidSpec")
    assert refused["status"] == "False"
    assert "spec.topology.peers" in refused["message"]
    assert "spec.gossip.maxStaleness" in refused["message"]
    assert namespace.status("wrong")["state"] == "Pending"
    assert not namespace.children("wrong")

    namespace.kubectl("create", "secret", "generic", "token", "--from-literal=token=1")
    namespace.patch("wrong", topology={"peers": 1}, gossip={"everyUpdates": 1})
    namespace.wait_state("no-secret", "Running")
    namespace.wait_condition("wrong", "Accepted", "Valid")

    # A run that never came to life has its deadline too, and takes its pods with it.
    namespace.patch("no-gpus", runPolicy={"activeDeadlineSeconds": 1})
    status = namespace.wait_state("no-gpus", "Failed")
    assert {c["type"]: c["reason"] for c in status["conditions"]}["Failed"] == "DeadlineExceeded"
    namespace.wait("galaruns", "no-gpus", lambda _: not namespace.pods("no-gpus"), what="its pods are gone")

    # One that learns as well; and when its time is over, it goes.
    namespace.wait(
        "galaruns", "no-secret", lambda run: run["status"]["learnerStatuses"][0].get("steps", 0) > 0, what="its steps"
    )
    namespace.patch("no-secret", runPolicy={"activeDeadlineSeconds": 1, "cleanPodPolicy": "None"})
    status = namespace.wait_state("no-secret", "Failed")
    assert status["learnerStatuses"][0]["steps"] > 0
    namespace.wait("galaruns", "no-secret", lambda _: not namespace.pods("no-secret"), what="its pods are gone")
    namespace.patch("no-secret", runPolicy={"ttlSecondsAfterFinished": 1})
    namespace.wait_gone("no-secret")
    assert namespace.get("galaruns", "no-secret") is None

    reasons_told = {(event["involvedObject"]["name"], event["reason"]) for event in namespace.items("events")}
    for run, (reason, _) in reasons.items():
        assert (run, reason) in reasons_told


def ends(run: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A run of one learner that is over in seconds."""
    run["spec"] |= {"learners": 1, "totalSteps": 100, **spec}
    return run


@pytest.mark.usefixtures("operator")
def test_pods_are_cleaned_up_by_the_policy_and_a_low_score_fails_the_run(namespace, slow_pole):
    namespace.apply(
        ends(slow_pole("none"), runPolicy={"cleanPodPolicy": "None"}),
        ends(slow_pole("running")),
        ends(slow_pole("all"), runPolicy={"cleanPodPolicy": "All"}, evaluation={"episodes": 1, "minReturn": 501}),
    )
    for run in ("none", "running"):
        assert namespace.wait_state(run, "Succeeded", "Failed", seconds=200)["state"] == "Succeeded"
    status = namespace.wait_state("all", "Failed")
    assert {c["type"]: c["reason"] for c in status["conditions"]}["Failed"] == "ScoreTooLow"
    assert status["finalModel"]["meanReturn"] < 501

    def phases(run: str) -> dict[str, str]:
        return {name: pod["status"]["phase"] for name, pod in namespace.pods(run).items()}

    for run in ("none", "running"):
        left = {f"{run}-0": "Succeeded", f"{run}-results": "Running"}
        namespace.wait("galaruns", run, lambda _, run=run, left=left: phases(run) == left, what=f"{run}: {left}")
    namespace.wait("galaruns", "all", lambda _: not phases("all"), what="all: no pods")


@pytest.mark.usefixtures("operator")
@pytest.mark.timeout(420, func_only=True)
def test_a_run_deleted_while_it_starts_is_made_anew_under_its_name_at_once(namespace, slow_pole, until):
    run = slow_pole("pole")
    namespace.apply(run)
    namespace.wait("pods", "pole-1", lambda pod: pod["metadata"]["uid"])
    first = namespace.get("galaruns", "pole")["metadata"]["uid"]
    namespace.delete("galarun", "pole")
    run["spec"]["learners"] = 1
    run["spec"]["seed"] = 2
    namespace.apply(run)
    second = namespace.get("galaruns", "pole")["metadata"]["uid"]
    assert second != first

    namespace.wait_state("pole", "Running")

    def owners() -> set[str]:
        """Of all that carries the run's label."""
        found = [namespace.get(*child.split("/")) for child in namespace.children("pole")]
        return {owner["uid"] for child in found if child for owner in child["metadata"]["ownerReferences"]}

    until("what the first run had made is gone", lambda: owners() == {second})
    [learner] = namespace.pods("pole").values()
    assert learner["metadata"]["labels"]["gala.dev/run-uid"] == second
    assert namespace.status("pole")["learnerStatuses"][0]["failures"] == 0

    namespace.delete("galarun", "pole")
    namespace.wait_gone("pole")


def test_a_status_for_a_run_that_was_deleted_does_not_become_its_successors(namespace, slow_pole):
    """An API server puts a custom resource's own metadata over those of a patch of its status, a wrong uid as well."""

    def made() -> dict[str, Any]:
        namespace.apply(slow_pole("pole"))
        metadata: dict[str, Any] = namespace.get("galaruns", "pole")["metadata"]
        return metadata

    async def write(version: str, state: str) -> Any:
        configuration = Configuration()
        await load_kube_config(str(namespace.cluster.kubeconfig), client_configuration=configuration)
        cluster = Cluster(configuration, concurrency=1)
        try:
            return await cluster.patch_status(namespace.name, "pole", version, {"state": state})
        finally:
            await cluster.close()

    before = made()
    namespace.delete("galarun", "pole")
    after = made()
    assert after["uid"] != before["uid"]
    assert asyncio.run(write(before["resourceVersion"], "Failed")) is None
    assert "status" not in namespace.get("galaruns", "pole")
    assert asyncio.run(write(after["resourceVersion"], "Pending"))["status"] == {"state": "Pending"}
    assert asyncio.run(write(after["resourceVersion"], "Failed")) is None, "it has changed since"
    assert namespace.status("pole") == {"state": "Pending"}
