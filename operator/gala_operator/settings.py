"""The operator's settings: read from the environment once, by `__main__`. The chart sets them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from gala.errors import Problem, UsageError

PREFIX: Final = "GALA_OPERATOR_"

SERVICE_LINK: Final = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes itself puts into a pod's environment for a Service called gala-operator or gala-operator-x."""

DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorSettings:
    """Every field is `GALA_OPERATOR_<NAME>` in the environment, such as GALA_OPERATOR_NAMESPACES=a,b."""

    namespaces: tuple[str, ...] = ()
    """Which to watch; empty = the whole cluster."""
    namespace: str = "default"
    """Its own: where the Lease lives."""
    identity: str = "gala-operator"
    """Of this replica: the pod's name."""
    worker_image: str = "ghcr.io/gala-rl/gala-worker:0.1.0"
    """Of learners whose run names no image."""
    workers: int = 16
    """Runs reconciled at the same time."""
    resync_seconds: float = 300.0
    poll_seconds: float = 10.0
    """Between two questions to the learners of a run."""
    status_seconds: float = 10.0
    """Learning progress is written to a run's status at most so often; changes of state are written at once."""
    restart_seconds: float = 10.0
    """Second back-off of a failed learner, the first is a second; it doubles up to `restart_seconds_max`."""
    restart_seconds_max: float = 300.0
    http_port: int = 8080
    """/healthz, /readyz and /metrics."""
    leader_election: bool = False
    lease_seconds: float = 15.0
    monitoring_namespace: str = ""
    """Whose pods may scrape the learners; empty = nobody but the operator."""
    api_concurrency: int = 32
    """API requests under way at the same time, beside the lease's own."""
    log_format: str = "json"
    """json or text."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> OperatorSettings:
        """Reads GALA_OPERATOR_*; an empty variable counts as not set.

        Raises:
            UsageError: variables are unknown or not what they should be; all of them are named.
        """
        known = {PREFIX + field.name.upper(): field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        problems: list[str] = []
        for variable, text in sorted(environment.items()):
            if not variable.startswith(PREFIX):
                continue
            if variable not in known:
                if SERVICE_LINK.fullmatch(variable.removeprefix(PREFIX)) is None:
                    problems.append(f"{variable} is not a setting; there are {', '.join(sorted(known))}")
                continue
            if not text.strip():
                continue
            name = known[variable]
            try:
                values[name] = READERS[name](text.strip())
            except ValueError as error:
                problems.append(str(Problem(path=variable, value=text, message=str(error))))
        settings = cls(**values)
        if settings.restart_seconds_max < settings.restart_seconds:
            problems.append(
                f"{PREFIX}RESTART_SECONDS_MAX: must be at least {PREFIX}RESTART_SECONDS"
                f" ({settings.restart_seconds:g}), got {settings.restart_seconds_max:g}"
            )
        if problems:
            raise UsageError("\n".join(problems))
        return settings


def _seconds(least: float, most: float = 86_400.0) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise ValueError(f"must be a number of seconds from {least:g} to {most:g}")
        return value

    return read


def _integer(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be an integer from {least} to {most}")
        return int(text)

    return read


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _name(text: str) -> str:
    if DNS_LABEL.fullmatch(text) is None:
        raise ValueError("must be the name of a namespace: lower-case letters, digits and hyphens")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name(part.strip()) for part in text.split(",") if part.strip()))


def _text(text: str) -> str:
    return text


def _log_format(text: str) -> str:
    if text not in ("json", "text"):
        raise ValueError("must be json or text")
    return text


READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "namespaces": _names,
    "namespace": _name,
    "identity": _text,
    "worker_image": _text,
    "workers": _integer(1, 256),
    "resync_seconds": _seconds(1.0),
    "poll_seconds": _seconds(0.1),
    "status_seconds": _seconds(0.0),
    "restart_seconds": _seconds(0.0),
    "restart_seconds_max": _seconds(0.0),
    "http_port": _integer(0, 65_535),
    "leader_election": _flag,
    "lease_seconds": _seconds(3.0, 600.0),
    "monitoring_namespace": _name,
    "api_concurrency": _integer(1, 1024),
    "log_format": _log_format,
}
