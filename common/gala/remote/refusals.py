"""What an API server answers when it does not do what it was asked, as GALA's errors: one clear line each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gala import names
from gala.answers import json_object
from gala.errors import ClusterError, GalaError, NotFoundError, Problem, SpecError, UnreachableError, UsageError

NOT_INSTALLED: Final = (
    f"this cluster does not know {names.KIND}: install the operator first, helm install gala charts/gala-operator"
)
MAX_MESSAGE: Final = 2000
"""Characters of a server's message that are repeated."""


def translate(code: int, reason: str, body: str | None) -> GalaError:
    """The error for an HTTP answer; `code` 0 = there was none."""
    status = _status(body)
    message = str(status.get("message") or reason or f"HTTP {code}")[:MAX_MESSAGE]
    details = status.get("details")
    details = details if isinstance(details, Mapping) else {}
    if "field not declared in schema" in message:
        return UsageError(
            f"{message}; the cluster's {names.KIND} is of another version than this gala: upgrade the operator's chart"
        )
    match code:
        case 0:
            return UnreachableError(f"the cluster does not answer: {_one_line(reason)}")
        case 401:
            return UsageError("the cluster does not accept these credentials (401); log in again, or choose --context")
        case 403:
            return UsageError(f"the cluster does not allow it: {message}")
        case 404 if details.get("name"):
            return NotFoundError(message, str(details.get("kind", "")))
        case 404:
            return UsageError(NOT_INSTALLED)
        case 422:
            return SpecError(_problems(message, details))
        case 429 | 500 | 502 | 503 | 504:
            return UnreachableError(f"the cluster is in trouble ({code}): {message}")
        case 400 | 409:
            return UsageError(f"the cluster refuses it: {message}")
    return ClusterError(f"the cluster answers {code}: {message}")


def _status(body: str | None) -> Mapping[str, Any]:
    status = json_object(body or "") or {}
    return status if status.get("kind") == "Status" else {}


def _problems(message: str, details: Mapping[str, Any]) -> list[Problem]:
    causes = details.get("causes")
    found = [
        Problem(path=str(cause.get("field") or names.KIND), message=_one_line(str(cause.get("message", ""))))
        for cause in (causes if isinstance(causes, list) else ())
        if isinstance(cause, Mapping)
    ]
    return found or [Problem(path=names.KIND, message=_one_line(message))]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_MESSAGE]
