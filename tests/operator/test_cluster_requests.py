"""What goes over the wire to the API server, against a real HTTP server that records it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from gala_operator import __main__ as main
from gala_operator.cluster import ApiError, Cluster
from gala_operator.leader import LeaderElector
from gala_operator.settings import OperatorSettings
from gala_operator.testing import pod_raw

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class ApiServer:
    """Answers in the order of the script, and remembers what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.content_types: list[str] = []
        self.authorization: list[str | None] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.requests.append((request.method, request.path, dict(request.query), json.loads(body) if body else None))
        self.content_types.append(request.content_type)
        self.authorization.append(request.headers.get("Authorization"))
        status, document, *headers = self.answers.pop(0)
        text = document if isinstance(document, str) else json.dumps(document)
        return web.Response(status=status, text=text, headers=headers[0] if headers else None)


def status(code: int, reason: str, message: str = "no") -> Answer:
    return code, {"kind": "Status", "code": code, "reason": reason, "message": message}


def asking(server: ApiServer, scenario: Callable[[Cluster], Awaitable[Any]], seen: list[Any] | None = None) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        configuration.api_key["BearerToken"] = "Bearer secret"
        observed = seen if seen is not None else []
        cluster = Cluster(
            configuration,
            concurrency=4,
            observe=lambda verb, resource, code, _: observed.append((verb, resource, code)),
        )
        try:
            return await scenario(cluster)
        finally:
            await cluster.close()
            await runner.cleanup()

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_apply_is_a_forced_server_side_apply_of_one_field_manager() -> None:
    server = ApiServer((200, {"kind": "Service"}))
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pong", "namespace": "lab"}}
    seen: list[Any] = []
    assert asking(server, lambda cluster: cluster.apply(manifest), seen) == {"kind": "Service"}
    assert server.requests == [
        (
            "PATCH",
            "/api/v1/namespaces/lab/services/pong",
            {"fieldManager": "gala-operator", "force": "true"},
            manifest,
        )
    ]
    assert server.content_types == ["application/apply-patch+yaml"]
    assert server.authorization == ["Bearer secret"]
    assert seen == [("patch", "services", 200)]


@pytest.mark.parametrize("verb", ["apply", "create"])
def test_on_an_old_server_disruption_budgets_go_to_the_beta_version(verb: str) -> None:
    server = ApiServer(
        (200, {"versions": [{"version": "v1beta1"}]}), (200, {"resources": [{"name": "galaruns"}]}), (200, {})
    )
    manifest = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "pong", "namespace": "lab"},
        "spec": {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }

    async def scenario(cluster: Cluster) -> None:
        await cluster.discover()
        await getattr(cluster, verb)(manifest)

    asking(server, scenario)
    _, path, _, body = server.requests[-1]
    assert path.removesuffix("/pong") == "/apis/policy/v1beta1/namespaces/lab/poddisruptionbudgets"
    assert body["apiVersion"] == "policy/v1beta1"
    assert body["spec"] == {"maxUnavailable": 1}, "the field is unknown there"


def test_a_server_without_the_resource_is_told_apart() -> None:
    server = ApiServer((200, {"versions": [{"version": "v1"}]}), status(404, "NotFound"))
    with pytest.raises(ApiError, match="404 NotFound"):
        asking(server, lambda cluster: cluster.discover())


def test_a_pod_that_exists_is_none() -> None:
    server = ApiServer(status(409, "AlreadyExists"))
    assert asking(server, lambda cluster: cluster.create(pod_raw())) is None
    assert server.requests[0][:2] == ("POST", "/api/v1/namespaces/lab/pods")


def test_an_annotation_of_a_pod_names_the_uid_and_spares_its_successor() -> None:
    refused = status(422, "Invalid", 'Pod "pong-0" is invalid: metadata.uid: Invalid value: "u": field is immutable')
    server = ApiServer((200, {"kind": "Pod"}), refused, status(422, "Invalid", "metadata.annotations: Too long"))

    async def scenario(cluster: Cluster) -> list[Any]:
        return [await cluster.annotate_pod("lab", "pong-0", "u", {"a": "b"}) for _ in range(2)]

    assert asking(server, scenario) == [{"kind": "Pod"}, None]
    assert server.requests[0][3] == {"metadata": {"uid": "u", "annotations": {"a": "b"}}}
    with pytest.raises(ApiError, match="Too long"):
        asking(server, lambda cluster: cluster.annotate_pod("lab", "pong-0", "u", {"a": "b" * 300_000}))


