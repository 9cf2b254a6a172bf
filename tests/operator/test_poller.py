"""Asking the learners, over real HTTP."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gala_operator.cache import Cache
from gala_operator.metrics import Metrics
from gala_operator.poller import MAX_BODY_BYTES, SAMPLE, Poller, learner_progress, results_progress
from gala_operator.records import Key
from gala_operator.testing import RUN_UID, pod_raw, run_raw

KEY = ("lab", "pong")
FORMED = {"conditions": [{"type": "RingFormed", "status": "True"}]}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def status(rank: int, **changes: Any) -> dict[str, Any]:
    return {
        "run": "pong",
        "rank": rank,
        "state": "training",
        "epoch": 3,
        "steps": 100,
        "globalSteps": 200,
        "stepsPerSecond": 10.5,
        "meanReturn": 21.0,
        "stalenessUpdates": 1.4,
        "relativeDisagreement": 0.01,
        "inPeers": [1],
        **changes,
    }


class Learners:
    """Workers on one port and several loopback addresses: 127.0.1.<rank + 1>."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released: list[str] = []
        self.answer: Callable[[int], Any] = status
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> Any:
        app = web.Application()
        app.add_routes([web.get("/status", self._status), web.post("/release", self._release)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "0.0.0.0", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _status(self, request: web.Request) -> web.StreamResponse:
        host = request.url.host or ""
        self.asked.append(host)
        answer = self.answer(int(host.rsplit(".", 1)[1]) - 1)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(body=answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    async def _release(self, request: web.Request) -> web.Response:
        self.released.append(request.url.host or "")
        return web.Response(status=204)


def cache_of(num_learners: int, *, run_status: Mapping[str, Any] | None = None, **pod_status: Any) -> Cache:
    cache = Cache()
    cache.put("GalaRun", run_raw(status=run_status or {}))
    for rank in range(num_learners):
        cache.put("Pod", pod_raw(rank, **{"phase": "Running", "podIP": f"127.0.1.{rank + 1}", **pod_status}))
    return cache


def poller_of(cache: Cache, port: int, added: list[Key] | None = None, poll_seconds: float = 0.05) -> Poller:
    heard = added if added is not None else []
    return Poller(cache=cache, add=heard.append, poll_seconds=poll_seconds, metrics=Metrics(), port=port)


def test_an_answer_goes_into_the_cache_with_the_pod_that_gave_it() -> None:
    async def scenario() -> None:
        cache = cache_of(2)
        async with Learners().serving() as learners, poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 2
        progress = cache.observed(KEY).progress[1]
        assert (progress.rank, progress.pod_uid, progress.state) == (1, "pod-pong-1", "training")
        assert (progress.epoch, progress.steps, progress.global_steps) == (3, 100, 200)
        assert (progress.steps_per_second, progress.mean_return) == (10.5, 21.0)
        assert (progress.staleness, progress.disagreement, progress.in_peers) == (1, 0.01, (1,))

    run(scenario)


def test_a_few_learners_are_asked_at_a_time_and_everybody_in_turn() -> None:
    async def scenario() -> None:
        cache = cache_of(10, run_status=FORMED)
        async with Learners().serving() as learners, poller_of(cache, learners.port) as poller:
            for turn in range(5):
                before = len(learners.asked)
                await poller.poll(KEY, turn=turn)
                assert len(learners.asked) - before == SAMPLE
            assert len(set(learners.asked)) == 10

    run(scenario)


@pytest.mark.parametrize(
    ("run_status", "answer"),
    [
        pytest.param({}, {}, id="the ring forms"),
        pytest.param(FORMED, {"globalSteps": 985}, id="near the end"),
        pytest.param(FORMED, {"state": "finished"}, id="the first has finished"),
    ],
)
def test_all_are_asked_when_something_depends_on_it(run_status: Any, answer: Any) -> None:
    async def scenario() -> None:
        cache = cache_of(10, run_status=run_status)
        learners = Learners()
        learners.answer = lambda rank: status(rank, **{"stepsPerSecond": 0.1, **answer})
        async with learners.serving(), poller_of(cache, learners.port) as poller:
            await poller.poll(KEY)
            learners.asked.clear()
            await poller.poll(KEY)
            assert len(learners.asked) == 10

    run(scenario)


@pytest.mark.parametrize(
    "pod_status",
    [{"phase": "Pending"}, {"phase": "Failed"}, {"phase": "Succeeded"}, {"podIP": ""}],
    ids=["pending", "failed", "succeeded", "without an address"],
)
def test_pods_that_cannot_answer_are_not_asked(pod_status: dict[str, Any]) -> None:
    async def scenario() -> None:
        cache = cache_of(1, **pod_status)
        async with Learners().serving() as learners, poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 0
            assert learners.asked == []

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(status(7), id="another rank"),
        pytest.param(status(0, run="other"), id="another run, whose pod has the address now"),
        pytest.param(status(0, uid="another"), id="an earlier run of that name"),
        pytest.param(status(0, uid=None), id="no uid where there should be one"),
        pytest.param(b"<html>", id="no JSON"),
        pytest.param(b"[" * 100_000, id="too deep"),
        pytest.param([1, 2], id="no object"),
        pytest.param({}, id="nothing in it"),
        pytest.param(b" " * (MAX_BODY_BYTES + 1), id="too large"),
    ],
)
def test_a_foreign_answer_is_none(answer: Any) -> None:
    async def scenario() -> None:
        cache = cache_of(1)
        learners = Learners()
        learners.answer = lambda rank: answer
        async with learners.serving(), poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 0
        assert cache.observed(KEY).progress == {}

    run(scenario)


@pytest.mark.parametrize("code", [302, 404, 503])
def test_an_error_or_a_redirect_is_no_answer(code: int) -> None:
    async def scenario() -> None:
        cache = cache_of(1)
        learners = Learners()
        learners.answer = lambda rank: web.Response(status=code, headers={"Location": "/status"})
        async with learners.serving(), poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 0
            assert len(learners.asked) == 1

    run(scenario)


def test_a_worker_that_is_not_there_is_no_error() -> None:
    async def scenario() -> None:
        cache = cache_of(1)
        async with Learners().serving() as learners:
            port = learners.port
        async with poller_of(cache, port) as poller:
            assert await poller.poll(KEY) == 0
            await poller.release("127.0.1.1")

    run(scenario)


def test_a_learner_that_says_of_which_run_it_is_is_heard() -> None:
    async def scenario() -> None:
        cache = cache_of(1)
        learners = Learners()
        learners.answer = lambda rank: status(rank, uid=RUN_UID)
        async with learners.serving(), poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 1

    run(scenario)


def cache_of_results() -> Cache:
    cache = cache_of(0)
    raw = pod_raw(0, uid="results", phase="Running", podIP="127.0.1.9")
    raw["metadata"]["name"] = "pong-results"
    raw["metadata"]["labels"]["gala.dev/role"] = "results"
    del raw["metadata"]["labels"]["gala.dev/rank"]
    cache.put("Pod", raw)
    return cache


@pytest.mark.parametrize("whose", [{}, {"uid": "another"}, {"uid": None}], ids=["nobody's", "another run's", "odd"])
def test_another_run_s_result_is_none(whose: dict[str, Any]) -> None:
    async def scenario() -> None:
        cache = cache_of_results()
        learners = Learners()
        learners.answer = lambda rank: {"state": "ready", "card": {"meanReturn": 20}, "sha256": "ab", **whose}
        async with learners.serving(), poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 0
        assert cache.observed(KEY).results is None

    run(scenario)


def test_the_results_pod_is_asked_too() -> None:
    async def scenario() -> None:
        cache = cache_of_results()
        learners = Learners()
        ready = {"uid": RUN_UID, "state": "ready", "card": {"meanReturn": 20}, "sha256": "ab", "message": "m"}
        learners.answer = lambda rank: ready
        async with learners.serving(), poller_of(cache, learners.port) as poller:
            assert await poller.poll(KEY) == 1
        results = cache.observed(KEY).results
        assert results is not None
        assert (results.state, results.card, results.sha256) == ("ready", {"meanReturn": 20}, "ab")
        assert results.pod_uid == "results"

    run(scenario)


def test_release_is_a_post() -> None:
    async def scenario() -> None:
        async with Learners().serving() as learners, poller_of(Cache(), learners.port) as poller:
            await poller.release("127.0.1.3")
            assert learners.released == ["127.0.1.3"]

    run(scenario)


def test_a_watched_run_is_asked_again_and_again_and_queued_until_it_is_not_wanted_any_more() -> None:
    async def scenario() -> None:
        cache, added = cache_of(1), []
        async with Learners().serving() as learners, poller_of(cache, learners.port, added) as poller:
            work = asyncio.create_task(poller.work())
            poller.watch(KEY, True)
            poller.watch(KEY, True)
            while len(added) < 3:
                await asyncio.sleep(0.01)
                poller.watch(KEY, True)
            assert set(added) == {KEY}
            poller.watch(KEY, False)
            await asyncio.sleep(0)
            count = len(learners.asked)
            await asyncio.sleep(0.3)
            assert len(learners.asked) <= count + 1
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    run(scenario)


def test_nobody_is_asked_again_before_the_controller_has_looked_at_the_answers() -> None:
    async def scenario() -> None:
        cache, added = cache_of(2), []
        async with Learners().serving() as learners, poller_of(cache, learners.port, added) as poller:
            work = asyncio.create_task(poller.work())
            poller.watch(KEY, True)
            while not added:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert len(learners.asked) == 2
            poller.watch(KEY, True)
            while len(learners.asked) < 4:
                await asyncio.sleep(0.01)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    run(scenario)


def test_a_run_of_which_nobody_answers_is_not_queued() -> None:
    async def scenario() -> None:
        cache, added = cache_of(1), []
        learners = Learners()
        learners.answer = lambda rank: web.Response(status=503)
        async with learners.serving(), poller_of(cache, learners.port, added) as poller:
            work = asyncio.create_task(poller.work())
            poller.watch(KEY, True)
            while len(learners.asked) < 2:
                await asyncio.sleep(0.01)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        assert added == []

    run(scenario)


READY = [{"type": "Ready", "status": "True"}]


@pytest.mark.parametrize(("conditions", "seldom"), [(READY, True), ([], False)], ids=["though ready", "starting"])
def test_silent_learners_are_asked_less_often_unless_they_are_starting(conditions: Any, seldom: bool) -> None:
    async def scenario() -> None:
        cache = cache_of(1, conditions=conditions)
        learners = Learners()
        learners.answer = lambda rank: web.Response(status=503)
        async with learners.serving(), poller_of(cache, learners.port, poll_seconds=10.0) as poller:
            poller.watch(KEY, True)
            subject = poller._subjects[KEY]
            for _ in range(3):
                await poller._cycle(KEY, subject)
            wait = subject.due - poller._clock()
            assert wait > 30 if seldom else wait < 3

    run(scenario)


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from(sorted(status(0))), NUMBERS))
def test_whatever_a_worker_says_is_taken_as_plain_finite_numbers_or_not_at_all(changes: dict[str, Any]) -> None:
    progress = learner_progress({**status(0), **changes}, rank=0, pod_uid="u")
    if progress is not None:
        assert json.loads(
            json.dumps([progress.steps, progress.global_steps, progress.steps_per_second], allow_nan=False)
        )
        assert all(isinstance(peer, int) for peer in progress.in_peers)
    results_progress(changes, pod_uid="u")


@pytest.mark.parametrize(
    "steps", [10**400, 1e300, -1, 2**63, float("nan"), True, "7"], ids=lambda value: str(value)[:8]
)
def test_a_number_that_the_status_could_not_hold_is_taken_for_none(steps: Any) -> None:
    progress = learner_progress(
        {**status(0), "steps": steps, "globalSteps": steps, "epoch": steps, "stalenessUpdates": steps},
        rank=0,
        pod_uid="u",
    )
    assert progress is not None
    assert (progress.steps, progress.global_steps, progress.epoch, progress.staleness) == (0, 0, 0, None)
