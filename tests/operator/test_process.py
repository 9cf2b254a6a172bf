"""The operator's process as it is started in a cluster, against a small API server."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from gala_operator.kinds import RESOURCES, RUN, WATCHED_KINDS, Resource
from gala_operator.testing import run_raw

NESTED = 9_900
"""An API server takes 10,000."""
SERVED = (
    *(RESOURCES[kind] for kind in WATCHED_KINDS),
    # kopf waits until it has seen that there are these.
    Resource("", "v1", "namespaces"),
    Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
)


class RunsServer:
    """Has GalaRuns only, as JSON; those that come later are delivered by the watch. Remembers their statuses."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.statuses: dict[str, dict[str, Any]] = {}
        self.watches: list[asyncio.Queue[str]] = []

    def add(self, text: str) -> None:
        self.runs.append(text)
        for watch in self.watches:
            watch.put_nowait(text)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = next((kind for kind in WATCHED_KINDS if request.path.endswith(f"/{RESOURCES[kind].plural}")), None)
        if request.method == "PATCH":
            body = await request.json()
            name = request.path.split("/")[-2]
            self.statuses.setdefault(name, body["status"])
            metadata = {"name": name, "namespace": "lab", "uid": name, "resourceVersion": "1000"}
            return web.json_response({"kind": RUN, "metadata": metadata, "status": body["status"]})
        if request.method == "POST":
            return web.json_response({}, status=201)
        if kind is not None and "watch" in request.query:
            return await self._watch(request, kind)
        if kind is not None:
            items = ", ".join(self.runs) if kind == RUN else ""
            text = f'{{"kind": "List", "metadata": {{"resourceVersion": "1"}}, "items": [{items}]}}'
            return web.Response(text=text, content_type="application/json")
        return web.json_response(_discovery(request.path))

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        news: asyncio.Queue[str] = asyncio.Queue()
        if kind == RUN:
            self.watches.append(news)
        while True:
            await response.write(f'{{"type": "ADDED", "object": {await news.get()}}}\n'.encode())


def _discovery(path: str) -> dict[str, Any]:
    """What the server has, at any of the places where it is asked for that."""
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        versions = {each.group: {"version": each.version} for each in SERVED if each.group}
        groups = [{"name": name, "versions": [one], "preferredVersion": one} for name, one in versions.items()]
        return {"groups": groups}
    here = [each.plural for each in SERVED if each.base == path]
    fields = {"singularName": "", "namespaced": True, "verbs": ["list", "watch"]}
    return {
        "versions": [{"version": each.version} for each in SERVED if f"/apis/{each.group}" == path],
        "resources": [{"name": name, "kind": name, **fields} for name in here],
    }


@contextlib.asynccontextmanager
async def serving(server: RunsServer, kubeconfig: Path) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    document = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    kubeconfig.write_text(json.dumps(document))
    try:
        yield
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool], process: asyncio.subprocess.Process) -> None:
    """Or until the process has ended."""
    while not condition() and process.returncode is None:
        await asyncio.sleep(0.05)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def nested_run(name: str) -> str:
    """A GalaRun, as JSON, that is nested as deeply as an API server allows, and so is what it says of its managers."""
    raw = run_raw(name, uid=name)
    raw["metadata"]["managedFields"] = "DEEP"
    raw["spec"]["environment"]["kwargs"] = "DEEP"
    return json.dumps(raw).replace('"DEEP"', '{"a": ' * NESTED + "1" + "}" * NESTED)


def test_a_run_that_is_nested_as_deeply_as_a_server_allows_is_refused_and_takes_nobody_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = RunsServer()
        server.add(nested_run("listed"))
        async with serving(server, tmp_path / "kubeconfig"):
            own = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "GALA_OPERATOR_HTTP_PORT": "0"}
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "gala_operator", env={**os.environ, **own}
            )
            try:
                await until(lambda: "listed" in server.statuses and bool(server.watches), process)
                server.add(nested_run("watched"))
                await until(lambda: "watched" in server.statuses, process)
                assert process.returncode is None
                process.terminate()
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
        for name in ("listed", "watched"):
            assert [condition["reason"] for condition in server.statuses[name]["conditions"]] == ["InvalidSpec"]

    run(scenario)