def test_deletions_name_the_uid() -> None:
    server = ApiServer(status(409, "Conflict"), status(404, "NotFound"), (200, {"kind": "Pod", "metadata": {}}))

    async def scenario(cluster: Cluster) -> list[Any]:
        return [await cluster.delete_pod("lab", "pong-0", "u") for _ in range(3)]

    assert asking(server, scenario) == [None, None, {"kind": "Pod", "metadata": {}}]
    method, path, _, body = server.requests[0]
    assert (method, path) == ("DELETE", "/api/v1/namespaces/lab/pods/pong-0")
    assert body["preconditions"] == {"uid": "u"}


def test_deleting_a_run_takes_what_it_owns_along() -> None:
    server = ApiServer((200, {"kind": "Status"}))
    asking(server, lambda cluster: cluster.delete_run("lab", "pong", "u"))
    assert server.requests[0][1] == "/apis/gala.dev/v1alpha1/namespaces/lab/galaruns/pong"
    assert server.requests[0][3]["propagationPolicy"] == "Background"


def test_the_status_is_a_merge_patch_bound_to_the_version() -> None:
    server = ApiServer((200, {"kind": "GalaRun"}))
    asking(server, lambda cluster: cluster.patch_status("lab", "pong", "7", {"state": "Running", "steps": None}))
    method, path, query, body = server.requests[0]
    assert (method, path) == ("PATCH", "/apis/gala.dev/v1alpha1/namespaces/lab/galaruns/pong/status")
    assert query == {"fieldManager": "gala-operator"}
    assert body == {"metadata": {"resourceVersion": "7"}, "status": {"state": "Running", "steps": None}}
    assert server.content_types == ["application/merge-patch+json"]


def test_lists_are_paged_and_labelled_and_of_one_namespace_or_all() -> None:
    server = ApiServer(
        (200, {"metadata": {"continue": "more"}, "items": [{"metadata": {"uid": "1"}}]}),
        (200, {"metadata": {}, "items": [{"metadata": {"uid": "2"}}]}),
        (200, {"metadata": {}, "items": None}),
    )

    async def scenario(cluster: Cluster) -> list[str]:
        return [meta["uid"] for place in ("a", None) async for meta in cluster.list_metadata("Pod", place)]

    assert asking(server, scenario) == ["1", "2"]
    assert [request[1] for request in server.requests] == ["/api/v1/namespaces/a/pods"] * 2 + ["/api/v1/pods"]
    assert server.requests[0][2]["labelSelector"] == "gala.dev/run"
    assert server.requests[1][2]["continue"] == "more"


def test_an_overloaded_server_is_asked_again() -> None:
    server = ApiServer((429, "", {"Retry-After": "0"}), (200, {"kind": "Pod"}))
    seen: list[Any] = []
    assert asking(server, lambda cluster: cluster.get("Pod", "lab", "pong-0"), seen) == {"kind": "Pod"}
    assert [code for _, _, code in seen] == [429, 200]


def test_a_request_that_was_turned_away_does_not_keep_others_waiting_while_it_waits() -> None:
    server = ApiServer((429, "", {"Retry-After": "1"}), (200, {"kind": "Service"}), (200, {"kind": "Pod"}))

    async def scenario(near: Cluster) -> None:
        cluster = Cluster(Configuration(host=near._configuration.host), concurrency=1)
        try:
            turned_away = asyncio.create_task(cluster.get("Pod", "lab", "pong-0"))
            while not server.requests:
                await asyncio.sleep(0.01)
            await cluster.get("Service", "lab", "pong")
            await turned_away
        finally:
            await cluster.close()

    asking(server, scenario)
    assert [path.split("/")[5] for _, path, _, _ in server.requests] == ["pods", "services", "pods"]


