"""A real cluster as a test has it: its commands and objects, one namespace of it, an operator that works there."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import config
from urllib3.exceptions import HTTPError

PROJECT = Path(__file__).parents[2]
NODE = PROJECT / "tests/cluster/node"
CRD = "galaruns.gala.dev"
T = TypeVar("T")
Object = dict[str, Any]

# Paths of the API server, with the namespace to fill in.
PATHS = {
    "galaruns": "/apis/gala.dev/v1alpha1/namespaces/{}/galaruns",
    "networkpolicies": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "poddisruptionbudgets": "/apis/policy/v1beta1/namespaces/{}/poddisruptionbudgets",
    "leases": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    "cronjobs": "/apis/batch/v1beta1/namespaces/{}/cronjobs",
    "jobs": "/apis/batch/v1/namespaces/{}/jobs",
    "deployments": "/apis/apps/v1/namespaces/{}/deployments",
}
CHILDREN = ("pods", "services", "configmaps", "networkpolicies", "poddisruptionbudgets", "persistentvolumeclaims")


def api_port(lane: int) -> int:
    """A port of the loopback interface for a node's API server, below those that the kernel gives away by itself.

    Each lane, 0 to 9, has its own thousand: the server listens only minutes later.
    """
    while True:
        port = 17_000 + 1_000 * (lane % 10) + secrets.randbelow(1_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


PATIENCE_SECONDS = 100.0
"""How long the slow things take at most. A pod goes when its containers are removed; where that is not done at their
end (they ended before their pod was deleted, or an event of theirs came late), the kubelet does it once a minute. It
tells the API server of it every ten seconds, and what owns the pod is gone after that. Before all that, a pod that
was deleted while its containers started is stopped at the kubelet's next look, within 8 seconds (syncFrequency in
node/lib/node.sh)."""


def wait_for(what: str, condition: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `condition`, asked again and again for so long; AssertionError with the last one."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; at the end: {value!r}"
        time.sleep(0.3)


def is_ready(pod: Object) -> bool:
    """Of a pod that stays."""
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


@dataclass
class Cluster:
    """An API server to test against. `node` is true if it is the one of node/, whose insides can be reached."""

    kubeconfig: Path
    environment: dict[str, str]
    node: bool
    operator_image: str = ""
    worker_image: str = ""
    api: Any = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {**self.environment, "KUBECONFIG": str(self.kubeconfig)}
        self.api = config.new_client_from_config(str(self.kubeconfig))

    def run(self, *command: str, stdin: str = "", check: bool = True, seconds: float = 120.0) -> str:
        """A command's standard output; AssertionError with all it said if it fails."""
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=seconds, env=self.environment, cwd=PROJECT
        )
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.run("kubectl", *arguments, **options)

    def helm(self, *arguments: str, **options: Any) -> str:
        return self.run("helm", *arguments, **options)

    def enter(self, *command: str, **options: Any) -> str:
        """Runs a command inside the node, where pod and service addresses can be reached."""
        return self.run(str(NODE / "enter.sh"), *command, **options)

    def service(self, action: str, *names: str) -> str:
        """`stop`, `start` or `restart` apiserver, kubelet, scheduler, controller-manager, etcd, proxy or dns."""
        return self.run(str(NODE / "svc.sh"), action, *names)

    def ask(self, path: str, seconds: float = 30.0) -> tuple[int, bytes]:
        """The API server's answer at a path, status and content, far cheaper than kubectl's.

        Asked up to four times for so many seconds each.
        """
        parameters = self.api.param_serialize(method="GET", resource_path=path, auth_settings=["BearerToken"])
        answer = self.api.call_api(*parameters, _request_timeout=seconds)
        return answer.status, answer.read()

    def read(self, path: str) -> Object | None:
        """The object or list at a path of the API server; None if nothing is there."""
        status, data = self.ask(path)
        if status == 404:
            return None
        assert status == 200, f"GET {path}: {status} {data[:500]!r}"
        content: Object = json.loads(data)
        return content

    def define_galaruns(self) -> None:
        """Applies the project's resource definition and returns when the API server serves it.

        Asked for here since `kubectl wait` fails on a definition whose conditions are still null, which they are until
        the API server has looked at what it stored (kubernetes/kubernetes issue 66439).
        """
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(PROJECT / "crds/galarun.yaml"))
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}"

        def established() -> bool:
            conditions = (self.read(path) or {}).get("status", {}).get("conditions") or []
            named = any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
            return named and self.read("/apis/gala.dev/v1alpha1") is not None

        wait_for(f"{CRD} established", established)


