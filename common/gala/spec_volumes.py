"""The volumes that a GalaRun's author may give to the pods: part of `gala.spec_worker`.

Every source is spelled out, field by field, so that nothing of a volume passes unseen. Whatever a claim could be made
to bind or copy (`volumeName`, `dataSourceRef`) is not offered.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from gala.names import PLAN_MOUNT
from gala.spec_base import (
    ABSOLUTE_PATH,
    DNS_LABEL,
    Annotations,
    Integer,
    Labels,
    ObjectName,
    Quantities,
    Quantity,
    Rule,
    Section,
    Switch,
    without_own_keys,
)

VOLUME_SOURCES: Final = ("empty_dir", "config_map", "secret", "persistent_volume_claim", "ephemeral")

AccessMode = Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany", "ReadOnlyMany"]
Mode = Annotated[Integer, Field(ge=0, le=0o777)]


class EmptyDirectory(Section):
    """A fresh folder that lives as long as the pod."""

    medium: Literal["", "Memory"] | None = Field(
        default=None, description="Memory = in memory, which counts as the container's; unset = on the node's disk."
    )
    size_limit: Quantity | None = Field(default=None, description="How much it may hold, such as 8Gi.")


class FileItem(Section):
    """One key as a file."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(description="The key.")
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Path of the file, relative to the volume."
    )
    mode: Mode | None = Field(default=None, description="Permissions of the file, 0 to 511 (octal 0777).")


class _Files(Section):
    items: Annotated[tuple[FileItem, ...], Field(max_length=64)] = Field(
        default=(), description="Which keys become files; none = all of them."
    )
    default_mode: Mode | None = Field(default=None, description="Permissions of the files, 0 to 511 (octal 0777).")
    optional: Switch = Field(default=False, description="Start the pod even if the object is not there.")


class ConfigMapFiles(_Files):
    """The files of a ConfigMap."""

    name: ObjectName = Field(description="Name of the ConfigMap, in the run's namespace.")


class SecretFiles(_Files):
    """The files of a Secret."""

    secret_name: ObjectName = Field(description="Name of the Secret, in the run's namespace.")


class ExistingClaim(Section):
    """An existing claim."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim, in the run's namespace.")
    read_only: Switch = Field(default=False, description="Attach without write access.")


class ClaimMetadata(Section):
    """Labels and annotations of a claim."""

    labels: Labels = Field(default={}, description="Labels. Keys under gala.dev/ are the operator's own.")
    annotations: Annotations = Field(
        default={}, description="Annotations. Keys under gala.dev/ are the operator's own."
    )

    rules: ClassVar[tuple[Rule, ...]] = (without_own_keys("labels"), without_own_keys("annotations"))


class ClaimResources(Section):
    """What a claim asks for."""

    requests: Quantities = Field(description="The size, such as {storage: 10Gi}.")


class ClaimSpec(Section):
    """A claim that is made for a pod."""

    access_modes: Annotated[tuple[AccessMode, ...], Field(min_length=1, max_length=4)] = Field(
        default=("ReadWriteOnce",), description="How nodes may mount it."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the claim; unset = the cluster's default."
    )
    resources: ClaimResources = Field(description="What the claim asks for.")


class ClaimTemplate(Section):
    """The claim that is made for each pod."""

    metadata: ClaimMetadata = Field(default=ClaimMetadata(), description="Labels and annotations of the claim.")
    spec: ClaimSpec = Field(description="The claim.")


class EphemeralClaim(Section):
    """A claim that lives as long as the pod."""

    volume_claim_template: ClaimTemplate = Field(description="The claim that is made for each pod.")


class Volume(Section):
    """A volume of a learner's pod: a name and exactly one source. Others, hostPath first of all, are not offered."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] = Field(
        description="Name that volumeMounts refer to. Names that begin with gala- are the operator's own."
    )
    empty_dir: EmptyDirectory | None = Field(default=None, description="A fresh folder that lives as long as the pod.")
    config_map: ConfigMapFiles | None = Field(default=None, description="The files of a ConfigMap.")
    secret: SecretFiles | None = Field(default=None, description="The files of a Secret.")
    persistent_volume_claim: ExistingClaim | None = Field(default=None, description="An existing claim.")
    ephemeral: EphemeralClaim | None = Field(default=None, description="A claim that lives as long as the pod.")

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

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="mountPath",
            holds=lambda mount: not f"{mount.mount_path}/".startswith(f"{PLAN_MOUNT}/"),
            cel=f"!(self.mountPath + '/').startsWith('{PLAN_MOUNT}/')",
            message=f"must not be {PLAN_MOUNT} or below it",
            remedy="mount it elsewhere: that is where the learner finds its plan",
        ),
    )
