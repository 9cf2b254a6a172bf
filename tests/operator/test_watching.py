"""kopf's part: what is watched and how, what becomes of an event, and the command's first moments."""

import asyncio
import io
import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import kopf
import pytest
from kubernetes.aio.client.configuration import Configuration

from gala_operator import handlers, logs
from gala_operator.cache import Cache
from gala_operator.kinds import OLD_DISRUPTION_BUDGET, RESOURCES, WATCHED_KINDS, Resource
from gala_operator.metrics import Metrics
from gala_operator.records import Key
from gala_operator.testing import pod_raw, run_raw

KEY = ("lab", "pong")


def old_server(kind: str) -> Resource:
    return OLD_DISRUPTION_BUDGET if kind == "PodDisruptionBudget" else RESOURCES[kind]


def registered(
    cache: Cache, added: list[Key], urgent: list[Key], relisted: Callable[[], None] = lambda: None
) -> tuple[kopf.OperatorRegistry, Metrics]:
    async def configuration() -> Configuration:
        return Configuration(host="https://10.0.0.1")

    metrics = Metrics()
    registry = handlers.register(
        cache=cache,
        add=added.append,
        add_urgent=urgent.append,
        relisted=relisted,
        metrics=metrics,
        resource=old_server,
        configuration=configuration,
    )
    return registry, metrics


def test_every_kind_is_watched_where_this_server_has_it_and_nothing_else_is_done() -> None:
    registry, _ = registered(Cache(), [], [])
    watched = {
        (handler.selector.group, handler.selector.version, handler.selector.any_name)
        for handler in registry._watching.get_all_handlers()
        if handler.selector is not None
    }
    expected = {old_server(kind) for kind in WATCHED_KINDS}
    assert watched == {(resource.group, resource.version, resource.plural) for resource in expected}
    assert not list(registry._changing.get_all_handlers()), "they would put annotations and finalizers on objects"
    assert not list(registry._spawning.get_all_handlers())


def test_events_fill_the_cache_and_queue_the_run_at_once_if_it_has_lost_a_pod() -> None:
    cache, added, urgent = Cache(), [], []
    registry, metrics = registered(cache, added, urgent)
    by_kind = {handler.param: handler.fn for handler in registry._watching.get_all_handlers()}

    def deliver(kind: str, change: str | None, raw: dict[str, Any]) -> None:
        asyncio.run(by_kind[kind](event={"type": change, "object": raw}, param=kind, name="unused"))  # type: ignore

    deliver("GalaRun", None, run_raw())
    deliver("Pod", "ADDED", pod_raw(0))
    assert added == [KEY, KEY]
    assert len(cache.pods(KEY)) == 1
    deliver("Pod", "DELETED", pod_raw(0, version=2))
    assert cache.pods(KEY) == ()
    assert urgent == [KEY]
    deliver("GalaRun", "DELETED", run_raw())
    assert added == [KEY, KEY, KEY]
    assert urgent == [KEY], "a run that is gone has lost nothing that is to be made again"
    timestamp = metrics.registry.get_sample_value(
        "galarun_operator_watch_last_event_timestamp_seconds", {"resource": "pods"}
    )
    assert timestamp is not None
    assert timestamp > 0


def test_only_what_comes_of_a_list_says_that_there_was_one() -> None:
    lists: list[None] = []
    registry, _ = registered(Cache(), [], [], lambda: lists.append(None))
    [on_pod] = [handler.fn for handler in registry._watching.get_all_handlers() if handler.param == "Pod"]
    for change in ("ADDED", "MODIFIED", "DELETED", None):
        assert not lists
        asyncio.run(on_pod(event={"type": change, "object": pod_raw(0)}, param="Pod", name="unused"))  # type: ignore
    assert len(lists) == 1


def test_everything_but_runs_is_selected_by_label_on_the_server() -> None:
    settings = handlers.watch_settings(old_server)
    selected = {selector.any_name: labels for selector, labels in settings.watching.label_selectors.items()}
    assert selected == {old_server(kind).plural: "gala.dev/run" for kind in WATCHED_KINDS if kind != "GalaRun"}
    assert not settings.posting.enabled
    assert settings.scanning.disabled


def test_kopf_keeps_no_copy_of_an_object_and_compares_nothing() -> None:
    storage = handlers.watch_settings(old_server).persistence.diffbase_storage
    body = kopf.Body(pod_raw(0))
    assert storage.build(body=body) == {}
    assert storage.fetch(body=body) is None


def test_a_watch_is_retried_for_ever_and_within_seconds() -> None:
    back_offs = list(itertools.islice(handlers.EndlessBackOffs(), 100))
    assert len(back_offs) == 100
    assert max(back_offs) <= 5.0
    assert sum(back_offs[:3]) < 5.0


@pytest.fixture
def root_logger() -> Iterator[None]:
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = before[0]
    logging.root.setLevel(before[1])


@pytest.mark.usefixtures("root_logger")
def test_a_log_line_is_json_and_names_its_run() -> None:
    stream = io.StringIO()
    logs.set_up("json", stream)
    log = logging.getLogger("gala_operator.test")
    with logs.run_context("lab", "pong"):
        log.info("creating pod %s", "pong-0")
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["namespace"], first["run"], first["message"]) == ("lab", "pong", "creating pod pong-0")
    assert first["level"] == "info"
    assert "run" not in second
    assert "ValueError: odd" in second["exception"]


@pytest.mark.usefixtures("root_logger")
def test_text_logs_name_the_run_too() -> None:
    stream = io.StringIO()
    logs.set_up("text", stream)
    with logs.run_context("lab", "pong"):
        logging.getLogger("gala_operator.test").info("hello")
    assert stream.getvalue().endswith("hello [lab/pong]\n")


def test_settings_that_cannot_be_used_end_the_command_with_code_2_and_a_sentence() -> None:
    command = [sys.executable, "-P", "-m", "gala_operator"]
    done = subprocess.run(command, env={"GALA_OPERATOR_WORKERS": "none"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "GALA_OPERATOR_WORKERS: must be an integer from 1 to 256, got 'none'",
    ]
