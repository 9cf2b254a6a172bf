"""The part of GalaRun that is about pods: `spec.worker` and `spec.checkpoint.volume`. `gala run` reads only `gpus`.

Fields that a GalaRun's author may set in a learner's pod are listed one by one. That is a security boundary: whoever
may create a GalaRun must not get the node's namespaces, files or privileges through it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from gala.spec_base import (
    ENVIRONMENT_VARIABLE,
    NO_BLANKS,
    Annotations,
    Integer,
    Labels,
    ObjectName,
    Quantities,
    Quantity,
    Rule,
    Section,
    Switch,
    keyed,
    without_own_keys,
)
from gala.spec_scheduling import Affinity, SpreadConstraint, Toleration
from gala.spec_volumes import Volume, VolumeMount

GPU_RESOURCE: Final = "nvidia.com/gpu"
RESERVED_PREFIX: Final = "GALA_"
PROFILE_PREFIXES: Final = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
)
"""Annotations by which a pod, on some servers, leaves the confinement that its securityContext asks for."""

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

    rules: ClassVar[tuple[Rule, ...]] = (
        without_own_keys("labels"),
        without_own_keys("annotations"),
        Rule(
            path="annotations",
            holds=lambda metadata: not any(key.startswith(PROFILE_PREFIXES) for key in metadata.annotations),
            cel="self.annotations.all(key, "
            + " && ".join(f"!key.startsWith('{prefix}')" for prefix in PROFILE_PREFIXES)
            + ")",
            message="must not choose AppArmor or seccomp profiles",
            remedy="remove them: every pod runs confined, as the restricted Pod Security Standard asks",
        ),
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
    runtime_class_name: ObjectName | None = Field(
        default=None,
        description="RuntimeClass of the pods, such as nvidia; where learners have GPUs not the results pod's.",
    )
    termination_grace_period_seconds: Annotated[Integer, Field(ge=1, le=3600)] = Field(
        default=60, description="Seconds a learner has for its last checkpoint and its farewell after SIGTERM."
    )
    topology_spread_constraints: Annotated[tuple[SpreadConstraint, ...], Field(max_length=8)] = Field(
        default=(), description="How the learners are spread over nodes and zones."
    )
    security_context: PodSecurityContext | None = Field(default=None, description="User and groups of the pods.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="volumeMounts",
            holds=lambda pod: {mount.name for mount in pod.volume_mounts} <= {volume.name for volume in pod.volumes},
            cel="self.volumeMounts.all(mount, self.volumes.exists(volume, volume.name == mount.name))",
            message="must name volumes of the list beside it",
            remedy="add the volume to podTemplate.spec.volumes",
        ),
    )


class PodTemplate(Section):
    """An overlay over the pods that the operator makes, limited to what is listed here."""

    metadata: PodMetadata = Field(default=PodMetadata(), description="Labels and annotations of the pods.")
    spec: PodSpec = Field(default=PodSpec(), description="Fields of the pods.")


class Worker(Section):
    """The pods that the learners run in. `gala run` reads only `gpus`."""

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
    affinity: Affinity | None = Field(default=None, description="Affinity of the pods, as in a Pod's spec.")
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
