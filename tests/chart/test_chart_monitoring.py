"""Alerts and dashboards: every query parses, and asks only for metrics and labels that the programs really have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gala_operator.cache import Cache
from gala_operator.metrics import NUMBERS, Metrics
from gala_worker import exposition

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gala-operator"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(CHART.glob("dashboards/*.json"))}
ALL_ON: dict[str, Any] = {
    "monitoring": {
        "namespace": "monitoring",
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    }
}
RUNS: dict[str, dict[str, float]] = {"pong": dict.fromkeys(NUMBERS, 1.0), "never-reached": {}}
"""And what is known of their numbers."""
FOREIGN = {"up", "DCGM_FI_DEV_GPU_UTIL"}
"""Metrics of Prometheus itself and of NVIDIA's exporter."""
SCRAPED = {"job", "instance", "namespace", "pod", "container", "service", "endpoint"}
"""Labels that Prometheus adds to what it scrapes."""

pytestmark = pytest.mark.timeout(300)  # the first one may have to download helm

Render = Callable[..., list[dict[str, Any]]]


def of(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def operator_exposition() -> str:
    metrics, cache = Metrics(), Cache()
    metrics.watch(cache, depth=lambda: 0)
    metrics.reconciles.labels("success").inc()
    metrics.observe_request("get", "pods", 200, 0.1)
    metrics.watch_last_event.labels("pods").set(1.0)
    metrics.polls.labels("success").inc()
    metrics.resyncs.labels("success").inc()
    for name, status in RUNS.items():
        raw = {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {
                "name": name,
                "namespace": "team",
                "uid": name,
                "resourceVersion": "1",
                "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"environment": {"id": "CartPole-v1"}, "algorithm": "GALA-A2C"},
            "status": {"state": "Running", "learnerStatuses": [{"rank": 0, "state": "training"}], **status},
        }
        cache.put("GalaRun", raw)
    return metrics.exposition().decode()


def worker_exposition() -> str:
    values = exposition.LatestValues(run="pong", rank=0)
    edges = [{"peer": 1, "direction": "in", **{key: 1 for key, _, _ in exposition.EDGE_COUNTERS}}]
    gossip = {key: 1 for key, _, _ in (*exposition.GOSSIP_COUNTERS, *exposition.GOSSIP_GAUGES)} | {"edges": edges}
    train = {key: 1 for key, _, _ in (*exposition.TRAIN_COUNTERS, *exposition.TRAIN_GAUGES)}
    values.update({"kind": "train", **train, "gossip": gossip})
    values.update({"kind": "evaluation", "mode": "greedy", "meanReturn": 1.0})
    values.update({"kind": "event", "event": "checkpoint"})
    return values.exposition(num_dropped=0).decode()


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Every sample that the operator and the learners expose, with its labels."""
    found: dict[str, set[str]] = defaultdict(set)
    for text in (operator_exposition(), worker_exposition()):
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] |= set(sample.labels)
    return dict(found)


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def dashboard_queries() -> Iterator[Any]:
    for name, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                yield pytest.param(target["expr"], id=f"{name}-{panel['title']}-{target['refId']}")


def alert_queries() -> Iterator[Any]:
    for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text()).values():
        for alert in group:
            yield pytest.param(alert["expr"].replace("__RESYNCS__", "1200s"), id=alert["alert"])


def parsed(query: str) -> Any:
    """Grafana's variables filled in as Grafana would."""
    return promql_parser.parse(query.replace("$__rate_interval", "2m").replace("$__interval", "1m"))


def nodes(query: str) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(parsed(query), lambda node: found.append(node) or True)
    return found


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries()])
def test_a_query_asks_for_metrics_and_labels_that_exist(query: str, known: dict[str, set[str]]) -> None:
    labels: set[str] = set(SCRAPED | {"le"})
    selectors = [node for node in nodes(query) if isinstance(node, promql_parser.VectorSelector)]
    assert selectors
    for selector in selectors:
        if selector.name in FOREIGN:
            continue
        assert selector.name in known
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= known[selector.name] | SCRAPED
        labels |= known[selector.name]
    for node in nodes(query):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= labels


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries()])
def test_a_rate_is_taken_of_counters_only(query: str) -> None:
    for node in nodes(query):
        if isinstance(node, promql_parser.Call) and node.func.name in {"rate", "increase", "irate"}:
            (range_,) = node.args
            assert re.search(r"_(total|bucket|sum|count)$", range_.vector_selector.name)


def test_what_alerts_ask_about_is_counted_before_it_has_happened() -> None:
    """Of a counter that appears with its first event no increase is known, so that none would go unnoticed."""
    for result in ("success", "error"):
        for metric in ("resync", "reconcile"):
            sample = Metrics().registry.get_sample_value(f"galarun_operator_{metric}_total", {"result": result})
            assert sample == 0, (metric, result)