def test_the_lease_does_not_wait_for_the_requests_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = {
        "kind": "Lease",
        "metadata": {"name": "gala-operator", "namespace": "default", "resourceVersion": "1"},
        "spec": {"holderIdentity": "gala-operator"},
    }
    server = ApiServer(status(404, "NotFound"), (201, lease), (200, lease))

    async def scenario(near: Cluster) -> int:
        async def configuration() -> Configuration:
            return Configuration(host=near._configuration.host)

        async def prepare(*_: Any) -> None:
            """Nothing: the scripted server has no resources."""

        async def lead(stop: Any, settings: OperatorSettings, cluster: Cluster, elector: LeaderElector, *_: Any) -> int:
            for _ in range(settings.api_concurrency):
                await cluster._slots.acquire()
            await elector.acquire()
            return 0

        monkeypatch.setattr(main, "load_configuration", configuration)
        monkeypatch.setattr(main, "_prepare", prepare)
        monkeypatch.setattr(main, "_lead", lead)
        settings = OperatorSettings(http_port=0, leader_election=True, lease_seconds=600.0, api_concurrency=2)
        return await asyncio.wait_for(main.serve(settings), 20)

    assert asking(server, scenario) == 0
    assert [method for method, *_ in server.requests] == ["GET", "POST", "PUT"], "taken, and then released"


def test_a_refusal_says_what_the_server_said() -> None:
    server = ApiServer(status(403, "Forbidden", "exceeded quota: pods"))
    with pytest.raises(ApiError, match="exceeded quota") as caught:
        asking(server, lambda cluster: cluster.create(pod_raw()))
    assert caught.value.is_refusal


@pytest.mark.parametrize("page", ["<html>bad gateway</html>", "[" * 100_000 + "bad gateway"])
def test_a_page_of_a_proxy_is_an_error_and_not_a_crash(page: str) -> None:
    server = ApiServer((502, page))
    with pytest.raises(ApiError, match=re.escape(page[:24])) as caught:
        asking(server, lambda cluster: cluster.get("Pod", "lab", "pong-0"))
    assert not caught.value.is_refusal


@pytest.mark.parametrize("page", ['{"items": [{"metadata"', "[]", ""])
def test_a_list_that_cannot_be_read_is_no_empty_list(page: str) -> None:
    async def scenario(cluster: Cluster) -> list[Any]:
        return [meta async for meta in cluster.list_metadata("Pod", None)]

    with pytest.raises(ApiError, match="no JSON object"):
        asking(ApiServer((200, page)), scenario)


def test_a_netrc_that_names_the_server_has_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = ApiServer((200, {"kind": "Pod"}))
    assert asking(server, lambda cluster: cluster.get("Pod", "lab", "pong-0")) == {"kind": "Pod"}
    assert server.authorization == ["Bearer secret"]


def test_the_server_is_asked_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(proxy: Cluster) -> Any:
        monkeypatch.setenv("http_proxy", proxy._configuration.host)
        far = Cluster(Configuration(host="http://api.invalid"), concurrency=1)
        try:
            return await far.get("Pod", "lab", "pong-0")
        finally:
            await far.close()

    assert asking(ApiServer((200, {"kind": "Pod"})), scenario) == {"kind": "Pod"}


def test_no_answer_is_an_api_error_with_code_zero() -> None:
    async def scenario() -> None:
        cluster = Cluster(Configuration(host="http://127.0.0.1:1"), concurrency=1)
        try:
            with pytest.raises(ApiError, match="no answer") as caught:
                await cluster.get("Pod", "lab", "pong-0")
            assert caught.value.status == 0
        finally:
            await cluster.close()

    asyncio.run(scenario())


def test_a_lease_that_somebody_else_has_changed_is_none() -> None:
    server = ApiServer(status(409, "Conflict"))
    lease = {"metadata": {"name": "gala-operator", "namespace": "gala", "resourceVersion": "1"}}
    assert asking(server, lambda cluster: cluster.replace_lease(lease)) is None
    assert server.requests[0][:2] == (
        "PUT",
        "/apis/coordination.k8s.io/v1/namespaces/gala/leases/gala-operator",
    )