@dataclass
class Namespace:
    """One test's namespace."""

    cluster: Cluster
    name: str

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", self.name, *arguments, **options)

    def apply(self, *documents: Object, **options: Any) -> str:
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents), **options)

    def delete(self, kind: str, name: str, *options: str) -> None:
        """Returns when it is gone."""
        timeout = f"--timeout={PATIENCE_SECONDS:g}s"
        self.kubectl("delete", kind, name, timeout, *options, seconds=PATIENCE_SECONDS + 20)

    def path(self, plural: str) -> str:
        return PATHS.get(plural, f"/api/v1/namespaces/{{}}/{plural}").format(self.name)

    def get(self, plural: str, name: str) -> Object | None:
        return self.cluster.read(f"{self.path(plural)}/{name}")

    def items(self, plural: str, selector: str = "") -> list[Object]:
        listed = self.cluster.read(self.path(plural) + (f"?labelSelector={selector}" if selector else ""))
        return listed["items"] if listed else []

    def wait(
        self,
        plural: str,
        name: str,
        condition: Callable[[Object], T | None],
        seconds: float = PATIENCE_SECONDS,
        what: str = "",
    ) -> T:
        """Until the object is there and fulfils the condition; its value. The failure shows the object's status."""
        seen: list[Object | None] = [None]

        def ask() -> T | None:
            seen[0] = self.get(plural, name)
            return condition(seen[0]) if seen[0] else None

        try:
            return wait_for(what or f"{plural} {name}", ask, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(seen[0] and seen[0].get('status'), indent=1)}") from None

    def wait_state(self, run: str, *states: str, seconds: float = 2 * PATIENCE_SECONDS) -> Object:
        """Until the GalaRun is in one of the states, with pods in place of former ones if need be; its status."""
        return self.wait(
            "galaruns",
            run,
            lambda found: found["status"] if found.get("status", {}).get("state") in states else None,
            seconds,
            f"GalaRun {run} is {' or '.join(states)}",
        )

    def wait_condition(
        self, run: str, type_: str, reason: str, seconds: float = PATIENCE_SECONDS, *, says: str = ""
    ) -> Object:
        """Until a condition of the GalaRun has that reason, and these words in its message; the condition."""
        return self.wait(
            "galaruns",
            run,
            lambda found: next(
                (
                    c
                    for c in found.get("status", {}).get("conditions", [])
                    if (c["type"], c["reason"]) == (type_, reason) and says in c["message"]
                ),
                None,
            ),
            seconds,
            f"condition {type_} of {run} has the reason {reason} and says {says!r}",
        )

    def patch(self, run: str, **spec: Any) -> None:
        """Merges into the GalaRun's spec."""
        self.kubectl("patch", "galarun", run, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def status(self, run: str) -> Object:
        found = self.get("galaruns", run)
        return found.get("status", {}) if found else {}

    def pods(self, run: str) -> dict[str, Object]:
        return {pod["metadata"]["name"]: pod for pod in self.items("pods", f"gala.dev/run={run}")}

    def lives(self, run: str) -> dict[str, tuple[str, int]]:
        """Of each of the run's pods its uid and its container's restarts: the same for as long as nobody restarts."""
        return {
            name: (pod["metadata"]["uid"], sum(c["restartCount"] for c in pod["status"].get("containerStatuses", ())))
            for name, pod in self.pods(run).items()
        }

    def wait_replaced(self, pod: str, uid: str) -> Object:
        """Until another pod than that one bears the name, and is ready; the pod.

        Before that the run's state may still be the one of the time before the loss.
        """
        return self.wait(
            "pods",
            pod,
            lambda found: found if found["metadata"]["uid"] != uid and is_ready(found) else None,
            2 * PATIENCE_SECONDS,
            f"another {pod} is ready",
        )

    def children(self, run: str) -> list[str]:
        """Everything that carries the run's label, such as `pods/pong-0`."""
        return [
            f"{plural}/{item['metadata']['name']}"
            for plural in CHILDREN
            for item in self.items(plural, f"gala.dev/run={run}")
        ]

    def wait_gone(self, run: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Until nothing carries the run's label any more."""
        left: list[list[str]] = [[]]

        def gone() -> bool:
            left[0] = self.children(run)
            return not left[0]

        try:
            wait_for(f"nothing of {run} is left", gone, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {left[0]}") from None

    def worker_status(self, pod: str, seconds: float = 10.0) -> Object:
        """A worker's own /status, through the API server; empty while the worker does not answer.

        `seconds` as of `Cluster.ask`.
        """
        try:
            status, data = self.cluster.ask(f"{self.path('pods')}/{pod}:7071/proxy/status", seconds)
        except HTTPError:
            return {}  # of a pod that has just been killed: its address answers nothing, not even a refusal
        content: Object = json.loads(data) if status == 200 else {}
        return content

    def report(self) -> str:
        """What one would look at first when a test failed."""
        parts = []
        for arguments in (
            ("get", "galaruns,pods", "-o", "wide"),
            ("get", "galaruns", "-o", "yaml"),
            ("get", "events", "--sort-by=.lastTimestamp"),
        ):
            parts.append(f"--- kubectl {' '.join(arguments)}\n{self.kubectl(*arguments, check=False)[-6000:]}")
        for pod in self.items("pods"):
            name = pod["metadata"]["name"]
            parts.append(f"--- log of {name}\n{self.kubectl('logs', name, '--tail=30', check=False)}")
        return "\n".join(parts)


@dataclass
class Operator:
    """The operator as a process inside the node, from this checkout. Ends and starts at will."""

    namespace: Namespace
    log: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, **settings: str) -> None:
        """With settings such as `STATUS_SECONDS="1"`, kept for later starts."""
        self.settings |= settings
        ask = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"
        self.port = int(self.namespace.cluster.enter(sys.executable, "-c", ask))
        cluster = self.namespace.cluster
        values = {
            "NAMESPACES": self.namespace.name,
            "NAMESPACE": self.namespace.name,
            "IDENTITY": self.log.stem,
            "WORKER_IMAGE": cluster.worker_image,
            "HTTP_PORT": str(self.port),
            "LOG_FORMAT": "text",
        } | self.settings
        environment = cluster.environment | {f"GALA_OPERATOR_{name}": value for name, value in values.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(NODE / "enter.sh"), sys.executable, "-P", "-m", "gala_operator"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        wait_for("the operator is ready", self.ready)

    def get(self, path: str) -> str:
        """Of its HTTP server: /healthz, /readyz, /metrics. Empty while it does not answer with 200."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return self.namespace.cluster.enter("curl", "-sf", "-m", "5", url, check=False)

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the operator ended: {self.tail()}"
        return bool(self.get("/readyz"))

    def stop(self, with_signal: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Ends it; the exit status. enter.sh's own process passes no signal on, so its child gets it."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        if self.process.poll() is None:
            for child in children.read_text().split():
                os.kill(int(child), with_signal)
        return self.process.wait(seconds)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
