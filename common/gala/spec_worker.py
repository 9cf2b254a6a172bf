"""The part of GalaRun that is about pods: `spec.worker` and `spec.checkpoint.volume`. Ignored by `gala run`.

Fields that a GalaRun's author may set in a learner's pod are listed one by one. That is a security boundary: whoever
may create a GalaRun must not get the node's namespaces, files or privileges through it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from gala.spec_base import (
    ABSOLUTE_PATH,
    DNS_LABEL,
    ENVIRONMENT_VARIABLE,
    NO_BLANKS,
    Annotations,
    FreeObject,
    Integer,
    Labels,
    ObjectName,
    Quantities,
    Quantity,
    Rule,
    Section,
    Switch,
    keyed,
)

GPU_RESOURCE: Final = "nvidia.com/gpu"
RESERVED_PREFIX: Final = "GALA_"
VOLUME_SOURCES: Final = ("empty_dir", "config_map", "secret", "persistent_volume_claim", "ephemeral")

_ONE_PER_NAME, _BY_NAME = keyed("name")
_ONE_PER_PATH, _BY_PATH = keyed("mountPath")
Key = Annotated[str, StringConstraints(min_length=1, max_length=253)]


class KeySelector(Section):
    """One key of a Secret or ConfigMap."""

    name: ObjectName = Field(description="Name of the object, in the run's namespace.")
    key: Key = Field(description="The key whose value is taken.")
    optional: Switch = Field(default=False, description="Start the pod even if the object or the key is not there.")


class ValueSource(Section):
    """Where the value of an environment variable comes from."""

    secret_key_ref: KeySelector | None = Field(default=None, description="A key of a Secret.")
    config_map_key_ref: KeySelector | None = Field(default=None, description="A key of a ConfigMap.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="",
            holds=lambda source: (source.secret_key_ref is None) != (source.config_map_key_ref is None),
            cel="has(self.secretKeyRef) != has(self.configMapKeyRef)",
            message="must have exactly one of secretKeyRef and configMapKeyRef",
            remedy="keep one of the two",
        ),
    )


class EnvironmentVariable(Section):
    """One environment variable of a learner's container."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=ENVIRONMENT_VARIABLE)] = Field(
        description="Name of the variable. Names that begin with GALA_ are the launcher's own."
    )
    value: Annotated[str, StringConstraints(max_length=32768)] | None = Field(default=None, description="The value.")
    value_from: ValueSource | None = Field(default=None, description="Where the value comes from, instead of `value`.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="name",
            holds=lambda variable: not variable.name.startswith(RESERVED_PREFIX),
            cel=f"!self.name.startsWith('{RESERVED_PREFIX}')",
            message=f"must not begin with {RESERVED_PREFIX}",
            remedy="use another name: those are how a launcher talks to its workers",
        ),
        Rule(
            path="valueFrom",
            holds=lambda variable: variable.value is None or variable.value_from is None,
            cel="!(has(self.value) && has(self.valueFrom))",
            message="must not stand beside value",
            remedy="keep one of value and valueFrom",
        ),
    )


class Toleration(Section):
    """A node taint that the learners' pods tolerate."""

    key: Annotated[str, StringConstraints(max_length=316)] | None = Field(
        default=None, description="Key of the taint; unset, with operator Exists, tolerates every taint."
    )
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="Equal compares the value, Exists ignores it."
    )
    value: Annotated[str, StringConstraints(max_length=63)] | None = Field(
        default=None, description="Value of the taint."
    )
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; unset tolerates every effect."
    )
    toleration_seconds: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Seconds that a pod stays on a node that got a NoExecute taint; unset = for ever."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="value",
            holds=lambda toleration: toleration.operator == "Equal" or not toleration.value,
            cel="self.operator == 'Equal' || !has(self.value) || self.value == ''",
            message="must be unset when operator is Exists",
            remedy="remove the value, or use operator Equal",
        ),
        Rule(
            path="key",
            holds=lambda toleration: toleration.operator == "Exists" or bool(toleration.key),
            cel="self.operator == 'Exists' || (has(self.key) && self.key != '')",
            message="must be set when operator is Equal",
            remedy="name the taint's key, or use operator Exists",
        ),
        Rule(
            path="tolerationSeconds",
            holds=lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="must be unset unless effect is NoExecute",
            remedy="remove it, or set effect: NoExecute",
        ),
    )


