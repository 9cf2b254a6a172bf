"""The latest measurements of a learner in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

# (key of the record, metric, help); counters only grow within one life of the process, as Prometheus expects.
TRAIN_COUNTERS: Final = (
    ("updates", "gala_updates", "Updates of the parameters by this learner."),
    ("skippedUpdates", "gala_skipped_updates", "Updates that changed nothing: their gradient was not finite."),
    ("steps", "gala_steps", "Agent decisions of this learner."),
    ("episodes", "gala_episodes", "Episodes that ended in this learner's simulators."),
)
TRAIN_GAUGES: Final = (
    ("globalSteps", "gala_global_steps", "Agent decisions of all learners, as far as this one knows."),
    ("stepsPerSecond", "gala_steps_per_second", "Agent decisions a second of this learner."),
    ("meanReturn", "gala_return_mean", "Mean raw return of the last 100 episodes."),
    ("meanEpisodeSteps", "gala_episode_steps_mean", "Mean length of the last 100 episodes, in agent decisions."),
    ("policyLoss", "gala_policy_loss", "Policy gradient loss of the last update."),
    ("valueLoss", "gala_value_loss", "Value loss of the last update."),
    ("entropy", "gala_entropy", "Mean entropy of the policy, in nats."),
    ("gradientNorm", "gala_gradient_norm", "Norm of the gradient before clipping."),
    ("learningRate", "gala_learning_rate", "Learning rate of the last update."),
    ("updateNorm", "gala_update_norm", "Norm of the last local update of the parameters."),
    ("parameterNorm", "gala_parameter_norm", "Norm of the parameters."),
    ("epoch", "gala_plan_epoch", "Epoch of the plan that this learner follows."),
    ("wallSeconds", "gala_wall_seconds", "Seconds in training since the run's first start."),
)
GOSSIP_COUNTERS: Final = (
    ("mixes", "gala_gossip_mixes", "Times that this learner mixed in its in-peers' parameters."),
    ("skips", "gala_gossip_skips", "Times that it went on because an in-peer had sent nothing new."),
    ("seconds", "gala_gossip_seconds", "Seconds that the learner thread spent in gossip."),
)
GOSSIP_GAUGES: Final = (
    (
        "stalenessUpdates",
        "gala_gossip_staleness_updates",
        "Learner updates between the arrival of what was mixed last and its mixing; A3C, IMPALA: mean age in updates.",
    ),
    (
        "stalenessMaxUpdates",
        "gala_gossip_staleness_max_updates",
        "A3C, IMPALA: the largest age of the last contributions, in updates.",
    ),
    (
        "stalenessSeconds",
        "gala_gossip_staleness_seconds",
        "Seconds from the offer of what was mixed last to its mixing; A3C, IMPALA: from its arrival.",
    ),
    ("disagreement", "gala_gossip_disagreement", "Distance to the in-peers' parameters when last mixed."),
    ("relativeDisagreement", "gala_gossip_relative_disagreement", "The same, as a share of the parameters' norm."),
    ("weight", "gala_gossip_weight", "Push-sum weight that this learner owns; 1 where the run averages."),
)
EDGE_COUNTERS: Final = (
    ("messages", "gala_gossip_edge_messages", "Messages over this edge."),
    ("bytes", "gala_gossip_edge_bytes", "Payload bytes over this edge."),
    ("replaced", "gala_gossip_edge_replaced", "Messages that a newer one replaced before they were used."),
    ("refused", "gala_gossip_edge_refused", "Messages or streams refused on this edge."),
)


class LatestValues:
    """Remembers the newest record of each kind; written by any thread, read by the HTTP thread.

    Records are replaced as a whole, never changed, so that a reader sees one or the other.
    """

    def __init__(self, *, run: str, rank: int) -> None:
        self._labels = {"run": run, "rank": str(rank)}
        self._train: Mapping[str, Any] = {}
        self._evaluations: dict[str, Mapping[str, Any]] = {}
        self._events: Mapping[str, int] = {}
        self._num_dropped = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def update(self, record: Mapping[str, Any]) -> None:
        """Takes note of a metrics record."""
        if record["kind"] == "train":
            self._train = record
        elif record["kind"] == "evaluation":
            self._evaluations = self._evaluations | {str(record["mode"]): record}
        else:
            self._count(str(record["event"]), 1)

    def expect(self, event: str) -> None:
        """An event is counted from 0 on: of a counter that is not there before the first one no rate is known."""
        self._count(event, 0)

    def _count(self, event: str, times: int) -> None:
        self._events = {**self._events, event: self._events.get(event, 0) + times}

    def exposition(self, *, num_dropped: int) -> bytes:
        """Everything, as text."""
        self._num_dropped = num_dropped
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for every exposition."""
        train, evaluations, events = self._train, self._evaluations, self._events
        gossip = train.get("gossip") or {}
        for source, counters, gauges in (
            (train, TRAIN_COUNTERS, TRAIN_GAUGES),
            (gossip, GOSSIP_COUNTERS, GOSSIP_GAUGES),
        ):
            for key, name, text in counters:
                yield from self._samples(CounterMetricFamily, name, text, [({}, source.get(key))])
            for key, name, text in gauges:
                yield from self._samples(GaugeMetricFamily, name, text, [({}, source.get(key))])
        edges = gossip.get("edges") or []
        for key, name, text in EDGE_COUNTERS:
            values = [({"peer": str(e["peer"]), "direction": str(e["direction"])}, e.get(key)) for e in edges]
            yield from self._samples(CounterMetricFamily, name, text, values)
        returns = [({"mode": mode}, record["meanReturn"]) for mode, record in evaluations.items()]
        text = "Mean raw return of the last evaluation."
        yield from self._samples(GaugeMetricFamily, "gala_evaluation_return_mean", text, returns)
        text = "What happened, by kind."
        yield from self._samples(
            CounterMetricFamily, "gala_events", text, [({"event": e}, n) for e, n in events.items()]
        )
        text = "Metrics records lost because the disk did not keep up."
        yield from self._samples(CounterMetricFamily, "gala_metrics_dropped", text, [({}, self._num_dropped)])

    def _samples(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        text: str,
        values: list[tuple[dict[str, str], Any]],
    ) -> Iterator[Metric]:
        known = [(labels, float(value)) for labels, value in values if value is not None]
        if known:
            metric = family(name, text, labels=[*self._labels, *known[0][0]])
            for labels, value in known:
                metric.add_metric([*self._labels.values(), *labels.values()], value)
            yield metric
