"""The children of a run beside its pods: what they say, and when their hashes say that something has changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import kubernetes_validate
import pytest

from gala import names
from gala.algorithms import ALGORITHMS
from gala.errors import SpecError
from gala.plan import RunPlan, plan
from gala.spec import GalaRun, immutable_fields, parse
from gala_operator import manifests
from gala_operator.actions import Manifest
from gala_operator.manifests import Owner, metadata
from gala_operator.settings import OperatorSettings

UID = "11111111-0000-4000-8000-000000000001"
OWNER = Owner(name="pong", namespace="lab", uid=UID)
SETTINGS = OperatorSettings(namespace="gala-system")
SERVERS = ("1.29", kubernetes_validate.latest_version())
"""The oldest API server that the project is for, and the newest that there are schemas of."""


def run_with(**spec: Any) -> GalaRun:
    return parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "pong", "namespace": "lab"},
            "spec": {"environment": {"id": "ALE/Pong-v5"}, **spec},
        }
    )


def plan_of(run: GalaRun, epoch: int = 0) -> RunPlan:
    return plan(run, epoch=epoch, uid=UID)


def children_of(run: GalaRun, settings: OperatorSettings = SETTINGS) -> tuple[Manifest, ...]:
    return manifests.children(run, OWNER, plan_of(run), settings)


def hash_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["annotations"][names.ANNOTATION_MANIFEST_HASH])


WITH_CLAIMS = {"checkpoint": {"volume": {"size": "10Gi", "storageClassName": "fast"}}}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("monitoring", "algorithm"), [("", "GALA-A2C"), ("prometheus", "A2C")])
def test_every_child_is_what_an_api_server_takes(server: str, monitoring: str, algorithm: str) -> None:
    settings = OperatorSettings(monitoring_namespace=monitoring)
    for child in children_of(run_with(algorithm=algorithm, **WITH_CLAIMS), settings):
        kubernetes_validate.validate(child, server, strict=True)


def test_children_come_in_the_order_in_which_they_are_needed() -> None:
    assert [
        (child["kind"], child["metadata"]["name"]) for child in children_of(run_with(learners=2, **WITH_CLAIMS))
    ] == [
        ("Service", "pong"),
        ("ConfigMap", "pong-plan"),
        ("NetworkPolicy", "pong"),
        ("PodDisruptionBudget", "pong"),
        ("PersistentVolumeClaim", "pong-0"),
        ("PersistentVolumeClaim", "pong-1"),
        ("PersistentVolumeClaim", "pong-results"),
    ]


def test_every_child_goes_with_its_run_and_is_found_by_its_labels() -> None:
    for child in children_of(run_with(**WITH_CLAIMS)):
        metadata = child["metadata"]
        assert metadata["namespace"] == "lab"
        assert metadata["labels"].items() >= {names.LABEL_RUN: "pong", names.LABEL_RUN_UID: UID}.items()
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "gala.dev/v1alpha1",
                "kind": "GalaRun",
                "name": "pong",
                "uid": UID,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """The verdict of an API server on a LabelSelector."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    exist = [expression["key"] for expression in selector.get("matchExpressions", ())]
    assert {expression["operator"] for expression in selector.get("matchExpressions", ())} <= {"Exists"}
    return selector["matchLabels"].items() <= labels.items() and all(key in labels for key in exist)


def pods_of(run: GalaRun) -> dict[str, Manifest]:
    made = datetime(2026, 11, 22, tzinfo=UTC)
    learners = [
        manifests.learner_pod(run, OWNER, plan_of(run), rank, attempt=0, created=made, settings=SETTINGS)
        for rank in range(run.spec.learners)
    ]
    results = manifests.results_pod(run, OWNER, plan_of(run), created=made, settings=SETTINGS, modest=True)
    return {pod["metadata"]["name"]: pod for pod in (*learners, results)}