class Resources(Section):
    """Compute resources of a learner's container."""

    requests: Quantities = Field(
        default={}, description="What the scheduler sets aside, such as {cpu: 4, memory: 8Gi}."
    )
    limits: Quantities = Field(default={}, description="What the container may use at most.")

    rules: ClassVar[tuple[Rule, ...]] = tuple(
        Rule(
            path=part,
            holds=lambda resources, part=part: GPU_RESOURCE not in getattr(resources, part),  # type: ignore[misc]
            cel=f"!('{GPU_RESOURCE}' in self.{part})",
            message=f"must not have {GPU_RESOURCE}",
            remedy="set spec.worker.gpus instead",
        )
        for part in ("requests", "limits")
    )


class Volume(Section):
    """A volume of a learner's pod: a name and exactly one source. Others, hostPath first of all, are not offered."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] = Field(
        description="Name that volumeMounts refer to. Names that begin with gala- are the operator's own."
    )
    empty_dir: FreeObject | None = Field(default=None, description="A fresh folder that lives as long as the pod.")
    config_map: FreeObject | None = Field(default=None, description="The files of a ConfigMap.")
    secret: FreeObject | None = Field(default=None, description="The files of a Secret.")
    persistent_volume_claim: FreeObject | None = Field(default=None, description="An existing claim.")
    ephemeral: FreeObject | None = Field(default=None, description="A claim that lives as long as the pod.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="",
            holds=lambda volume: sum(getattr(volume, source) is not None for source in VOLUME_SOURCES) == 1,
            cel="[has(self.emptyDir), has(self.configMap), has(self.secret), has(self.persistentVolumeClaim),"
            " has(self.ephemeral)].filter(present, present).size() == 1",
            message="must have exactly one source",
            remedy="keep one of emptyDir, configMap, secret, persistentVolumeClaim, ephemeral",
        ),
        Rule(
            path="name",
            holds=lambda volume: not volume.name.startswith("gala-"),
            cel="!self.name.startsWith('gala-')",
            message="must not begin with gala-",
            remedy="use another name: those are the operator's own volumes",
        ),
    )


class VolumeMount(Section):
    """Where a volume appears in the learner's container."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] = Field(
        description="Name of the volume."
    )
    mount_path: Annotated[str, StringConstraints(max_length=1024, pattern=ABSOLUTE_PATH)] = Field(
        description="Absolute path in the container."
    )
    sub_path: Annotated[str, StringConstraints(max_length=1024)] | None = Field(
        default=None, description="Path inside the volume; unset = its root."
    )
    read_only: Switch = Field(default=False, description="Mount without write access.")


class PodSecurityContext(Section):
    """User and groups of a learner's pod; all else is fixed to the restricted Pod Security Standard."""

    run_as_user: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="User id of the learner; never 0 (root). Unset = the image's user."
    )
    run_as_group: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Group id of the learner. Unset = the image's group."
    )
    fs_group: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Group that owns the volumes' files."
    )


class ImagePullSecret(Section):
    """A Secret with the credentials of an image registry."""

    name: ObjectName = Field(description="Name of the Secret, in the run's namespace.")


class PodMetadata(Section):
    """Labels and annotations that every pod of the run gets, beside the operator's own."""

    labels: Labels = Field(default={}, description="Labels. Keys under gala.dev/ are the operator's own.")
    annotations: Annotations = Field(
        default={}, description="Annotations. Keys under gala.dev/ are the operator's own."
    )

    rules: ClassVar[tuple[Rule, ...]] = tuple(
        Rule(
            path=part,
            holds=lambda metadata, part=part: (
                not any(  # type: ignore[misc]
                    key.startswith("gala.dev/") for key in getattr(metadata, part)
                )
            ),
            cel=f"self.{part}.all(key, !key.startsWith('gala.dev/'))",
            message="must not have keys under gala.dev/",
            remedy="use a prefix of your own: those are how the operator finds its pods",
        )
        for part in ("labels", "annotations")
    )


