"""/healthz, /readyz and /metrics, over real HTTP."""

import asyncio
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gala import http_server
from gala_operator.cache import Cache
from gala_operator.metrics import Metrics
from gala_operator.resync import Health
from gala_operator.server import HealthServer
from gala_operator.testing import run_raw


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def ask(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


def asked(health: Health, metrics: Metrics, path: str) -> tuple[int, str]:
    async def scenario() -> tuple[int, str]:
        async with HealthServer(0, health=health, metrics=metrics, host="127.0.0.1") as server:
            return await ask(server.port, path)

    return asyncio.run(scenario())


def test_healthz_fails_when_the_resync_loop_has_stalled_for_three_periods() -> None:
    clock = Clock()
    health = Health(300.0, clock)
    clock.now = 899.0
    assert asked(health, Metrics(), "/healthz")[0] == 200
    clock.now = 901.0
    assert asked(health, Metrics(), "/healthz") == (503, "no resync for 901 s\n")
    health.beat()
    assert asked(health, Metrics(), "/healthz")[0] == 200


def test_readyz_says_whether_everything_is_in_view() -> None:
    health = Health(300.0)
    assert asked(health, Metrics(), "/readyz")[0] == 503
    health.is_ready = True
    assert asked(health, Metrics(), "/readyz")[0] == 200


def samples(metrics: Metrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    status, text = asked(Health(300.0), metrics, "/metrics")
    assert status == 200
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_idle_strangers_do_not_keep_the_kubelet_from_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)

    async def scenario() -> None:
        async with HealthServer(0, health=Health(300.0), metrics=Metrics(), host="127.0.0.1") as server:
            strangers = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(6)]
            async with asyncio.timeout(20):
                for reader, _ in strangers[:2]:
                    assert await reader.read() == b""
            assert (await ask(server.port, "/healthz"))[0] == 200
            for _, writer in strangers:
                writer.close()

    asyncio.run(scenario())


def test_metrics_have_the_promised_names() -> None:
    metrics = Metrics()
    metrics.watch(Cache(), depth=lambda: 3)
    metrics.observe_request("create", "pods", 201, 0.01)
    metrics.watch_last_event.labels("pods").set(5)
    found = samples(metrics)
    assert found["galarun_operator_reconcile_total"][(("result", "success"),)] == 0
    assert "galarun_operator_reconcile_duration_seconds_bucket" in found
    assert "galarun_operator_queue_wait_seconds_count" in found
    assert found["galarun_operator_queue_depth"][()] == 3
    key = (("code", "201"), ("resource", "pods"), ("verb", "create"))
    assert found["galarun_operator_api_requests_total"][key] == 1
    assert found["galarun_operator_watch_last_event_timestamp_seconds"][(("resource", "pods"),)] == 5
    assert found["galarun_operator_is_leader"][()] == 0
    assert found["galarun_runs"][(("state", "Running"),)] == 0
    assert "process_resident_memory_bytes" in found


def test_the_gauges_of_a_run_follow_its_status_and_go_with_it() -> None:
    metrics, cache = Metrics(), Cache()
    metrics.watch(cache, depth=lambda: 0)
    status = {
        "state": "Degraded",
        "steps": 500,
        "meanReturn": 20.5,
        "disagreement": None,
        "learnerStatuses": [{"rank": 0, "state": "training"}, {"rank": 1, "state": "failed"}, {"state": "training"}],
    }
    cache.put("GalaRun", run_raw(status=status))
    found = samples(metrics)
    run = (("name", "pong"), ("namespace", "lab"))
    assert found["galarun_runs"][(("state", "Degraded"),)] == 1
    assert found["galarun_run_steps"][run] == 500
    assert found["galarun_run_mean_return"][run] == 20.5
    assert "galarun_run_disagreement" not in found
    assert found["galarun_run_learners"][(*run, ("state", "training"))] == 2
    (info,) = found["galarun_run_info"]
    assert dict(info)["environment"] == "CartPole-v1"
    cache.remove("GalaRun", run_raw())
    found = samples(metrics)
    assert "galarun_run_steps" not in found
    assert found["galarun_runs"][(("state", "Degraded"),)] == 0


@pytest.mark.parametrize(("state", "steps"), [("Running", 0), ("Degraded", 0), ("Starting", None), ("Suspended", None)])
def test_a_run_that_is_up_and_of_which_no_learner_ever_answered_makes_no_steps(state: str, steps: int | None) -> None:
    metrics, cache = Metrics(), Cache()
    metrics.watch(cache, depth=lambda: 0)
    cache.put("GalaRun", run_raw(status={"state": state}))
    found = samples(metrics).get("galarun_run_steps", {})
    assert found.get((("name", "pong"), ("namespace", "lab"))) == steps


def test_a_run_with_a_nonsensical_status_does_not_break_the_page() -> None:
    metrics, cache = Metrics(), Cache()
    metrics.watch(cache, depth=lambda: 0)
    cache.put("GalaRun", run_raw(status={"state": 7, "steps": "many", "learnerStatuses": "none"}, spec=None))
    assert samples(metrics)["galarun_runs"][(("state", "Pending"),)] == 1