ROLES = {
    "GALA-A2C": ["actor-learner"] * 3,
    "GALA-PPO": ["actor-learner"] * 3,
    "A2C": ["actor-learner"] * 3,
    "A3C": ["server", "actor-learner", "actor-learner"],
    "IMPALA": ["learner", "actor", "actor"],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pods_and_claims_carry_the_role_that_the_plan_gives_their_rank(algorithm: str) -> None:
    run = run_with(algorithm=algorithm, learners=3, **WITH_CLAIMS)
    claims = {claim["metadata"]["name"]: claim for claim in manifests.claims(run, OWNER, plan_of(run))}
    for made in (pods_of(run), claims):
        labels = [made[f"pong-{rank}"]["metadata"]["labels"] for rank in range(3)]
        assert [each[names.LABEL_ROLE] for each in labels] == ROLES[algorithm]
        assert [each[names.LABEL_RANK] for each in labels] == ["0", "1", "2"]
        results = made["pong-results"]["metadata"]["labels"]
        assert results[names.LABEL_ROLE] == "results"
        assert names.LABEL_RANK not in results


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_whatever_the_roles_every_learner_has_a_name_and_counts_for_disruptions_and_the_results_pod_does_not(
    algorithm: str,
) -> None:
    run = run_with(algorithm=algorithm, learners=3)
    pods = {name: pod["metadata"]["labels"] for name, pod in pods_of(run).items()}
    budget = manifests.disruption_budget(OWNER)["spec"]["selector"]
    assert {name for name, labels in pods.items() if selected(budget, labels)} == {"pong-0", "pong-1", "pong-2"}
    named = manifests.service(OWNER)["spec"]["selector"]
    assert all(named.items() <= labels.items() for labels in pods.values())


def test_pods_that_an_earlier_operator_made_keep_their_name_and_their_budget() -> None:
    before = {
        names.LABEL_RUN: "pong",
        names.LABEL_RUN_UID: UID,
        names.LABEL_RANK: "0",
        names.LABEL_ROLE: "actor-learner",
    }
    assert selected(manifests.disruption_budget(OWNER)["spec"]["selector"], before)
    assert manifests.service(OWNER)["spec"]["selector"].items() <= before.items()


def test_the_service_names_pods_before_they_are_ready_and_only_those_of_this_very_run() -> None:
    spec = manifests.service(OWNER)["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    assert spec["selector"] == {names.LABEL_RUN: "pong", names.LABEL_RUN_UID: UID}
    assert {port["name"]: port["port"] for port in spec["ports"]} == {"gossip": 7070, "http": 7071}


def test_the_config_map_carries_the_plan_and_its_epoch() -> None:
    run = run_with(learners=3)
    config_map = manifests.plan_config_map(run, OWNER, plan_of(run, epoch=7))
    assert RunPlan.from_json(config_map["data"]["plan.json"]) == plan_of(run, epoch=7)
    annotations = config_map["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_PLAN_EPOCH] == "7"
    assert annotations[names.ANNOTATION_PLAN_HASH] == manifests.plan_hash(plan_of(run, epoch=6))
    assert annotations[names.ANNOTATION_IMMUTABLE_HASH] == manifests.immutable_hash(run)
    assert annotations[names.ANNOTATION_COMMON_HASH] == manifests.common_hash(run)


def test_a_plan_too_large_for_an_api_server_is_a_problem_of_the_spec() -> None:
    too_many = run_with(learners=300, topology={"type": "Complete"})
    with pytest.raises(SpecError, match=r"spec\.learners: .*too large"):
        children_of(too_many)
    largest_ring = children_of(run_with(learners=names.MAX_LEARNERS))
    assert len(json.dumps(largest_ring[1])) < 2**20


@pytest.mark.parametrize(
    "change",
    [{"learners": 5}, {"totalSteps": 1000}, {"gossip": {"everyUpdates": 2}}, {"hyperparameters": {"discount": 0.9}}],
    ids=str,
)
def test_what_learners_are_to_know_asks_for_a_new_epoch(change: dict[str, Any]) -> None:
    assert manifests.plan_hash(plan_of(run_with(**change))) != manifests.plan_hash(plan_of(run_with()))


@pytest.mark.parametrize(
    "change",
    [
        {"runPolicy": {"suspend": True}},
        {"worker": {"resources": {"requests": {"cpu": 2}}}},
        {"learners": 4, "precision": "auto"},  # the defaults, spelled out
    ],
    ids=str,
)
def test_what_is_no_news_to_learners_asks_for_no_new_epoch(change: dict[str, Any]) -> None:
    assert manifests.plan_hash(plan_of(run_with(**change))) == manifests.plan_hash(plan_of(run_with()))


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "A2C"},
        {"environment": {"id": "ALE/Breakout-v5"}},
        {"environment": {"id": "ALE/Pong-v5", "kwargs": {"difficulty": 1}}},
        {"policy": {"recurrent": True}},
        {"topology": {"type": "Exponential"}},
        {"gossip": {"precision": "bfloat16"}},
        {"seed": 2},
    ],
    ids=str,
)
def test_an_immutable_field_has_its_part_in_the_immutable_hash(change: dict[str, Any]) -> None:
    assert manifests.immutable_hash(run_with(**change)) != manifests.immutable_hash(run_with())


