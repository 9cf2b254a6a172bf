"""The only module that talks to the Kubernetes API, beside the watches of kopf.

Place in the flow: `controller`, `resync`, `leader` and `events` call it; tests put a fake in its place. Objects go in
and come out as plain dicts. Every failure is an `ApiError`; that something is already as asked for is none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode
from urllib.request import getproxies

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from gala import names
from gala.answers import json_object
from gala.errors import GalaError
from gala_operator.kinds import FIELD_MANAGER, OLD_DISRUPTION_BUDGET, POD, RESOURCES, RUN, UNHEALTHY_POLICY, Resource

Raw = dict[str, Any]

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
REQUEST_SECONDS: Final = 30.0
PAGE: Final = 500
"""Objects of one answer to a list."""
MAX_REJECTIONS: Final = 4
"""How often a request is made again that an overloaded server has turned away (429)."""
MAX_RETRY_AFTER_SECONDS: Final = 10.0


class ApiError(GalaError):
    """The API server refused, or did not answer."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """`status` is HTTP's, 0 without an answer; `reason` is Kubernetes's, such as AlreadyExists."""
        self.status = status
        self.reason = reason
        self.message = message
        super().__init__(f"{status} {reason}: {message}" if status else f"no answer from the API server: {message}")

    @property
    def is_refusal(self) -> bool:
        """Whether the same request will be refused again: forbidden, over quota, invalid."""
        return self.status in (400, 403, 422)


async def load_configuration() -> Configuration:
    """Where the API server is and who we are: the pod's service account, or else the kubeconfig.

    Raises:
        GalaError: there is neither.
    """
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException:
        try:
            await load_kube_config(client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise GalaError(f"neither in a cluster nor with a kubeconfig: {error}") from error
    return configuration


class Cluster:
    """The API server's side of everything that the operator does."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        concurrency: int,
        observe: Callable[[str, str, int, float], None] = lambda verb, resource, code, seconds: None,
    ) -> None:
        """At most `concurrency` requests are under way at a time; `observe` is told verb, resource, code and seconds of
        each."""
        configuration.connection_pool_maxsize = concurrency
        # Else aiohttp asks a thread for ~/.netrc, which has no say here, and another for proxies, at every request.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        self._configuration = configuration
        self._client = ApiClient(configuration=configuration)
        self._slots = asyncio.Semaphore(concurrency)
        self._observe = observe
        self.disruption_budgets: Resource = RESOURCES["PodDisruptionBudget"]
        """Where this server has them; `discover` finds out."""

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def discover(self) -> None:
        """Learns what this server has.

        Raises:
            ApiError: the server does not answer, or does not know GalaRuns.
        """
        group = await self._request("get", "apis", "GET", "/apis/policy")
        versions = {version.get("version") for version in group.get("versions", [])}
        if "v1" not in versions and OLD_DISRUPTION_BUDGET.version in versions:
            self.disruption_budgets = OLD_DISRUPTION_BUDGET
        served = await self._request("get", "apis", "GET", RESOURCES[RUN].base)
        if names.PLURAL not in {resource.get("name") for resource in served.get("resources", [])}:
            raise ApiError(404, "NotFound", f"{names.PLURAL}.{names.GROUP} is not installed")

    def resource(self, kind: str) -> Resource:
        """Where a kind is served here."""
        return self.disruption_budgets if kind == "PodDisruptionBudget" else RESOURCES[kind]

    async def get(self, kind: str, namespace: str, name: str) -> Raw | None:
        """One object; None if there is none."""
        resource = self.resource(kind)
        return await self._unless_gone("get", resource.plural, "GET", resource.path(namespace, name))

    async def apply(self, manifest: Mapping[str, Any]) -> Raw:
        """Server-side apply: afterwards the object is as `manifest` says, in what that says. Returns the object."""
        resource = self.resource(manifest["kind"])
        meta = manifest["metadata"]
        return await self._request(
            "patch",
            resource.plural,
            "PATCH",
            resource.path(meta["namespace"], meta["name"]),
            query=[("fieldManager", FIELD_MANAGER), ("force", "true")],
            body=self._served(manifest),
            content_type=APPLY_PATCH,
        )

    async def create(self, manifest: Mapping[str, Any]) -> Raw | None:
        """Makes an object. Returns it; None if there already is one of that name."""
        resource = self.resource(manifest["kind"])
        try:
            return await self._request(
                "create",
                resource.plural,
                "POST",
                resource.path(manifest["metadata"]["namespace"]),
                query=[("fieldManager", FIELD_MANAGER)],
                body=self._served(manifest),
            )
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def delete_pod(self, namespace: str, name: str, uid: str) -> Raw | None:
        """Of this very uid. Returns what is left of it; None if it is gone, or was already."""
        return await self._delete(POD, namespace, name, uid)

    async def delete_run(self, namespace: str, name: str, uid: str) -> None:
        """The GalaRun of this very uid, and with it all that it owns."""
        await self._delete(RUN, namespace, name, uid, propagation="Background")

    async def annotate_pod(self, namespace: str, name: str, uid: str, annotations: Mapping[str, str]) -> Raw | None:
        """Of this very uid. Returns the pod; None if it is gone."""
        resource = RESOURCES[POD]
        try:
            return await self._unless_gone(
                "patch",
                resource.plural,
                "PATCH",
                resource.path(namespace, name),
                query=[("fieldManager", FIELD_MANAGER)],
                body={"metadata": {"uid": uid, "annotations": dict(annotations)}},
                content_type=MERGE_PATCH,
            )
        except ApiError as error:
            if error.status == 422 and "metadata.uid" in error.message:  # said of a pod's successor, which has its own
                return None
            raise

    async def patch_status(self, namespace: str, name: str, version: str, patch: Mapping[str, Any]) -> Raw | None:
        """A merge patch of the status of this very version of a GalaRun. Returns the new one.

        None if it has changed or is gone. Bound to the resourceVersion and not to the uid, for an API server gives a
        custom resource's status the metadata that are there, all but the version, before it compares: a status for a
        run that was deleted would become its successor's.
        """
        resource = RESOURCES[RUN]
        return await self._unless_gone(
            "patch",
            f"{resource.plural}/status",
            "PATCH",
            resource.path(namespace, name, "status"),
            query=[("fieldManager", FIELD_MANAGER)],
            body={"metadata": {"resourceVersion": version}, "status": dict(patch)},
            content_type=MERGE_PATCH,
        )

    async def patch_event(self, namespace: str, name: str, patch: Mapping[str, Any]) -> Raw | None:
        """A merge patch of an Event; None if the server has forgotten it."""
        resource = RESOURCES["Event"]
        return await self._unless_gone(
            "patch",
            resource.plural,
            "PATCH",
            resource.path(namespace, name),
            body=patch,
            content_type=MERGE_PATCH,
        )

    async def replace_lease(self, manifest: Mapping[str, Any]) -> Raw | None:
        """Puts a Lease in the place of the version that it was made from; None if somebody else was quicker."""
        resource = RESOURCES["Lease"]
        meta = manifest["metadata"]
        return await self._unless_gone(
            "update", resource.plural, "PUT", resource.path(meta["namespace"], meta["name"]), body=manifest
        )

    async def list_metadata(self, kind: str, namespace: str | None) -> AsyncIterator[Raw]:
        """The metadata of all objects of a kind that carry a run's label, or of all GalaRuns. No namespace = all."""
        resource = self.resource(kind)
        query = [("limit", str(PAGE))]
        if kind != RUN:
            query.append(("labelSelector", names.LABEL_RUN))
        following: str | None = ""
        while following is not None:
            page = await self._request(
                "list",
                resource.plural,
                "GET",
                resource.path(namespace),
                query=[*query, ("continue", following)] if following else query,
                accept=METADATA_ONLY,
            )
            for item in page.get("items") or []:
                yield item["metadata"]
            following = page.get("metadata", {}).get("continue") or None

    def _served(self, manifest: Mapping[str, Any]) -> Raw:
        """The manifest in the version that this server has."""
        resource = self.resource(manifest["kind"])
        body = {**manifest, "apiVersion": resource.base.removeprefix("/apis/").removeprefix("/api/")}
        if resource is OLD_DISRUPTION_BUDGET:  # such servers refuse a manifest with a field that they do not know
            body["spec"] = {key: value for key, value in manifest["spec"].items() if key != UNHEALTHY_POLICY}
        return body

    async def _delete(
        self, kind: str, namespace: str, name: str, uid: str, *, propagation: str | None = None
    ) -> Raw | None:
        resource = RESOURCES[kind]
        body: Raw = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if propagation is not None:
            body["propagationPolicy"] = propagation
        left = await self._unless_gone("delete", resource.plural, "DELETE", resource.path(namespace, name), body=body)
        return left if left is not None and left.get("kind") == kind else None

    async def _unless_gone(self, verb: str, resource: str, method: str, path: str, **arguments: Any) -> Raw | None:
        """None if there is no such object, or another one of that name (the uid does not fit)."""
        try:
            return await self._request(verb, resource, method, path, **arguments)
        except ApiError as error:
            if error.status in (404, 409) and error.reason in ("NotFound", "Conflict"):
                return None
            raise

    async def _request(
        self,
        verb: str,
        resource: str,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Raw:
        url = self._configuration.host + quote(path) + (f"?{urlencode(query)}" if query else "")
        for rejections in range(MAX_REJECTIONS + 1):
            async with self._slots:
                code, started = 0, time.monotonic()
                try:
                    headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": FIELD_MANAGER}
                    await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
                    async with asyncio.timeout(REQUEST_SECONDS):
                        response = await self._client.call_api(
                            method, url, headers, body, _request_timeout=REQUEST_SECONDS
                        )
                        code = response.status
                        data = await response.read()
                except (aiohttp.ClientError, TimeoutError, OSError, ApiException) as error:
                    raise ApiError(0, type(error).__name__, str(error) or type(error).__name__) from error
                finally:
                    self._observe(verb, resource, code, time.monotonic() - started)
            if code != 429 or rejections == MAX_REJECTIONS:
                break
            # Without its slot: what the server has time for need not wait as well.
            await asyncio.sleep(_retry_after(response.getheader("Retry-After")))
        document, beginning = json_object(data), data[:200].decode(errors="replace")
        if not 200 <= code < 300:
            said = {"message": beginning} if document is None else document
            raise ApiError(code, str(said.get("reason", "")), str(said.get("message", ""))[:2000])
        if document is None:  # taken for an empty list it would mean that everything is gone
            raise ApiError(0, "NoJSON", f"what came is no JSON object: {beginning}")
        return document


def _retry_after(header: str | None) -> float:
    try:
        return min(max(float(header or 1.0), 0.1), MAX_RETRY_AFTER_SECONDS)
    except ValueError:
        return 1.0
