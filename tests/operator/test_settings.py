"""The operator's settings, as the chart hands them over."""

from dataclasses import fields

import pytest

from gala.errors import UsageError
from gala_operator.settings import READERS, OperatorSettings

SERVICE_LINKS = {
    "GALA_OPERATOR_SERVICE_HOST": "10.0.0.1",
    "GALA_OPERATOR_SERVICE_PORT": "8080",
    "GALA_OPERATOR_SERVICE_PORT_HTTP": "8080",
    "GALA_OPERATOR_PORT": "tcp://10.0.0.1:8080",
    "GALA_OPERATOR_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "GALA_OPERATOR_PORT_8080_TCP_ADDR": "10.0.0.1",
    "GALA_OPERATOR_METRICS_PORT_8080_TCP_PROTO": "tcp",
    "GALA_OPERATOR_METRICS_SERVICE_HOST": "10.0.0.1",
}


def test_without_variables_the_defaults_hold() -> None:
    assert OperatorSettings.from_environment({"PATH": "/bin", "GALA_RANK": "0"}) == OperatorSettings()


def test_promised_defaults() -> None:
    settings = OperatorSettings()
    assert settings.workers == 16
    assert settings.resync_seconds == 300
    assert settings.status_seconds == 10
    assert not settings.leader_election
    assert settings.namespaces == ()


def test_every_setting_is_read() -> None:
    environment = {
        "GALA_OPERATOR_NAMESPACES": " a, b-2 ,a",
        "GALA_OPERATOR_NAMESPACE": "gala-system",
        "GALA_OPERATOR_IDENTITY": "gala-operator-abc",
        "GALA_OPERATOR_WORKER_IMAGE": "registry/worker@sha256:00",
        "GALA_OPERATOR_WORKERS": "3",
        "GALA_OPERATOR_RESYNC_SECONDS": "60",
        "GALA_OPERATOR_POLL_SECONDS": "0.5",
        "GALA_OPERATOR_STATUS_SECONDS": "1.5",
        "GALA_OPERATOR_RESTART_SECONDS": "1",
        "GALA_OPERATOR_RESTART_SECONDS_MAX": "2",
        "GALA_OPERATOR_HTTP_PORT": "9090",
        "GALA_OPERATOR_LEADER_ELECTION": "True",
        "GALA_OPERATOR_LEASE_SECONDS": "20",
        "GALA_OPERATOR_MONITORING_NAMESPACE": "monitoring",
        "GALA_OPERATOR_API_CONCURRENCY": "8",
        "GALA_OPERATOR_LOG_FORMAT": "text",
    }
    assert len(environment) == len(fields(OperatorSettings))
    assert OperatorSettings.from_environment(environment) == OperatorSettings(
        namespaces=("a", "b-2"),
        namespace="gala-system",
        identity="gala-operator-abc",
        worker_image="registry/worker@sha256:00",
        workers=3,
        resync_seconds=60.0,
        poll_seconds=0.5,
        status_seconds=1.5,
        restart_seconds=1.0,
        restart_seconds_max=2.0,
        http_port=9090,
        leader_election=True,
        lease_seconds=20.0,
        monitoring_namespace="monitoring",
        api_concurrency=8,
        log_format="text",
    )


def test_every_field_has_a_reader() -> None:
    assert set(READERS) == {field.name for field in fields(OperatorSettings)}


def test_an_empty_variable_counts_as_not_set() -> None:
    environment = {"GALA_OPERATOR_WORKERS": "", "GALA_OPERATOR_MONITORING_NAMESPACE": " "}
    assert OperatorSettings.from_environment(environment) == OperatorSettings()


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("WORKERS", "0", "must be an integer from 1 to 256"),
        ("WORKERS", "many", "must be an integer from 1 to 256"),
        ("WORKERS", "1e2", "must be an integer from 1 to 256"),
        ("RESYNC_SECONDS", "0", "must be a number of seconds from 1"),
        ("RESYNC_SECONDS", "nan", "must be a number of seconds"),
        ("RESYNC_SECONDS", "inf", "must be a number of seconds"),
        ("RESYNC_SECONDS", "5m", "must be a number of seconds"),
        ("LEADER_ELECTION", "yes", "must be true or false"),
        ("NAMESPACES", "a,B", "must be the name of a namespace"),
        ("LOG_FORMAT", "yaml", "must be json or text"),
        ("HTTP_PORT", "70000", "must be an integer from 0 to 65535"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_variable_and_its_bound(
    name: str, value: str, bound: str
) -> None:
    with pytest.raises(UsageError) as caught:
        OperatorSettings.from_environment({f"GALA_OPERATOR_{name}": value})
    assert f"GALA_OPERATOR_{name}" in str(caught.value)
    assert bound in str(caught.value)
    assert repr(value) in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        OperatorSettings.from_environment(
            {"GALA_OPERATOR_WORKERS": "-1", "GALA_OPERATOR_LOG_FORMAT": "xml", "GALA_OPERATOR_WORKER": "8"}
        )
    assert len(str(caught.value).splitlines()) == 3
    assert "GALA_OPERATOR_WORKER is not a setting" in str(caught.value)


def test_back_offs_must_be_in_order() -> None:
    with pytest.raises(UsageError, match="RESTART_SECONDS_MAX: must be at least"):
        OperatorSettings.from_environment({"GALA_OPERATOR_RESTART_SECONDS": "500"})


def test_what_kubernetes_says_of_a_service_of_that_name_is_no_setting() -> None:
    assert OperatorSettings.from_environment(SERVICE_LINKS) == OperatorSettings()
