"""The run's conditions, as metav1.Condition: `lastTransitionTime` moves with the status, not with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from gala.status_schema import CONDITIONS, ConditionType
from gala_operator import times

MAX_MESSAGE: Final = 4096
REFUSED: Final = "Refused"
"""Reason of PodsReady while the API server refuses what is to be made."""
NAME_TAKEN: Final = "NameTaken"
"""The same while an object of that name is somebody else's."""


class Conditions:
    """Starts from those of the last status; what is not set stays as it was."""

    def __init__(self, status: Mapping[str, Any], *, generation: int, now: datetime) -> None:
        self._generation = generation
        self._now = times.write(now)
        self._by_type = read(status)

    def set(self, type_: ConditionType, value: bool, reason: str, message: str) -> None:
        """What is so now."""
        status = "True" if value else "False"
        before = self._by_type.get(type_, {})
        since = before.get("lastTransitionTime", self._now) if before.get("status") == status else self._now
        self._by_type[type_] = {
            "type": type_,
            "status": status,
            "observedGeneration": self._generation,
            "lastTransitionTime": since,
            "reason": reason,
            "message": message[:MAX_MESSAGE],
        }

    def document(self) -> list[dict[str, Any]]:
        """As they go into the status, in a fixed order."""
        return [self._by_type[type_] for type_ in CONDITIONS if type_ in self._by_type]


def read(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions of a status by type."""
    listed = status.get("conditions")
    if not isinstance(listed, list):
        return {}
    return {str(condition.get("type")): dict(condition) for condition in listed if isinstance(condition, dict)}


def is_true(status: Mapping[str, Any], type_: ConditionType) -> bool:
    """Whether the condition was true when the status was written."""
    return read(status).get(type_, {}).get("status") == "True"


def reason(status: Mapping[str, Any], type_: ConditionType) -> str:
    """Its reason then; empty if there was none."""
    return str(read(status).get(type_, {}).get("reason", ""))


def refusal(status: Mapping[str, Any]) -> str:
    """What the API server said when it refused something at the last look; empty if it did not."""
    said = str(status.get("message", ""))
    return said.removeprefix(f"{REFUSED}: ") if said.startswith(f"{REFUSED}: ") else ""
