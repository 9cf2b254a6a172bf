"""The operator's log: one JSON object a line, with the run that it is about.

Handlers are set up here and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_RUN: Final[ContextVar[tuple[str, str] | None]] = ContextVar("run", default=None)

NOISY: Final = ("kopf.objects", "kopf", "aiohttp.access", "kubernetes")
"""They report every event and every request at INFO."""


@contextlib.contextmanager
def run_context(namespace: str, name: str) -> Iterator[None]:
    """Everything logged inside is about this run."""
    token = _RUN.set((namespace, name))
    try:
        yield
    finally:
        _RUN.reset(token)


class JsonFormatter(logging.Formatter):
    """One line of JSON: time, level, logger, message, and namespace and run where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        run = _RUN.get()
        if run is not None:
            line["namespace"], line["run"] = run
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For people at a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        run = _RUN.get()
        line = super().format(record)
        return f"{line} [{run[0]}/{run[1]}]" if run is not None else line


def set_up(log_format: str, stream: TextIO = sys.stdout) -> None:
    """Replaces what handlers there are on the root logger."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.INFO)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
