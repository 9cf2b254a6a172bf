"""The only module that talks to a cluster: the few requests that the commands need, with errors of our own tree.

The Kubernetes client is an extra (`pip install -e '.[cluster]'`) and imported when a command first needs it. Answers
are read as plain JSON: models of another server version cannot get in the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gala import names
from gala.errors import ClusterError, GalaError, NotFoundError, UnreachableError, UsageError, to_install
from gala.remote.refusals import translate

FIELD_MANAGER: Final = "gala"
"""Owns the fields that `gala submit` sets."""
TIMEOUT_SECONDS: Final = (10.0, 30.0)
"""To connect, and for an answer."""
FOLLOWING_SECONDS: Final = (10.0, 86_400.0)
"""Likewise while a log is followed: a learner may be silent for long."""
CLOSING_SECONDS: Final = 5.0
"""For a port-forward to end."""
MAX_LINE_BYTES: Final = 64 * 1024
"""A longer line of a log is shown in pieces."""
SERVICE_ACCOUNT_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """What the commands need to know of a pod."""

    name: str
    uid: str
    run_uid: str
    rank: int | None
    """None for the results pod."""
    started: bool
    """Whether its container runs or has run: whether there is a log."""
    reason: str
    """Why not, while not."""
    running: bool


class Cluster:
    """One namespace of one cluster. Every method raises GalaError and nothing else."""

    def __init__(self, configuration: Any, namespace: str, options: str = "") -> None:
        """`configuration` is the Kubernetes client's; see `connect`."""
        from kubernetes import client

        # No retries of urllib3's own: who waits for a cluster says so and asks again.
        configuration.retries = False
        configuration.connection_pool_maxsize = names.MAX_LEARNERS  # following logs takes one each
        api = client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._configuration = configuration
        self.namespace = namespace
        self.options = options
        """What leads back here, to be put behind a command that the user is told of: ` -n team`, or nothing."""

    @classmethod
    def connect(
        cls, *, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None
    ) -> Cluster:
        """The cluster that kubectl would talk to: --kubeconfig, KUBECONFIG, ~/.kube/config, or the pod's own.

        Raises: UsageError when none is configured, or the Kubernetes client is not installed.
        """
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise UsageError(f"talking to a cluster needs the Kubernetes client; {to_install('cluster')}") from error
        configuration = client.Configuration()
        files = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        # os.path's expanduser, since a container's user may have no home, which Path's does not survive.
        found = any(Path(os.path.expanduser(name)).is_file() for name in files.split(os.pathsep) if name)  # noqa: PTH111
        if not found and not kubeconfig and not context and "KUBERNETES_SERVICE_HOST" in os.environ:
            try:
                config.load_incluster_config(client_configuration=configuration)
                usual = SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
            except (config.ConfigException, OSError) as error:
                raise UsageError(f"this pod may not talk to its cluster: {error}") from error
            return cls(configuration, namespace or usual, _options(namespace=namespace if namespace != usual else None))
        if not found:
            folder = any(Path(os.path.expanduser(name)).is_dir() for name in files.split(os.pathsep) if name)  # noqa: PTH111
            what = f"{files} is a folder" if folder else f"there is no {files}"
            raise UsageError(f"no cluster is configured: {what}; name a file with --kubeconfig")
        try:
            config.load_kube_config(
                config_file=files, context=context, client_configuration=configuration, persist_config=False
            )
            contexts, active = config.list_kube_config_contexts(config_file=files)
        except (config.ConfigException, OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
            what = f"context {context} of {files}" if context else files
            raise UsageError(f"{what} cannot be used: {' '.join(str(error).split())}") from error
        chosen = next((entry for entry in contexts if entry["name"] == context), active)
        usual = (chosen.get("context") or {}).get("namespace") or "default"
        namespace = namespace or usual
        options = _options(namespace=namespace if namespace != usual else None, context=context, kubeconfig=kubeconfig)
        return cls(configuration, namespace, options)

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._configuration.host)

    def apply(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Make the GalaRun as the document says, by server-side apply; returns it as it now is."""
        return self._json(
            self._objects.patch_namespaced_custom_object,
            **self._kind(),
            name=document["metadata"]["name"],
            body=dict(document),
            field_manager=FIELD_MANAGER,
            force=True,  # the file that the user hands over wins over an earlier `kubectl scale`
            _content_type="application/apply-patch+yaml",
        )

    def get(self, name: str) -> dict[str, Any]:
        """A GalaRun. Raises: NotFoundError and others."""
        try:
            return self._json(self._objects.get_namespaced_custom_object, **self._kind(), name=name)
        except NotFoundError as error:
            raise NotFoundError(f"there is no run {name} in namespace {self.namespace}", error.kind) from error

    def find(self, name: str) -> dict[str, Any] | None:
        """A GalaRun, or None."""
        try:
            return self.get(name)
        except NotFoundError:
            return None

    def runs(self, *, all_namespaces: bool = False) -> list[dict[str, Any]]:
        """The GalaRuns of the namespace, or of all."""
        kind = self._kind()
        if all_namespaces:
            del kind["namespace"]
            # Cluster scope and all namespaces are the same path for a list.
            return _items(self._json(self._objects.list_cluster_custom_object, **kind))
        return _items(self._json(self._objects.list_namespaced_custom_object, **kind))

    def delete(self, name: str) -> None:
        """Delete a GalaRun; it is gone when its pods are."""
        self._json(
            self._objects.delete_namespaced_custom_object,
            **self._kind(),
            name=name,
            propagation_policy="Foreground",
        )

    def pods(self, run_name: str) -> list[Pod]:
        """The pods that carry the run's label, by rank; the results pod last."""
        answer = self._json(
            self._core.list_namespaced_pod,
            namespace=self.namespace,
            label_selector=f"{names.LABEL_RUN}={run_name}",
        )
        pods = [_pod(item) for item in _items(answer)]
        return sorted(pods, key=lambda pod: (pod.rank is None, pod.rank or 0, pod.name))

    def log_lines(
        self, pod: Pod, *, follow: bool = False, tail: int | None = None, since_seconds: int | None = None
    ) -> Iterator[str]:
        """What our container of a pod writes, line by line, as it comes."""
        response = self._ask(
            self._core.read_namespaced_pod_log,
            timeout=FOLLOWING_SECONDS if follow else TIMEOUT_SECONDS,
            name=pod.name,
            namespace=self.namespace,
            container=_container(pod.rank),
            follow=follow,
            tail_lines=tail,
            since_seconds=since_seconds,
        )
        with self._translated():
            pending = b""
            for chunk in response.stream(64 * 1024):
                *lines, pending = (pending + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
                if len(pending) > MAX_LINE_BYTES:
                    yield pending.decode(errors="replace")
                    pending = b""
            if pending:
                yield pending.decode(errors="replace")

    @contextlib.contextmanager
    def port(self, pod: str, port: int) -> Iterator[socket.socket]:
        """A connection to a pod's port, through the API server and the pod's node."""
        from kubernetes import client, stream

        # A client of its own: the port-forward replaces the client's transport while it connects.
        core = client.CoreV1Api(client.ApiClient(self._configuration))
        others = set(threading.enumerate())
        with self._translated():
            forward = stream.portforward(
                core.connect_get_namespaced_pod_portforward, pod, self.namespace, ports=str(port)
            )
        try:
            yield forward.socket(port)
        except OSError as error:
            raise ClusterError(f"the connection to pod {pod} broke: {forward.error(port) or _why(error)}") from error
        finally:
            forward.close()
            # The client's own thread ends now, but leaves its connection open where the other side has closed first.
            for thread in set(threading.enumerate()) - others:
                if thread.name.startswith("Kubernetes port forward"):
                    thread.join(CLOSING_SECONDS)
            forward.websocket.shutdown()

    def _kind(self) -> dict[str, Any]:
        return {
            "group": names.GROUP,
            "version": names.VERSION,
            "namespace": self.namespace,
            "plural": names.PLURAL,
        }

    def _json(self, method: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        with self._translated():
            answer = json.loads(self._ask(method, timeout=TIMEOUT_SECONDS, **arguments).data)
        if not isinstance(answer, dict):
            raise ClusterError(f"{self.server} does not answer like a Kubernetes API server")
        return answer

    def _ask(self, method: Callable[..., Any], *, timeout: tuple[float, float], **arguments: Any) -> Any:
        given = {key: value for key, value in arguments.items() if value is not None}
        with self._translated():
            return method(**given, _preload_content=False, _request_timeout=timeout)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except GalaError:
            raise
        except ApiException as error:
            raise translate(error.status or 0, str(error.reason or ""), error.body) from error
        except (HTTPError, OSError) as error:
            raise UnreachableError(f"the cluster at {self.server} does not answer: {_why(error)}") from error
        except (ValueError, RecursionError) as error:
            raise ClusterError(f"{self.server} does not answer like a Kubernetes API server") from error


def _options(**given: str | None) -> str:
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in given.items() if value)


def _pod(item: Mapping[str, Any]) -> Pod:
    metadata = item.get("metadata") or {}
    labels = metadata.get("labels") or {}
    status = item.get("status") or {}
    label = str(labels.get(names.LABEL_RANK, ""))
    rank = int(label) if label.isascii() and label.isdigit() else None
    # The kubelet sorts them by name, and admission may have put a sidecar before ours.
    states = {each.get("name"): each.get("state") for each in status.get("containerStatuses") or ()}
    state = states.get(_container(rank)) or {}
    waiting = state.get("waiting") or {}
    return Pod(
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        run_uid=str(labels.get(names.LABEL_RUN_UID, "")),
        rank=rank,
        started="running" in state or "terminated" in state,
        reason=str(waiting.get("reason") or status.get("reason") or status.get("phase") or "Pending"),
        running="running" in state and not metadata.get("deletionTimestamp"),
    )


def _container(rank: int | None) -> str:
    """The container that is ours, in a learner's pod or in that of the results."""
    return names.CONTAINER_RESULTS if rank is None else names.CONTAINER_LEARNER


def _items(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = answer.get("items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _why(error: BaseException) -> str:
    """The reason at the bottom of a chain of exceptions, in words: `Connection refused`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.strerror:
            return str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__