@pytest.mark.parametrize("name", ["GalaResyncStalled", "GalaCheckpointsStale"])
def test_an_absence_is_told_only_of_what_was_there_at_the_beginning_of_the_time_looked_at(name: str) -> None:
    (query,) = [parameter.values[0] for parameter in alert_queries() if parameter.id == name]
    looked_at = {range_.range for node in nodes(query) if isinstance(node, promql_parser.Call) for range_ in node.args}
    offsets = {node.offset for node in nodes(query) if isinstance(node, promql_parser.VectorSelector)} - {None}
    assert looked_at == offsets != set()


def test_a_run_that_makes_no_steps_is_told_of_though_no_learner_ever_answered_and_none_that_starts_over() -> None:
    (query,) = [parameter.values[0] for parameter in alert_queries() if parameter.id == "GalaRunNotProgressing"]
    metric = "galarun_run_steps"
    families = [each for each in text_string_to_metric_families(operator_exposition()) if each.name == metric]
    assert {sample.labels["name"] for family in families for sample in family.samples} == set(RUNS)
    calls = [node for node in nodes(query) if isinstance(node, promql_parser.Call)]
    assert [call.func.name for call in calls if call.args[0].vector_selector.name == metric] == ["changes"]


def test_the_metric_names_follow_prometheus(known: dict[str, set[str]]) -> None:
    own = {name for name in known if not name.startswith(("process_", "python_"))}
    assert all(name.startswith(("galarun_", "gala_")) for name in own)
    assert {"galarun_runs", "galarun_run_info", "galarun_operator_reconcile_duration_seconds_bucket"} <= own
    assert all(known[name] >= {"run", "rank"} for name in own if name.startswith("gala_"))


def test_the_dashboards_show_what_matters() -> None:
    titles = {name: {panel["title"] for panel in panels(board)} for name, board in DASHBOARDS.items()}
    assert titles["operator"] >= {"Runs by state", "Reconcile latency", "Queue depth", "API errors"}
    assert titles["run"] >= {"Return", "Throughput", "Staleness", "Disagreement", "GPU utilisation"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_works_with_any_data_source(name: str) -> None:
    board = DASHBOARDS[name]
    assert board["uid"] == f"gala-{name}"
    assert board["id"] is None, "the database's own number must not be in the file"
    assert board["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in panels(board)]
    assert len(ids) == len(set(ids))
    for panel in panels(board):
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"]


def test_variables_are_defined_before_they_are_used() -> None:
    for board in DASHBOARDS.values():
        defined = {"datasource", "__rate_interval", "__interval"}
        for variable in board["templating"]["list"][1:]:
            assert set(re.findall(r"\$(\w+)", variable["definition"])) <= defined
            defined.add(variable["name"])
        for panel in panels(board):
            for target in panel.get("targets", []):
                assert set(re.findall(r"\$(\w+)", target["expr"])) <= defined


def test_the_dashboards_arrive_unchanged(render: Render) -> None:
    maps = [m for m in of(render(ALL_ON), "ConfigMap") if m["metadata"]["labels"].get("grafana_dashboard") == "1"]
    found = {name.removesuffix(".json"): json.loads(text) for m in maps for name, text in m["data"].items()}
    assert found == DASHBOARDS


def test_the_monitors_find_the_operator_and_the_learners(render: Render) -> None:
    manifests = render(ALL_ON)
    (service_monitor,), (pod_monitor,) = of(manifests, "ServiceMonitor"), of(manifests, "PodMonitor")
    (service,) = of(manifests, "Service")
    assert service_monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service_monitor["metadata"]["labels"]["release"] == "prometheus"
    assert service_monitor["spec"]["endpoints"][0]["honorLabels"], "a run's namespace is not the operator's"
    assert pod_monitor["spec"]["namespaceSelector"] == {"any": True}
    assert pod_monitor["spec"]["selector"] == {"matchExpressions": [{"key": "gala.dev/rank", "operator": "Exists"}]}
    restricted = render(ALL_ON | {"watchNamespaces": ["team-a"]})
    assert of(restricted, "PodMonitor")[0]["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}


def test_nothing_of_the_prometheus_operator_is_there_unless_asked_for(render: Render) -> None:
    assert not [m for m in render() if m["apiVersion"].startswith("monitoring.coreos.com/")]


def test_every_alert_is_installed_documented_and_can_be_left_out(render: Render) -> None:
    (rule,) = of(render(ALL_ON), "PrometheusRule")
    alerts = {alert["alert"]: alert for group in rule["spec"]["groups"] for alert in group["rules"]}
    handbook = (ROOT / "docs" / "operator.md").read_text()
    for name, alert in alerts.items():
        assert f"`{name}`" in handbook
        assert "__" not in alert["expr"]
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "description"}
    assert 'job="gala-operator-metrics", namespace="gala-system"' in alerts["GalaOperatorDown"]["expr"]
    assert "[1200s]" in alerts["GalaResyncStalled"]["expr"]
    left_out = {"monitoring": {"prometheusRule": {"enabled": True, "disabled": ["GalaRunFailed"]}}}
    (rule,) = of(render(left_out), "PrometheusRule")
    rest = {alert["alert"] for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert rest == set(alerts) - {"GalaRunFailed"}
