"""What the chart renders over a matrix of values: valid, restricted, labelled, and of the least rights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from gala import crd
from gala_operator.kinds import CHILD_KINDS, POD, RESOURCES, RUN, WATCHED_KINDS
from gala_operator.manifests.metadata import MANAGED_BY

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gala-operator"
NAMESPACE = "gala-system"
KUBERNETES = "1.37"
"""Whose schemas the objects are validated against."""

pytestmark = pytest.mark.timeout(300)  # the first one may have to download helm

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]

EVERYTHING: dict[str, Any] = {
    "image": {"digest": f"sha256:{'0123456789abcdef' * 4}", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "worker": {"image": {"repository": "registry.example.com:5000/worker", "tag": "7"}},
    "replicas": 2,
    "leaderElection": {"enabled": True},
    "commonLabels": {"team": "learning"},
    "annotations": {"example.com/a": "1"},
    "podAnnotations": {"example.com/b": "true"},
    "podLabels": {"cost-centre": "42"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/extra", "readOnly": True}],
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
    "networkPolicy": {"egress": {"enabled": True, "apiServerCIDRs": ["10.0.0.1/32"], "apiServerPorts": [6443]}},
    "monitoring": {
        "namespace": "monitoring",
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "GALA"}},
    },
}
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "namespaced": {"watchNamespaces": ["team-a", "team-b"], "crds": {"enabled": False}, "rbac": {"aggregate": False}},
    "namespaced with everything": EVERYTHING | {"watchNamespaces": ["team-a", "team-a"]},
    "nothing optional": {
        "crds": {"enabled": False},
        "rbac": {"create": False, "aggregate": False},
        "serviceAccount": {"create": False, "name": "mine"},
        "networkPolicy": {"enabled": False},
        "resources": {},
    },
    "paused": {"replicas": 0, "controller": {"logFormat": "text", "httpPort": 9090}},
    "names that yaml takes for something else": EVERYTHING
    | {
        "watchNamespaces": ["123", "no", "off"],
        "fullnameOverride": "42",
        "serviceAccount": {"name": "007"},
        "priorityClassName": "0x10",
        "monitoring": EVERYTHING["monitoring"] | {"namespace": "7"},
    },
    "own affinity": {"affinity": {"nodeAffinity": {}}, "crds": {"keep": False}, "fullnameOverride": "trainer"},
}


@pytest.fixture(params=MATRIX, scope="module")
def rendered(request: pytest.FixtureRequest, render: Render) -> list[Manifest]:
    return render(MATRIX[request.param])


def of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (found,) = [m for m in of(manifests, kind) if name is None or m["metadata"]["name"] == name]
    return found


def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [d["spec"]["template"] for d in of(manifests, "Deployment")] + of(manifests, "Pod")


def rules(role: Manifest) -> set[tuple[str, str, str]]:
    return {
        (g, r, v) for rule in role["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


# Every combination.


def test_every_object_is_valid_for_a_current_kubernetes(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            continue  # custom resources: their schema is not Kubernetes's own
        if manifest["kind"] == "CustomResourceDefinition":
            continue  # compared with the models' below
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_no_object_is_rendered_twice(rendered: list[Manifest]) -> None:
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in rendered]
    assert len(names) == len(set(names))


def test_every_object_is_labelled_as_helm_recommends(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "gala"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/part-of"] == "gala"
        assert labels["app.kubernetes.io/name"] == MANAGED_BY, "runs' NetworkPolicies let the operator in by this label"
        assert labels["helm.sh/chart"] == "gala-operator-0.1.0"


def test_every_namespaced_object_names_its_namespace(rendered: list[Manifest]) -> None:
    cluster_scoped = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    for manifest in rendered:
        assert ("namespace" in manifest["metadata"]) == (manifest["kind"] not in cluster_scoped), manifest["metadata"]


def test_pods_satisfy_the_restricted_pod_security_standard(rendered: list[Manifest]) -> None:
    for pod in pods(rendered):
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"emptyDir", "configMap", "secret", "projected", "downwardAPI"}
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_selectors_find_the_operator_and_not_the_test_pod(rendered: list[Manifest]) -> None:
    deployment = one(rendered, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (test,) = of(rendered, "Pod")
    selectors = [deployment["spec"]["selector"]["matchLabels"], one(rendered, "Service")["spec"]["selector"]]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of(rendered, "NetworkPolicy")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of(rendered, "PodDisruptionBudget")]
    for selector in selectors:
        assert selector.items() <= labels
        assert not selector.items() <= test["metadata"]["labels"].items()
        assert "helm.sh/chart" not in selector, "a selector must survive an upgrade"


def test_port_names_agree(rendered: list[Manifest]) -> None:
    (container,) = one(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    (service_port,) = one(rendered, "Service")["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    assert service_port["port"] == port["containerPort"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
    for monitor in of(rendered, "ServiceMonitor"):
        assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == [service_port["name"]]
    assert f":{service_port['port']}" in one(rendered, "Pod")["spec"]["containers"][0]["env"][0]["value"]


def test_bindings_bind_what_exists(rendered: list[Manifest]) -> None:
    account = one(rendered, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    roles = {
        (r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) for r in rendered if "Role" in r["kind"]
    }
    test = one(rendered, "Pod")["spec"]["serviceAccountName"]
    assert {a["metadata"]["name"] for a in of(rendered, "ServiceAccount")} | {"mine"} >= {account, test}
    for binding in of(rendered, "RoleBinding") + of(rendered, "ClusterRoleBinding"):
        reference = binding["roleRef"]
        namespace = None if reference["kind"] == "ClusterRole" else binding["metadata"]["namespace"]
        assert (reference["kind"], namespace, reference["name"]) in roles
        (subject,) = binding["subjects"]
        assert subject["namespace"] == NAMESPACE
        assert subject["name"] in {account, test}


# The CustomResourceDefinition.


def test_the_charts_copy_of_the_definition_is_current() -> None:
    assert (CHART / "files/crds/galarun.yaml").read_text() == crd.render(), "run `make manifests`"


def test_the_definition_is_rendered_unchanged_and_kept(render: Render) -> None:
    definition = one(render(), "CustomResourceDefinition")
    assert definition["metadata"].pop("labels")
    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == crd.definition()


def test_the_definition_can_be_left_out_or_left_to_helm(render: Render) -> None:
    assert not of(render({"crds": {"enabled": False}}), "CustomResourceDefinition")
    kept = one(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in kept["metadata"]


# Rights.


def test_namespaced_mode_has_no_cluster_wide_rights(render: Render) -> None:
    manifests = render(MATRIX["namespaced"])
    assert not of(manifests, "ClusterRole")
    assert not of(manifests, "ClusterRoleBinding")
    roles = [r for r in of(manifests, "Role") if r["metadata"]["name"] == "gala-operator"]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    cluster_wide = one(render(), "ClusterRole", "gala-operator")
    assert all(rules(role) == rules(cluster_wide) for role in roles)
    assert not of(render(MATRIX["namespaced with everything"]), "ClusterRoleBinding")


def test_no_right_is_a_wildcard_or_a_way_to_more_rights(rendered: list[Manifest]) -> None:
    for role in of(rendered, "Role") + of(rendered, "ClusterRole"):
        for group, resource, verb in rules(role):
            assert "*" not in {group, resource, verb}
            assert verb not in {"escalate", "bind", "impersonate"}
            assert resource not in {"secrets", "nodes", "namespaces", "serviceaccounts", "roles", "rolebindings"}
            assert group != "rbac.authorization.k8s.io"


def test_the_operators_rights_are_those_of_the_kinds_that_it_deals_in(render: Render) -> None:
    def verbs(kind: str, *verbs: str, subresource: str = "") -> set[tuple[str, str, str]]:
        place = RESOURCES[kind]
        return {(place.group, place.plural + subresource, verb) for verb in verbs}

    expected = verbs(POD, "get", "create", "patch", "delete") | verbs("Event", "create", "patch")
    expected |= verbs(RUN, "delete") | verbs(RUN, "patch", subresource="/status")
    expected |= verbs(RUN, "update", subresource="/finalizers")
    expected |= {right for kind in CHILD_KINDS for right in verbs(kind, "get", "create", "patch")}
    expected |= {right for kind in WATCHED_KINDS for right in verbs(kind, "list", "watch")}
    assert rules(one(render(), "ClusterRole", "gala-operator")) == expected


def test_the_operator_never_creates_runs_nor_deletes_what_is_not_its_own(render: Render) -> None:
    allowed = rules(one(render(), "ClusterRole", "gala-operator"))
    assert not {("gala.dev", "galaruns", verb) for verb in ("create", "update", "deletecollection")} & allowed
    assert {resource for _, resource, verb in allowed if verb == "delete"} == {"galaruns", "pods"}


def test_leases_are_touched_only_for_leader_election(render: Render) -> None:
    leases = {("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")}
    without = [role for role in of(render(), "Role") + of(render(), "ClusterRole") if leases & rules(role)]
    assert not without
    role = one(render(EVERYTHING), "Role", "gala-operator-leader-election")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert rules(role) == leases


def test_people_who_may_edit_or_view_may_do_so_with_runs(render: Render) -> None:
    manifests = render()
    view, edit = (
        one(manifests, "ClusterRole", "gala-operator-view"),
        one(manifests, "ClusterRole", "gala-operator-edit"),
    )
    label = "rbac.authorization.k8s.io/aggregate-to-"
    assert {k for k in view["metadata"]["labels"] if k.startswith(label)} == {f"{label}view"}
    assert {k for k in edit["metadata"]["labels"] if k.startswith(label)} == {f"{label}edit", f"{label}admin"}
    assert {verb for _, _, verb in rules(view)} == {"get", "list", "watch"}
    assert {r for _, r, verb in rules(edit) if verb == "patch"} == {"galaruns", "galaruns/scale"}, "never the status"


# Values and where they end.


def environment(manifests: list[Manifest]) -> dict[str, str]:
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def test_images_are_named_by_tag_or_digest(render: Render) -> None:
    assert environment(render())["GALA_OPERATOR_WORKER_IMAGE"] == "ghcr.io/gala-rl/gala-worker:0.1.0"
    (container,) = one(render(EVERYTHING), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"ghcr.io/gala-rl/gala-operator@sha256:{'0123456789abcdef' * 4}"
    assert environment(render(EVERYTHING))["GALA_OPERATOR_WORKER_IMAGE"] == "registry.example.com:5000/worker:7"


def test_one_operator_is_gone_before_the_next_starts_unless_a_leader_is_elected(render: Render) -> None:
    assert one(render(), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert one(render(), "Deployment")["spec"]["replicas"] == 1
    assert not of(render(), "PodDisruptionBudget")
    two = render(EVERYTHING)
    # Both fields are helm's own: those that the server fills in would stay when the strategy is changed to Recreate.
    rolling = {"maxSurge": 1, "maxUnavailable": 0}
    assert one(two, "Deployment")["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert one(two, "Deployment")["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert one(two, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_spread_constraints_get_the_operators_selector(render: Render) -> None:
    deployment = one(render(EVERYTHING), "Deployment")["spec"]
    (constraint,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"] == deployment["selector"]["matchLabels"]


def test_common_labels_reach_every_object_and_never_a_selector(render: Render) -> None:
    manifests = render(EVERYTHING)
    assert all(manifest["metadata"]["labels"]["team"] == "learning" for manifest in manifests)
    assert "team" not in one(manifests, "Service")["spec"]["selector"]


def test_the_operators_environment_is_free_of_service_links(render: Render) -> None:
    # A Service called gala-operator-metrics would give GALA_OPERATOR_METRICS_PORT and the like, which are no settings.
    assert one(render(), "Deployment")["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_egress_rules_name_the_api_server_and_the_learners(render: Render) -> None:
    policy = one(render(EVERYTHING), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {"ports": [{"port": 6443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]} in policy[
        "egress"
    ]
    (learners,) = [rule for rule in policy["egress"] if rule["ports"][0]["port"] == 7071]
    assert learners["to"][0]["podSelector"]["matchExpressions"] == [{"key": "gala.dev/run", "operator": "Exists"}]
    assert {"kubernetes.io/metadata.name": "monitoring"} in [
        peer["namespaceSelector"]["matchLabels"] for peer in policy["ingress"][0]["from"] if "namespaceSelector" in peer
    ]


def test_a_release_and_a_namespace_may_have_names_that_yaml_takes_for_numbers(render: Render) -> None:
    for manifest in render(EVERYTHING, "--namespace", "123", release="7"):
        if not manifest["apiVersion"].startswith(("monitoring.coreos.com/", "apiextensions.k8s.io/")):
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        assert manifest["metadata"].get("namespace", "123") == "123"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "7"


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("gala", "gala-operator"),
        ("gala-operator", "gala-operator"),
        ("prod", "prod-gala-operator"),
        ("ga", "ga-gala-operator"),
    ],
)
def test_objects_are_named_after_the_release(render: Render, release: str, name: str) -> None:
    assert one(render(None, release=release), "Deployment")["metadata"]["name"] == name
