"""What a GalaRun's author can ask for of pods, for property tests."""

from __future__ import annotations

from posixpath import normpath
from typing import Any

from hypothesis import strategies as st

from gala import names

# Everything that a GalaRun's author can ask for.

label = st.sampled_from(
    ["a", "b", "team", "example.com/part", "app.kubernetes.io/name", "app.kubernetes.io/managed-by"]
)
label_values = st.sampled_from(["", "x", "y-1", "gala-operator"])
annotation = st.sampled_from(["a", "example.com/note", "sidecar.istio.io/inject", "container.apparmor/x"])
object_name = st.sampled_from(["data", "gala", "pong-plan", "other.name"])
quantity = st.sampled_from([1, 4, "500m", "1.5Gi", "2e3", "8Gi", "0"])
resource = st.sampled_from(["cpu", "memory", "ephemeral-storage", "amd.com/gpu"])
identity = st.integers(1, 2**31 - 1)
mode = st.integers(0, 0o777)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def some(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def with_required(required: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(required, optional=optional)


def maps(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys, values, max_size=3)


files = {
    "items": st.lists(with_required({"key": object_name, "path": object_name}, mode=mode), max_size=2),
    "defaultMode": mode,
    "optional": st.booleans(),
}
sources = st.one_of(
    some(medium=st.sampled_from(["", "Memory"]), sizeLimit=quantity).map(lambda value: {"emptyDir": value}),
    with_required({"name": object_name}, **files).map(lambda value: {"configMap": value}),
    with_required({"secretName": object_name}, **files).map(lambda value: {"secret": value}),
    with_required({"claimName": object_name}, readOnly=st.booleans()).map(
        lambda value: {"persistentVolumeClaim": value}
    ),
    with_required(
        {
            "spec": with_required(
                {"resources": st.fixed_dictionaries({"requests": st.fixed_dictionaries({"storage": quantity})})},
                storageClassName=object_name,
                accessModes=st.just(["ReadWriteOnce"]),
            )
        },
        metadata=some(labels=maps(label, label_values), annotations=maps(annotation, label_values)),
    ).map(lambda value: {"ephemeral": {"volumeClaimTemplate": value}}),
)
mount_path = st.sampled_from(["/data", "/tmp", "/tmp/", "/dev/shm", "/var/lib/gala", "/var/lib", "/opt/x", "/root"])


@st.composite
def volumes_and_mounts(draw: st.DrawFn) -> dict[str, Any]:
    volumes = [{"name": f"v{index}", **source} for index, source in enumerate(draw(st.lists(sources, max_size=3)))]
    if not volumes:
        return {}
    name = st.sampled_from([volume["name"] for volume in volumes])
    mount = with_required({"name": name, "mountPath": mount_path}, readOnly=st.booleans(), subPath=st.just("x"))
    mounts = draw(st.lists(mount, max_size=3, unique_by=lambda entry: normpath(entry["mountPath"])))
    return {"volumes": volumes, "volumeMounts": mounts}


spread = with_required(
    {"topologyKey": st.just("kubernetes.io/hostname")},
    maxSkew=st.integers(1, 3),
    whenUnsatisfiable=st.sampled_from(["DoNotSchedule", "ScheduleAnyway"]),
    labelSelector=some(
        matchLabels=maps(label, label_values),
        matchExpressions=st.just([{"key": "a", "operator": "In", "values": ["x"]}]),
    ),
    nodeTaintsPolicy=st.sampled_from(["Honor", "Ignore"]),
)
pod_template = some(
    metadata=some(labels=maps(label, label_values), annotations=maps(annotation, label_values)),
    spec=st.builds(
        lambda fields, volumes: fields | volumes,
        some(
            imagePullSecrets=st.lists(st.fixed_dictionaries({"name": object_name}), max_size=2),
            schedulerName=object_name,
            runtimeClassName=object_name,
            terminationGracePeriodSeconds=st.integers(1, 3600),
            topologySpreadConstraints=st.lists(spread, max_size=2),
            securityContext=some(runAsUser=identity, runAsGroup=identity, fsGroup=identity),
        ),
        volumes_and_mounts(),
    ),
)
variable = st.one_of(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["HOME", "A", "NVIDIA_VISIBLE_DEVICES"]), "value": st.text(max_size=3)}
    ),
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["TOKEN", "TMPDIR"]),
            "valueFrom": st.fixed_dictionaries(
                {"secretKeyRef": st.fixed_dictionaries({"name": object_name, "key": object_name})}
            ),
        }
    ),
)
tolerations = st.sampled_from([{"operator": "Exists"}, {"key": "gpu", "value": "yes", "effect": "NoSchedule"}])
affinity_part = maps(st.text(max_size=5), anything)
workers = some(
    image=st.just("registry.example/mine@sha256:0"),
    imagePullPolicy=st.sampled_from(["Always", "Never"]),
    gpus=st.integers(0, 2),
    resources=some(requests=maps(resource, quantity), limits=maps(resource, quantity)),
    nodeSelector=maps(label, label_values),
    tolerations=st.lists(tolerations, max_size=2),
    affinity=some(nodeAffinity=affinity_part, podAffinity=affinity_part, podAntiAffinity=affinity_part),
    priorityClassName=object_name,
    serviceAccountName=object_name,
    env=st.lists(variable, max_size=3, unique_by=lambda entry: entry["name"]),
    podTemplate=pod_template,
)
checkpoints = st.sampled_from([{}, {"volume": {"size": "10Gi"}}, {"volume": {"claimName": "shared"}}])
EVERYTHING = {
    "worker": {
        "image": "registry.example/mine:2",
        "gpus": 2,
        "resources": {"requests": {"cpu": 4, "memory": "16Gi"}, "limits": {"memory": "32Gi", "amd.com/gpu": 1}},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            },
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchExpressions": [{"key": names.LABEL_RANK, "operator": "Exists"}]},
                    }
                ]
            },
        },
        "priorityClassName": "research",
        "serviceAccountName": "trainer",
        "env": [
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "HOME", "value": "/scratch"},
        ],
        "podTemplate": {
            "metadata": {"labels": {"team": "rl"}, "annotations": {"example.com/note": "x"}},
            "spec": {
                "volumes": [
                    {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
                    {"name": "roms", "configMap": {"name": "roms", "items": [{"key": "a", "path": "a.bin"}]}},
                    {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 256}},
                    {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
                    {
                        "name": "big",
                        "ephemeral": {
                            "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "100Gi"}}}}
                        },
                    },
                ],
                "volumeMounts": [
                    {"name": "scratch", "mountPath": "/dev/shm"},
                    {"name": "data", "mountPath": "/data", "readOnly": True, "subPath": "atari"},
                ],
                "imagePullSecrets": [{"name": "registry"}],
                "schedulerName": "volcano",
                "runtimeClassName": "nvidia",
                "terminationGracePeriodSeconds": 120,
                "topologySpreadConstraints": [{"topologyKey": "kubernetes.io/hostname"}],
                "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
            },
        },
    },
    "checkpoint": {"volume": {"size": "10Gi"}},
}
