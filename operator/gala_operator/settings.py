"""The operator's settings: read from the environment once, by `__main__`. The chart sets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gala.errors import UsageError

PREFIX: Final = "GALA_OPERATOR_"


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
    """First back-off of a failed learner; it doubles up to `restart_seconds_max`."""
    restart_seconds_max: float = 300.0
    http_port: int = 8080
    """/healthz, /readyz and /metrics."""
    leader_election: bool = False
    lease_seconds: float = 15.0
    monitoring_namespace: str = ""
    """Whose pods may scrape the learners; empty = nobody but the operator."""
    api_concurrency: int = 32
    """API requests under way at the same time."""
    log_format: str = "json"
    """json or text."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> OperatorSettings:
        """Reads GALA_OPERATOR_*.

        Raises:
            UsageError: a variable is unknown or not what it should be.
        """
        raise UsageError("not written yet")
