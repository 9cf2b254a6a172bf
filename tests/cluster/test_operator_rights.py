"""The rights that the chart gives, held against what the operator asked for by the API server's own record."""

import json
from pathlib import Path
from typing import Any

import pytest

Right = tuple[str, str, str]
"""API group, resource with subresource, verb."""

NO_REQUEST: dict[Right, str] = {
    ("gala.dev", "galaruns/finalizers", "update"): "asked for by an admission plugin, when children get their owner",
    **{
        (group, resource, verb): why
        for group, resource in (
            ("", "services"),
            ("", "persistentvolumeclaims"),
            ("networking.k8s.io", "networkpolicies"),
            ("policy", "poddisruptionbudgets"),
        )
        for verb, why in (
            ("get", "asked for when its name is taken, as the ConfigMap's is here"),
            ("patch", "asked for when what it says changes, as the ConfigMap does here"),
        )
    },
}


def granted(cluster, namespace: str) -> set[Right]:
    """By all the Roles of the release."""
    roles = cluster.read(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles")["items"]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def requests(state: str, namespace: str) -> list[dict[str, Any]]:
    """What the operator's account asked for, but for what every account may (which versions there are)."""
    log = Path(state, "log/audit.log")
    account = f"system:serviceaccount:{namespace}:gala-operator"
    records = [json.loads(line) for line in log.read_text().splitlines() if account in line]
    return [record for record in records if record["user"]["username"] == account and "objectRef" in record]


def right(request: dict[str, Any]) -> Right:
    about = request["objectRef"]
    resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
    return about.get("apiGroup", ""), resource, request["verb"]


@pytest.mark.timeout(420, func_only=True)
def test_the_operator_has_the_rights_that_it_uses_and_no_others(cluster, namespace, slow_pole, deployed, until):
    if not cluster.node:
        pytest.skip("needs the API server's audit log")
    deployed("leaderElection.enabled=true", "replicas=2")

    # One life with all that a run may ask for: a name that is taken for a while, volumes, learners that join
    # and leave, an end, and a time to live.
    mine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pole-plan"}}
    namespace.apply(mine)
    run = slow_pole("pole", learners=1, checkpoint={"everySteps": 1000, "volume": {"size": "1Gi"}})
    run["spec"]["runPolicy"] = {"ttlSecondsAfterFinished": 1}
    namespace.apply(run)

    def told(reason: str, what: str, times: int = 1) -> bool:
        events = [event for event in namespace.items("events") if event["reason"] == reason]
        return any(what in event["message"] and event["count"] >= times for event in events)

    until("the name that is taken is told", lambda: told("NameTaken", "pole-plan"))
    namespace.kubectl("delete", "configmap", "pole-plan")
    namespace.wait_state("pole", "Running")
    squatter = {"name": "sleep", "image": cluster.operator_image, "command": ["sleep", "600"]}
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pole-1"},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [squatter]},
        }
    )
    namespace.patch("pole", learners=2)
    until("the pod's name is taken", lambda: told("NameTaken", "pole-1"))
    namespace.delete("pod", "pole-1", "--grace-period=1")
    for times in (1, 2):  # what is told again is counted: that takes a right of its own
        namespace.patch("pole", learners=2)
        namespace.wait("galaruns", "pole", lambda run: run["status"]["readyLearners"] == 2, what="both are ready")
        namespace.patch("pole", learners=1)
        until("the second learner has left", lambda: list(namespace.pods("pole")) == ["pole-0"])
        until("it is told", lambda times=times: told("Scaled", "From 2 to 1 learners.", times))
    namespace.patch("pole", totalSteps=1)
    until("the run has finished and is gone", lambda: not namespace.items("galaruns"), 180)

    # The record of a watch is complete when it has ended.
    rights = granted(cluster, namespace.name)
    namespace.kubectl("scale", "deployment/gala-operator", "--replicas=0")
    until("the operators are gone", lambda: not namespace.items("pods", "app.kubernetes.io/name=gala-operator"))
    made = requests(cluster.environment["GALA_STATE"], namespace.name)
    refused = [record for record in made if record.get("responseStatus", {}).get("code") == 403]
    assert not refused
    elsewhere = [record for record in made if record["objectRef"].get("namespace") != namespace.name]
    assert not elsewhere
    used = {right(record) for record in made}
    assert used - rights == set(), "used without a right: the audit log and the roles are of different accounts?"
    assert rights - used == set(NO_REQUEST), "rights that nothing is done with"