def test_the_immutable_hash_is_of_the_immutable_fields() -> None:
    chosen = {key: value if isinstance(value, dict) else {"": value} for key, value in metadata._IMMUTABLE.items()}
    paths = {f"{section}.{field}".removesuffix(".") for section, fields in chosen.items() for field in fields}
    assert paths == set(immutable_fields())


def test_a_mutable_field_and_a_default_spelled_out_have_none() -> None:
    run = run_with(
        learners=8,
        totalSteps=5,
        topology={"type": "Ring", "peers": 2},
        environment={"id": "ALE/Pong-v5", "simulators": 16},
        seed=1,
        policy={},
    )
    assert manifests.immutable_hash(run) == manifests.immutable_hash(run_with())


@pytest.mark.parametrize("change", [{"hyperparameters": {"learningRate": 0.5}}, {"precision": "float32"}], ids=str)
@pytest.mark.parametrize(
    ("algorithm", "common"), [("A2C", True), ("IMPALA", True), ("GALA-A2C", False), ("A3C", False)]
)
def test_what_all_workers_must_have_alike_has_its_part_in_the_common_hash(
    change: dict[str, Any], algorithm: str, common: bool
) -> None:
    before, after = run_with(algorithm=algorithm), run_with(algorithm=algorithm, **change)
    assert (manifests.common_hash(before) != manifests.common_hash(after)) is common
    assert manifests.common_hash(before) == manifests.common_hash(
        run_with(algorithm=algorithm, learners=9, totalSteps=7)
    )


def test_a_child_has_another_hash_when_and_only_when_it_says_something_else() -> None:
    before, same = children_of(run_with()), children_of(run_with())
    assert [hash_of(child) for child in before] == [hash_of(child) for child in same]
    scaled = children_of(run_with(learners=5))
    assert [hash_of(one) != hash_of(other) for one, other in zip(before, scaled, strict=True)] == [
        False,
        True,  # the plan
        False,
        False,
    ]
    watched = children_of(run_with(), OperatorSettings(namespace="gala-system", monitoring_namespace="prometheus"))
    assert [hash_of(one) != hash_of(other) for one, other in zip(before, watched, strict=True)] == [
        False,
        False,
        True,  # the network policy
        False,
    ]


def may_connect(
    policy: Manifest, port: int, *, namespace: str, labels: dict[str, str], own_namespace: str = "lab"
) -> bool:
    """The verdict of a network plugin on a connection from such a pod."""

    def selects(selector: dict[str, Any], actual: dict[str, str]) -> bool:
        assert set(selector) == {"matchLabels"}
        return bool(selector["matchLabels"].items() <= actual.items())

    def is_peer(peer: dict[str, Any]) -> bool:
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
                return False
        elif namespace != own_namespace:
            return False
        return "podSelector" not in peer or selects(peer["podSelector"], labels)

    return any(
        any(allowed.get("port", port) == port for allowed in rule["ports"]) and any(map(is_peer, rule["from"]))
        for rule in policy["spec"]["ingress"]
    )


OURS = {names.LABEL_RUN: "pong", names.LABEL_RUN_UID: UID}
OPERATOR = {"app.kubernetes.io/name": "gala-operator"}


