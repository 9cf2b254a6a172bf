"""What Prometheus can ask the operator: its own work, and the state of every run it knows.

The gauges of runs are collected from the cache when asked for, so that those of a deleted run are gone with it.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gala.answers import items, mapping, text
from gala.status_schema import STATES
from gala_operator.cache import Cache

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
AT_WORK: Final = frozenset({"Running", "Degraded"})
NUMBERS: Final = {
    "steps": ("galarun_run_steps", "Agent decisions of all learners of the run together."),
    "stepsPerSecond": ("galarun_run_steps_per_second", "Agent decisions per second of the run."),
    "meanReturn": ("galarun_run_mean_return", "Mean return over the learners' last episodes."),
    "disagreement": (
        "galarun_run_disagreement",
        "Largest relative distance of a learner's parameters from those it mixed.",
    ),
}
"""Numbers of a run's status that are gauges of it."""


class Metrics:
    """One registry for one operator; everything is counted through the methods here."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.reconciles = Counter(
            "galarun_operator_reconcile", "Looks at a run, by result.", ["result"], registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            "galarun_operator_reconcile_duration_seconds",
            "Time of a look at a run, its API requests included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_wait_seconds = Histogram(
            "galarun_operator_queue_wait_seconds",
            "Time that a run waited for a worker.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.api_requests = Counter(
            "galarun_operator_api_requests",
            "Requests to the API server, watches aside. Code 0: no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.api_request_seconds = Histogram(
            "galarun_operator_api_request_duration_seconds",
            "Time of a request to the API server.",
            ["verb"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.watch_last_event = Gauge(
            "galarun_operator_watch_last_event_timestamp_seconds",
            "When the last watch event of a resource came.",
            ["resource"],
            registry=self.registry,
        )
        self.polls = Counter(
            "galarun_operator_polls", "Questions to workers for their status.", ["result"], registry=self.registry
        )
        self.resyncs = Counter("galarun_operator_resync", "Resyncs, by result.", ["result"], registry=self.registry)
        self.is_leader = Gauge("galarun_operator_is_leader", "1 if this replica does the work.", registry=self.registry)
        for result in ("success", "error"):
            self.reconciles.labels(result)
            self.resyncs.labels(result)

    def observe_request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """A request to the API server has been answered, or not: code 0."""
        self.api_requests.labels(verb, resource, str(code)).inc()
        self.api_request_seconds.labels(verb).observe(seconds)

    def watch(self, cache: Cache, *, depth: Callable[[], int]) -> None:
        """Adds the gauges of what is in the cache and in the queue."""
        self.registry.register(_Runs(cache, depth))

    def exposition(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)


class _Runs(Collector):
    """The runs of the cache, at the time of asking."""

    def __init__(self, cache: Cache, depth: Callable[[], int]) -> None:
        self._cache = cache
        self._depth = depth

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("galarun_operator_queue_depth", "Runs that wait for a worker.")
        depth.add_metric([], self._depth())
        yield depth
        by_state = GaugeMetricFamily("galarun_runs", "Runs by state.", labels=["state"])
        info = GaugeMetricFamily(
            "galarun_run_info",
            "What a run is; always 1.",
            labels=["namespace", "name", "uid", "environment", "algorithm", "state"],
        )
        learners = GaugeMetricFamily(
            "galarun_run_learners", "Learners of a run by state.", labels=["namespace", "name", "state"]
        )
        numbers = {
            name: GaugeMetricFamily(metric, documentation, labels=["namespace", "name"])
            for name, (metric, documentation) in NUMBERS.items()
        }
        states = Tally[str](dict.fromkeys(STATES, 0))
        for key, run in self._cache.runs():
            state = text(run.status.get("state"), "Pending")
            states[state] += 1
            spec = mapping(run.document.get("spec"))
            environment = text(mapping(spec.get("environment")).get("id"))
            info.add_metric([*key, run.uid, environment, text(spec.get("algorithm")), state], 1)
            tally = Tally(text(entry.get("state"), "unknown") for entry in items(run.status.get("learnerStatuses")))
            for learner_state, count in tally.items():
                learners.add_metric([*key, learner_state], count)
            # Of learners that never answer no steps are known: they make none, and an alert is to tell of them.
            unknown = {"steps": 0} if state in AT_WORK else {}
            _add_numbers(numbers, key, unknown | dict(run.status))
        for state, count in states.items():
            by_state.add_metric([state], count)
        yield from (by_state, info, learners, *numbers.values())


def _add_numbers(families: Mapping[str, GaugeMetricFamily], key: tuple[str, str], status: Mapping[str, Any]) -> None:
    for name, family in families.items():
        value = status.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            family.add_metric(list(key), float(value))
