"""For operator_scale.py: an API server with its etcd and nothing else, and one program that plays every kubelet.

The binaries are those of the test cluster (tests/cluster/node/install.sh). Data is in memory and goes with the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NODE = Path(__file__).parents[1] / "tests/cluster/node"
CRD = Path(__file__).parents[1] / "crds/galarun.yaml"
WORKER_PORT = 7071
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
PATIENCE_SECONDS = 60.0


@dataclass
class BareCluster:
    """Ends with the `with` statement that made it."""

    folder: Path
    server: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment
            )
        self.processes[name] = process
        return process

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cpu_seconds(self, name: str) -> float:
        return cpu_seconds(self.processes[name].pid)

    def kubectl(self, *arguments: str) -> None:
        command = [f"{settings()['GALA_TOOLS']}/kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")

    def kubectl_until_done(self, *arguments: str) -> None:
        """A command that succeeds only when the API server has come so far."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.kubectl(*arguments)
            except SystemExit as error:
                if time.monotonic() > deadline or self.processes["apiserver"].poll() is not None:
                    log = (self.folder / "apiserver.log").read_text()[-2000:]
                    raise SystemExit(f"{error}; the API server said: {log}") from None
            time.sleep(0.2)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def settings(**overrides: str) -> dict[str, str]:
    """The settings of tests/cluster/node/env.sh."""
    names = ("GALA_K8S_BIN", "GALA_TOOLS")
    script = f". {NODE}/env.sh; printf '%s\\n' {' '.join('$' + name for name in names)}"
    said = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    found = dict(zip(names, said, strict=True))
    if not all(Path(path).exists() for path in found.values()):
        raise SystemExit(f"no Kubernetes here: run {NODE}/install.sh first")
    return found


@contextlib.contextmanager
def bare_cluster() -> Iterator[BareCluster]:
    """etcd and an API server that knows GalaRuns."""
    etcd_port, peer_port, api_port = free_ports(3)
    binaries = settings()["GALA_K8S_BIN"]
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="gala-scale-", dir=memory if memory.is_dir() else None))
    cluster = BareCluster(folder, f"https://127.0.0.1:{api_port}")
    pki = folder / "pki"
    try:
        environment = os.environ | {"GALA_STATE": str(folder), "GALA_API_PORT": str(api_port)}
        subprocess.run([str(NODE / "lib/pki.sh")], env=environment, check=True, stderr=subprocess.DEVNULL)
        etcd = f"http://127.0.0.1:{etcd_port}"
        peer = f"http://127.0.0.1:{peer_port}"
        cluster.start(
            "etcd", "etcd", "--data-dir", str(folder / "etcd"), "--name", "gala", "--log-level", "warn",
            "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"gala={peer}",
        )  # fmt: skip
        cluster.start(
            "apiserver", f"{binaries}/kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
            f"--secure-port={api_port}", f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key", f"--client-ca-file={pki}/ca.crt",
            f"--service-account-key-file={pki}/sa.key", f"--service-account-signing-key-file={pki}/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC", f"--cert-dir={folder}", "--feature-gates=BoundServiceAccountTokenVolume=true",
        )  # fmt: skip
        cluster.kubectl_until_done("get", "--raw", "/readyz")
        cluster.kubectl("apply", "-f", str(CRD))
        cluster.kubectl_until_done("get", "galaruns.gala.dev")
        yield cluster
    finally:
        for name in reversed(list(cluster.processes)):
            cluster.stop(name)
        shutil.rmtree(folder, ignore_errors=True)


def start_operator(cluster: BareCluster, port: int, namespace: str) -> subprocess.Popen[bytes]:
    """This checkout's operator, with its default settings."""
    return cluster.start(
        "operator", sys.executable, "-P", "-m", "gala_operator", KUBECONFIG=str(cluster.kubeconfig),
        GALA_OPERATOR_HTTP_PORT=str(port), GALA_OPERATOR_NAMESPACE=namespace,
    )  # fmt: skip


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@dataclass
class Pod:
    """A pod as the stand-in for the kubelets knows it."""

    namespace: str
    name: str
    uid: str
    seen: float
    run: str
    rank: int
    learners: int
    epoch: int
    ready: float | None = None


