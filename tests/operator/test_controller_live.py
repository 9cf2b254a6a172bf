"""The controller with the real decisions and an echo of its own writes: what a run costs in requests."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from controller_world import KEY, NOW, FakeWorkers
from gala_operator.cache import Cache
from gala_operator.controller import Controller
from gala_operator.decide import decide
from gala_operator.events import EventPoster
from gala_operator.metrics import Metrics
from gala_operator.poller import learner_progress
from gala_operator.records import Key
from gala_operator.settings import OperatorSettings
from gala_operator.testing import FakeCluster, run_raw


class Live:
    """The true decide between the cache and a cluster in memory whose pods are started by hand."""

    def __init__(self) -> None:
        self.now = NOW
        self.cluster = FakeCluster()
        self.cache = Cache()
        self.events = EventPoster(self.cluster, identity="replica-0")
        self.controller = Controller(
            cache=self.cache,
            cluster=self.cluster,
            workers=FakeWorkers(),
            events=self.events,
            decide=decide,
            settings=OperatorSettings(),
            metrics=Metrics(),
            clock=lambda: self.now,
        )

    def deliver(self) -> list[Key]:
        """The watches bring everything as it is now; the runs that are then to be looked at."""
        watched = [raw for (kind, _, _), raw in self.cluster.objects.items() if kind not in ("Event", "Lease")]
        return [key for raw in watched if (key := self.cache.put(raw["kind"], raw)) is not None]

    def look(self) -> list[tuple[str, str, str]]:
        """One pass; the requests that it waited for."""
        before = len(self.cluster.calls)

        async def look() -> None:
            tell = await self.controller.reconcile(KEY)
            await tell()

        asyncio.run(look())
        return self.cluster.calls[before:]

    def runs(self, rank: int) -> None:
        """The kubelet has started the pod, and its learner answers."""
        raw = self.cluster.objects["Pod", "lab", f"pong-{rank}"]
        ready = [{"type": "Ready", "status": "True"}]
        raw = self.cluster.put({**raw, "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": ready}})
        progress = {"rank": rank, "state": "training", "epoch": 0, "steps": 1, "globalSteps": 2, "inPeers": [1 - rank]}
        answer = learner_progress(progress, rank=rank, pod_uid=raw["metadata"]["uid"])
        assert answer is not None
        self.cache.put_progress(KEY, answer)

    def start(self) -> None:
        self.cluster.put(run_raw())
        self.deliver()
        self.look()
        for rank in range(2):
            self.runs(rank)
        self.deliver()
        self.look()
        asyncio.run(self.events.flush(1.0))
        self.now += timedelta(seconds=60)
        self.deliver()
        assert self.look() == []

    @property
    def status(self) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.cluster.objects["GalaRun", "lab", "pong"]["status"]
        return status


def test_a_new_run_takes_one_request_for_each_child_and_pod_and_one_for_its_status() -> None:
    live = Live()
    live.cluster.put(run_raw())
    live.deliver()
    assert live.look() == [
        ("create", "Service", "pong"),
        ("create", "ConfigMap", "pong-plan"),
        ("create", "NetworkPolicy", "pong"),
        ("create", "PodDisruptionBudget", "pong"),
        ("create", "Pod", "pong-0"),
        ("create", "Pod", "pong-1"),
        ("patch", "GalaRun/status", "pong"),
    ]


def test_a_lost_pod_is_replaced_before_anything_is_told_of_it() -> None:
    live = Live()
    live.start()
    live.cache.remove("Pod", live.cluster.objects.pop(("Pod", "lab", "pong-1")))
    before = len(live.cluster.calls)

    async def look() -> None:
        tell = await live.controller.reconcile(KEY)
        assert live.cluster.calls[before:] == [("create", "Pod", "pong-1")]
        await tell()

    asyncio.run(look())
    assert live.cluster.calls[before + 1 :] == [("patch", "GalaRun/status", "pong")]
    asyncio.run(live.events.flush(1.0))
    told = [raw["reason"] for (kind, _, _), raw in live.cluster.objects.items() if kind == "Event"]
    assert told.count("LearnerReplaced") == 1


def test_a_deleted_pod_is_replaced_with_one_request_and_one_for_the_status_and_no_event_is_waited_for() -> None:
    live = Live()
    live.start()
    gone = live.cluster.objects.pop(("Pod", "lab", "pong-1"))
    assert live.cache.remove("Pod", gone) == KEY
    assert live.look() == [("create", "Pod", "pong-1"), ("patch", "GalaRun/status", "pong")]
    assert (live.status["state"], live.status["learnerStatuses"][1]["state"]) == ("Degraded", "starting")
    live.deliver()
    assert live.look() == [], "that the new pod is there is no news"
    live.runs(1)
    live.deliver()
    assert live.look() == [("patch", "GalaRun/status", "pong")]
    assert live.status["state"] == "Running"
    asyncio.run(live.events.flush(1.0))
    told = {raw["reason"] for raw in live.cluster.objects.values() if raw["kind"] == "Event"}
    assert told == {"Accepted", "RingFormed", "LearnerReplaced", "RingDegraded"}


def test_the_echo_of_a_status_that_was_written_is_no_reason_to_look_again() -> None:
    live = Live()
    live.cluster.put(run_raw())
    assert live.deliver() == [KEY]
    live.look()
    run = live.cluster.objects["GalaRun", "lab", "pong"]
    assert live.cache.put("GalaRun", run) is None
    assert live.cache.put("GalaRun", live.cluster.put(run)) == KEY, "somebody else has written it"
