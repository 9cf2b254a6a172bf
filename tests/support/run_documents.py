"""GalaRun documents for tests, and the problems that they have."""

from __future__ import annotations

from typing import Any

import pytest

from gala import spec
from gala.errors import SpecError

MINIMAL: dict[str, Any] = {
    "apiVersion": "gala.dev/v1alpha1",
    "kind": "GalaRun",
    "metadata": {"name": "pong"},
    "spec": {"environment": {"id": "ALE/Pong-v5"}},
}


def with_spec(**more: Any) -> dict[str, Any]:
    return {**MINIMAL, "spec": {**MINIMAL["spec"], **more}}


PEER_TIMEOUT_SECONDS = 4.0
"""Of a `lasting` run."""


def lasting(name: str, **more: Any) -> dict[str, Any]:
    """A run that does not end by itself, with such fields of its spec, for real workers on this machine."""
    kept = {
        "totalSteps": 1_000_000_000,
        "gossip": {"peerTimeoutSeconds": PEER_TIMEOUT_SECONDS},
        "worker": {"gpus": 0},
        "evaluation": {"everySteps": None},
        "checkpoint": {"everySteps": 1_000_000_000},
    }
    return {**MINIMAL, "metadata": {"name": name}, "spec": kept | more}


def problems(document: Any) -> list[str]:
    with pytest.raises(SpecError) as error:
        spec.parse(document)
    return str(error.value).splitlines()


FULL = with_spec(
    environment={"id": "package.module:Name-v0", "kwargs": {"a": None, "b": [1, 0.5, {"c": "d"}]}},
    learners=8,
    totalSteps=4e7,
    topology={"type": "Exponential", "peers": 2},
    gossip={"maxStaleness": 0},
    evaluation={"everySteps": None},
    policy={"hiddenSizes": [32]},
    worker={
        "resources": {"limits": {"cpu": 2, "memory": "4Gi"}},
        "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "tolerations": [{"operator": "Exists"}],
        "podTemplate": {"spec": {"volumes": [{"name": "data", "emptyDir": {}}]}},
    },
    checkpoint={"volume": {"size": "10Gi"}},
)
