"""A small API server for the tests of `gala submit` and its kin: GalaRuns, pods, logs, port-forward.

It does what those commands lean on and no more: server-side apply with generations and uids, Status objects for errors,
`v4.channel.k8s.io` port-forward with its two initial frames. Statuses are scripted: each GET of a run moves on by one.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from aiohttp import WSMsgType, web

GROUP = "/apis/gala.dev/v1alpha1"
CREATED = "2026-01-01T00:00:00Z"
SPEC = {"environment": {"id": "CartPole-v1"}, "learners": 2, "totalSteps": 1000}
Gala = Callable[..., tuple[int, str, str]]
"""Calls `gala ARGUMENTS`; returns (exit code, stdout, stderr)."""


class FakeCluster:
    """Runs in a thread of its own while entered."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.scripts: dict[str, list[dict[str, Any] | None]] = {}
        """name -> statuses; each GET of the run takes the next one, None deletes the run."""
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, list[bytes]] = {}
        """pod -> what is sent, piece by piece."""
        self.logs_sent = 0
        """Answers with a log that are complete."""
        self.archive = b""
        self.archive_status = 200
        self.cut_after: int | None = None
        """The port-forward breaks after so many bytes of an answer, once."""
        self.answers: list[tuple[int, Any]] = []
        """What to answer to the next requests instead; a string goes out as it is, a mapping as a Status."""
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fake cluster", daemon=True)
        self._started = threading.Event()
        self._stop: asyncio.Event

    def __enter__(self) -> FakeCluster:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def kubeconfig(self, path: Path, namespace: str | None = None) -> str:
        """Write a kubeconfig for this cluster, with a context `here`; returns its path."""
        context = {"cluster": "fake", "user": "me", **({"namespace": namespace} if namespace else {})}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": "sesame"}}],
            "contexts": [
                {"name": "here", "context": context},
                {"name": "there", "context": {**context, "namespace": "elsewhere"}},
            ],
        }
        path.write_text(yaml.safe_dump(document))
        return str(path)

    def add_run(
        self, name: str, spec: dict[str, Any], *statuses: dict[str, Any] | None, namespace: str = "default"
    ) -> str:
        """A run with a script of statuses; the first is there at once. Returns its uid."""
        uid = str(uuid.uuid4())
        self.runs[(namespace, name)] = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": uid,
                "generation": 1,
                "creationTimestamp": CREATED,
            },
            "spec": spec,
            **({"status": statuses[0]} if statuses else {}),
        }
        self.scripts[name] = list(statuses)
        return uid

    def add_pod(
        self, name: str, run: str, uid: str, *, rank: int | None, running: bool = True, waiting: str = ""
    ) -> None:
        """A pod of a run, for its results if `rank` is None."""
        labels = {"gala.dev/run": run, "gala.dev/run-uid": uid, "gala.dev/role": "results" if rank is None else "actor"}
        labels |= {} if rank is None else {"gala.dev/rank": str(rank)}
        state = {"waiting": {"reason": waiting}} if waiting else {"running": {}} if running else {"terminated": {}}
        container = "results" if rank is None else "learner"
        sidecar = {"name": "istio-proxy", "state": {"waiting": {"reason": "PodInitializing"}}}  # sorted by name
        self.pods.append(
            {
                "metadata": {"name": name, "namespace": "default", "uid": str(uuid.uuid4()), "labels": labels},
                "status": {"phase": "Running", "containerStatuses": [sidecar, {"name": container, "state": state}]},
            }
        )

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(middlewares=[self._recorded])
        runs = f"{GROUP}/namespaces/{{namespace}}/galaruns"
        app.router.add_get(f"{GROUP}/galaruns", self._list)
        app.router.add_get(runs, self._list)
        app.router.add_get(f"{runs}/{{name}}", self._get)
        app.router.add_patch(f"{runs}/{{name}}", self._apply)
        app.router.add_delete(f"{runs}/{{name}}", self._delete)
        pods = "/api/v1/namespaces/{namespace}/pods"
        app.router.add_get(pods, self._pods)
        app.router.add_get(f"{pods}/{{name}}/log", self._log)
        app.router.add_get(f"{pods}/{{name}}/portforward", self._forward)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.text() if request.can_read_body else ""
        self.requests.append((request.method, request.path, dict(request.query), json.loads(body) if body else None))
        assert request.headers.get("authorization") == "Bearer sesame"
        if self.answers:
            code, answer = self.answers.pop(0)
            if isinstance(answer, str):
                return web.Response(status=code, text=answer)
            return web.json_response({"kind": "Status", "code": code, **answer}, status=code)
        return await handler(request)  # type: ignore[no-any-return]

    async def _list(self, request: web.Request) -> web.Response:
        namespace = request.match_info.get("namespace")
        items = [run for (where, _), run in self.runs.items() if namespace in (None, where)]
        return web.json_response({"kind": "GalaRunList", "items": items})

    async def _get(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        script = self.scripts.get(name, [])
        if script and (namespace, name) in self.runs:
            status = script.pop(0) if len(script) > 1 else script[0]
            if status is None:
                del self.runs[(namespace, name)]
            else:
                self.runs[(namespace, name)]["status"] = status
        run = self.runs.get((namespace, name))
        return self._missing("galaruns", name) if run is None else web.json_response(run)

    async def _apply(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        assert request.content_type == "application/apply-patch+yaml"
        assert request.query["fieldManager"]
        document = self.requests[-1][3]
        run = self.runs.get((namespace, name))
        if run is None:
            self.add_run(name, document["spec"], *self.scripts.get(name, []), namespace=namespace)
            self.runs[(namespace, name)].pop("status", None)
            return web.json_response(self.runs[(namespace, name)], status=201)
        if run["spec"] != document["spec"]:
            run["spec"] = document["spec"]
            run["metadata"]["generation"] += 1
        return web.json_response(run)

    async def _delete(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        if self.runs.pop((namespace, name), None) is None:
            return self._missing("galaruns", name)
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _pods(self, request: web.Request) -> web.Response:
        key, _, value = request.query["labelSelector"].partition("=")
        items = [pod for pod in self.pods if pod["metadata"]["labels"].get(key) == value]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": items})

    async def _log(self, request: web.Request) -> web.StreamResponse:
        if "container" not in request.query:  # the server's answer where a pod has several
            return web.json_response({"message": "a container name must be specified"}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in self.logs.get(request.match_info["name"], []):
            await response.write(piece)
        self.logs_sent += 1
        return response

    async def _forward(self, request: web.Request) -> web.WebSocketResponse:
        port = int(request.query["ports"])
        channel = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await channel.prepare(request)
        for number in (0, 1):
            await channel.send_bytes(bytes([number]) + port.to_bytes(2, "little"))
        asked = b""
        async for message in channel:
            if message.type is not WSMsgType.BINARY:
                break
            asked += message.data[1:]
            if b"\r\n\r\n" in asked:
                await self._send_archive(channel, asked)
                break
        await channel.close()
        return channel

    async def _send_archive(self, channel: web.WebSocketResponse, asked: bytes) -> None:
        assert asked.startswith(b"GET /archive HTTP/1.1\r\n")
        head = f"HTTP/1.1 {self.archive_status} Whatever\r\nContent-Length: {len(self.archive)}\r\n\r\n"
        answer = head.encode() + self.archive
        if self.cut_after is not None:
            answer, self.cut_after = answer[: self.cut_after], None
        for start in range(0, len(answer), 30_000):
            await channel.send_bytes(b"\0" + answer[start : start + 30_000])

    def _missing(self, kind: str, name: str) -> web.Response:
        return web.json_response(
            {
                "kind": "Status",
                "status": "Failure",
                "message": f'{kind}.gala.dev "{name}" not found',
                "reason": "NotFound",
                "details": {"name": name, "group": "gala.dev", "kind": kind},
                "code": 404,
            },
            status=404,
        )

    @staticmethod
    def status(
        state: str, *, generation: int = 1, conditions: Sequence[dict[str, str]] = (), **fields: Any
    ) -> dict[str, Any]:
        """A GalaRun's status as the operator writes it."""
        return {"state": state, "observedGeneration": generation, "conditions": list(conditions), **fields}

    @staticmethod
    def condition(kind: str, value: str, reason: str, message: str = "") -> dict[str, str]:
        """One of its conditions."""
        return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": CREATED}