class Kubelets:
    """Binds every new pod, says that it runs and is ready, and answers GET /status in the learners' place.

    Each pod gets an address of 127.0.0.0/8, so that one listener stands for all of them. Use as a context.
    """

    def __init__(self, cluster: BareCluster, *, learners: int, workers: int = 8) -> None:
        self._cluster = cluster
        self._learners = learners
        self._workers = workers
        self._server = cluster.server
        self._tls = ssl.create_default_context(cafile=str(cluster.folder / "pki/ca.crt"))
        self._tls.load_cert_chain(cluster.folder / "pki/admin.crt", cluster.folder / "pki/admin.key")
        self._new: asyncio.Queue[Pod] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._addresses: dict[str, Pod] = {}
        self._given = 0
        self.pods: dict[tuple[str, str], Pod] = {}
        self.states: dict[str, str] = {}
        """Of the GalaRuns, by name."""
        self.changed = asyncio.Event()
        self.steps: Callable[[], int] = lambda: 0
        self.questions = 0

    async def __aenter__(self) -> Kubelets:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self.session = aiohttp.ClientSession(self._server, connector=connector, timeout=aiohttp.ClientTimeout(None))
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Worker(self), "0.0.0.0", WORKER_PORT, backlog=1024)
        watches = [
            self._watch("/api/v1/pods", METADATA, self._on_pod),
            self._watch("/apis/gala.dev/v1alpha1/galaruns", "application/json", self._on_run),
        ]
        self._tasks = [asyncio.create_task(work) for work in (*watches, *(self._play() for _ in range(self._workers)))]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.close()

    async def until(self, what: str, condition: Callable[[], bool], seconds: float) -> float:
        """Waits for it; how long that took."""
        started = time.monotonic()
        while not condition():
            for task in self._tasks:
                if task.done():
                    task.result()
            for name, process in self._cluster.processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended: {(self._cluster.folder / f'{name}.log').read_text()[:1000]}")
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), 1.0)
            if time.monotonic() - started > seconds:
                raise SystemExit(f"not within {seconds:g} s: {what}")
        return time.monotonic() - started

    async def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, path, data=data, headers={"Content-Type": kind}) as response:
            answer = await response.read()
            if response.status not in (200, 201, 202, 404, 409):
                raise SystemExit(f"{method} {path}: {response.status} {answer[:500]!r}")
            return json.loads(answer)

    async def _watch(self, path: str, accept: str, handle: Callable[[str, Any], None]) -> None:
        version = "0"
        while True:
            query = f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=3000"
            async with self.session.get(query, headers={"Accept": accept}, read_bufsize=1 << 22) as response:
                response.raise_for_status()
                async for line in response.content:
                    event = json.loads(line)
                    handle(event["type"], event["object"])
                    version = event["object"]["metadata"]["resourceVersion"]
                    self.changed.set()

    def _on_pod(self, kind: str, found: Any) -> None:
        meta = found["metadata"]
        place = meta["namespace"], meta["name"]
        if kind == "DELETED":
            if place in self.pods and self.pods[place].uid == meta["uid"]:
                del self.pods[place]
        elif kind == "ADDED":
            labels = meta.get("labels", {})
            pod = Pod(
                *place,
                uid=meta["uid"],
                seen=time.monotonic(),
                run=labels.get("gala.dev/run", ""),
                rank=int(labels.get("gala.dev/rank", 0)),
                learners=self._learners,
                epoch=int(meta.get("annotations", {}).get("gala.dev/plan-epoch", 0)),
            )
            self.pods[place] = pod
            self._new.put_nowait(pod)

    def _on_run(self, kind: str, found: Any) -> None:
        self.states[found["metadata"]["name"]] = found.get("status", {}).get("state", "")

    async def _play(self) -> None:
        while True:
            pod = await self._new.get()
            path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
            await self.request("POST", f"{path}/binding", {
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name, "uid": pod.uid},
                "target": {"kind": "Node", "name": f"node-{self._given % 50}"},
            })  # fmt: skip
            self._given += 1
            address = f"127.{1 + self._given // 62_500}.{self._given // 250 % 250}.{1 + self._given % 250}"
            self._addresses[address] = pod
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            conditions = [
                {"type": name, "status": "True", "lastTransitionTime": now}
                for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ]
            container = {
                "name": "worker", "image": "none", "imageID": "none", "ready": True, "restartCount": 0,
                "started": True, "state": {"running": {"startedAt": now}},
            }  # fmt: skip
            status = {
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "127.0.0.1",
                "startTime": now, "conditions": conditions, "containerStatuses": [container],
            }  # fmt: skip
            patch = {"metadata": {"uid": pod.uid}, "status": status}
            await self.request("PATCH", f"{path}/status", patch, "application/merge-patch+json")
            pod.ready = time.monotonic()
            self.changed.set()

    def answer(self, address: str) -> bytes:
        """What the learner of that address says of itself."""
        self.questions += 1
        pod = self._addresses.get(address)
        if pod is None:
            return b"{}"
        steps = self.steps()
        return json.dumps(
            {
                "run": pod.run, "rank": pod.rank, "state": "training", "epoch": pod.epoch, "steps": steps,
                "globalSteps": pod.learners * steps, "stepsPerSecond": 1000.0, "meanReturn": 10.0,
                "stalenessUpdates": 1, "relativeDisagreement": 0.01,
                "inPeers": [(pod.rank - 1) % pod.learners],
            }
        ).encode()  # fmt: skip


class _Worker(asyncio.Protocol):
    """The least HTTP that will do."""

    def __init__(self, kubelets: Kubelets) -> None:
        self._kubelets = kubelets

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._address = transport.get_extra_info("sockname")[0]
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while b"\r\n\r\n" in self._read:
            _, self._read = self._read.split(b"\r\n\r\n", 1)
            body = self._kubelets.answer(self._address)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)