@pytest.mark.parametrize(
    ("who", "namespace", "labels", "gossip", "http"),
    [
        ("a pod of the run", "lab", OURS, True, True),
        ("a pod of an earlier run of that name", "lab", OURS | {names.LABEL_RUN_UID: "other"}, False, False),
        ("another pod of the namespace", "lab", {"app": "notebook"}, False, False),
        ("a pod that poses as the run's elsewhere", "evil", OURS, False, False),
        ("the operator", "gala-system", OPERATOR, False, True),
        ("a pod that poses as the operator elsewhere", "lab", OPERATOR, False, False),
        ("another pod of the operator's namespace", "gala-system", {}, False, False),
        ("prometheus", "monitoring", {"app": "prometheus"}, False, True),
    ],
)
def test_only_the_run_gossips_and_only_operator_and_monitoring_read(
    who: str, namespace: str, labels: dict[str, str], gossip: bool, http: bool
) -> None:
    settings = OperatorSettings(namespace="gala-system", monitoring_namespace="monitoring")
    policy = manifests.network_policy(OWNER, plan_of(run_with()), settings)
    assert may_connect(policy, names.PORT_GOSSIP, namespace=namespace, labels=labels) is gossip, who
    assert may_connect(policy, names.PORT_HTTP, namespace=namespace, labels=labels) is http, who
    assert not may_connect(policy, 45_123, namespace=namespace, labels=labels), who


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_where_ranks_open_ports_of_their_own_choice_all_are_open_and_to_the_runs_own_pods_alone(
    algorithm: str,
) -> None:
    settings = OperatorSettings(namespace="gala-system", monitoring_namespace="monitoring")
    policy = manifests.network_policy(OWNER, plan_of(run_with(algorithm=algorithm)), settings)
    any_port = 45_123
    assert may_connect(policy, any_port, namespace="lab", labels=OURS) is (algorithm == "A2C")
    for namespace, labels in (("lab", {}), ("evil", OURS), ("gala-system", OPERATOR), ("monitoring", {})):
        assert not may_connect(policy, any_port, namespace=namespace, labels=labels)
    assert may_connect(policy, names.PORT_GOSSIP, namespace="lab", labels=OURS)


def test_without_a_monitoring_namespace_nobody_scrapes() -> None:
    policy = manifests.network_policy(OWNER, plan_of(run_with()), SETTINGS)
    assert not may_connect(policy, names.PORT_HTTP, namespace="monitoring", labels={})
    assert not may_connect(policy, names.PORT_HTTP, namespace="", labels={})


def test_the_policy_covers_every_pod_of_the_run_and_leaves_outgoing_traffic_alone() -> None:
    spec = manifests.network_policy(OWNER, plan_of(run_with()), SETTINGS)["spec"]
    assert spec["podSelector"] == {"matchLabels": OURS}
    assert spec["policyTypes"] == ["Ingress"]


def test_disruptions_take_one_learner_at_a_time_and_never_wait_for_one_that_is_not_ready() -> None:
    spec = manifests.disruption_budget(OWNER)["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert not selected(spec["selector"], OURS | {names.LABEL_RUN_UID: "of an earlier run", names.LABEL_RANK: "0"})


def test_learners_that_failed_for_good_are_missing_beside_the_one_that_a_disruption_may_take() -> None:
    assert manifests.disruption_budget(OWNER, left_out=2)["spec"]["maxUnavailable"] == 3


def claims_of(owner: Owner = OWNER, **spec: Any) -> tuple[Manifest, ...]:
    run = run_with(**spec)
    return manifests.claims(run, owner, plan_of(run))


@pytest.mark.parametrize("checkpoint", [{}, {"volume": {"claimName": "shared"}}], ids=str)
def test_no_claim_is_made_where_none_is_asked_for(checkpoint: dict[str, Any]) -> None:
    assert claims_of(checkpoint=checkpoint) == ()


def test_a_claim_is_what_the_run_asks_for() -> None:
    claims = claims_of(checkpoint={"volume": {"size": "1.5Gi", "accessMode": "ReadWriteMany"}})
    assert [claim["spec"] for claim in claims] == [
        {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1.5Gi"}}}
    ] * 5


def test_an_existing_claim_is_not_applied_again_when_the_size_changes() -> None:
    before = claims_of(**WITH_CLAIMS)
    after = claims_of(checkpoint={"volume": {"size": "1Gi"}})
    assert [hash_of(claim) for claim in before] == [hash_of(claim) for claim in after]
    other = claims_of(Owner(name="pong", namespace="lab", uid="other"), **WITH_CLAIMS)
    assert {hash_of(claim) for claim in before}.isdisjoint(hash_of(claim) for claim in other)