class PodSpec(Section):
    """The fields of a pod that may be set. Host namespaces, host paths and privileges are not among them."""

    volumes: Annotated[tuple[Volume, ...], Field(max_length=32), _ONE_PER_NAME] = Field(
        default=(), description="Further volumes, each name once.", json_schema_extra=_BY_NAME
    )
    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=64), _ONE_PER_PATH] = Field(
        default=(), description="Mounts of those volumes in the learner's container.", json_schema_extra=_BY_PATH
    )
    image_pull_secrets: Annotated[tuple[ImagePullSecret, ...], Field(max_length=16)] = Field(
        default=(), description="Credentials for private image registries."
    )
    scheduler_name: ObjectName | None = Field(
        default=None, description="Name of the scheduler; unset = the cluster's default."
    )
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of the pods, such as nvidia.")
    termination_grace_period_seconds: Annotated[Integer, Field(ge=1, le=3600)] = Field(
        default=60, description="Seconds a learner has for its last checkpoint and its farewell after SIGTERM."
    )
    topology_spread_constraints: Annotated[tuple[FreeObject, ...], Field(max_length=8)] = Field(
        default=(), description="How pods are spread over nodes and zones, as in a Pod's spec."
    )
    security_context: PodSecurityContext | None = Field(default=None, description="User and groups of the pods.")


class PodTemplate(Section):
    """An overlay over the pods that the operator makes, limited to what is listed here."""

    metadata: PodMetadata = Field(default=PodMetadata(), description="Labels and annotations of the pods.")
    spec: PodSpec = Field(default=PodSpec(), description="Fields of the pods.")


class Worker(Section):
    """The pods that the learners run in. `gala run` ignores this section."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=NO_BLANKS)] | None = Field(
        default=None, description="Container image of the learners; unset = the one the operator was installed with."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When the image is pulled."
    )
    gpus: Annotated[Integer, Field(ge=0, le=16)] = Field(
        default=1, description="GPUs per learner (nvidia.com/gpu); 0 = CPU only."
    )
    resources: Resources = Field(default=Resources(), description="Compute resources per learner; applied to new pods.")
    node_selector: Labels = Field(default={}, description="Labels that a node must have to run a learner.")
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = Field(
        default=(), description="Node taints that the pods tolerate."
    )
    affinity: FreeObject | None = Field(default=None, description="Affinity of the pods, as in a Pod's spec.")
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    service_account_name: ObjectName | None = Field(
        default=None,
        description="ServiceAccount of the pods; its token is not mounted. Unset = the namespace's default.",
    )
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64), _ONE_PER_NAME] = Field(
        default=(), description="Environment variables of the learners, each name once.", json_schema_extra=_BY_NAME
    )
    pod_template: PodTemplate | None = Field(default=None, description="A restricted overlay over the pods.")


class CheckpointVolume(Section):
    """Where checkpoints live in a cluster: a new claim for each learner, or one existing claim for all."""

    size: Quantity | None = Field(
        default=None, description="Size of the claim that is made for each learner, such as 10Gi."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of those claims; unset = the cluster's default."
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"] | None = Field(
        default=None, description="Access mode of those claims; unset = ReadWriteOnce."
    )
    claim_name: ObjectName | None = Field(
        default=None, description="An existing claim (ReadWriteMany) that all learners share, a folder for each."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="",
            holds=lambda volume: (volume.size is None) != (volume.claim_name is None),
            cel="has(self.size) != has(self.claimName)",
            message="must have exactly one of size and claimName",
            remedy="give a size for a claim per learner, or the name of an existing claim",
        ),
        Rule(
            path="storageClassName",
            holds=lambda volume: volume.storage_class_name is None or volume.claim_name is None,
            cel="!(has(self.storageClassName) && has(self.claimName))",
            message="must be unset when claimName is set",
            remedy="an existing claim has its storage class already; remove it",
        ),
        Rule(
            path="accessMode",
            holds=lambda volume: volume.access_mode is None or volume.claim_name is None,
            cel="!(has(self.accessMode) && has(self.claimName))",
            message="must be unset when claimName is set",
            remedy="an existing claim has its access mode already; remove it",
        ),
    )
