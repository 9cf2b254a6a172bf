"""Whether a pod keeps to the restricted Pod Security Standard, and to what this project asks beyond it."""

from __future__ import annotations

from collections.abc import Iterator

from gala_operator.actions import Manifest

# The restricted Pod Security Standard, https://kubernetes.io/docs/concepts/security/pod-security-standards/, and what
# this project asks of its pods beyond it.

VOLUME_TYPES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"),
    "secret",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SAFE_SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
}
CONFINED = {"RuntimeDefault", "Localhost"}


def violations(pod: Manifest) -> Iterator[str]:
    """What of a pod the restricted standard forbids, for pods of Linux."""
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUME_TYPES:
            yield f"volume {volume}"
    for key, value in pod["metadata"].get("annotations", {}).items():
        if "apparmor.security" in key and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"annotation {key}"
        if "seccomp.security" in key:
            yield f"annotation {key}"
    outer = spec.get("securityContext", {})
    if any(sysctl["name"] not in SAFE_SYSCTLS for sysctl in outer.get("sysctls", [])):
        yield "sysctls"
    containers = [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]
    for container in containers:
        inner = container.get("securityContext", {})
        for context in (outer, inner):
            if context.get("runAsUser") == 0:
                yield "runs as root"
            if context.get("windowsOptions", {}).get("hostProcess"):
                yield "hostProcess"
            if context.get("seLinuxOptions", {}).get("type", "") not in SELINUX_TYPES:
                yield "SELinux type"
            if {"user", "role"} & set(context.get("seLinuxOptions", {})):
                yield "SELinux user or role"
            if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in CONFINED:
                yield "AppArmor"
            if context.get("seccompProfile", {}).get("type", "RuntimeDefault") not in CONFINED:
                yield "seccomp"
        if "seccompProfile" not in outer and "seccompProfile" not in inner:
            yield "seccomp is not set"
        if not inner.get("runAsNonRoot", outer.get("runAsNonRoot")):
            yield "runAsNonRoot"
        if inner.get("allowPrivilegeEscalation") is not False:
            yield "allowPrivilegeEscalation"
        if inner.get("privileged"):
            yield "privileged"
        if inner.get("procMount", "Default") != "Default":
            yield "procMount"
        capabilities = inner.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
            yield "capabilities"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield "hostPort"
        handlers = [container.get(f"{kind}Probe", {}) for kind in ("startup", "liveness", "readiness")]
        handlers += container.get("lifecycle", {}).values()
        if any(handler.get(kind, {}).get("host") for handler in handlers for kind in ("httpGet", "tcpSocket")):
            yield "a probe of another host"


def laxities(pod: Manifest) -> Iterator[str]:
    """What this project forbids beyond the standard."""
    spec = pod["spec"]
    if spec.get("automountServiceAccountToken") is not False:
        yield "an API token"
    if any("projected" in volume for volume in spec["volumes"]):
        yield "a projected token"
    if spec.get("enableServiceLinks") is not False:
        yield "service links"
    if spec.get("shareProcessNamespace"):
        yield "shareProcessNamespace"
    for container in spec["containers"]:
        if not container["securityContext"].get("readOnlyRootFilesystem"):
            yield "a writable root"
        if "lifecycle" in container or any("exec" in container[f"{kind}Probe"] for kind in ("startup", "liveness")):
            yield "commands beside the learner"
