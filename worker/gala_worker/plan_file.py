"""plan.json as a worker follows it: waiting for its own rank at the start, then taking over every newer epoch.

Place in the flow: `worker` asks about once a second. The launcher or the kubelet replaces the file as a whole.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Final

from gala.errors import GalaError, RunError, UsageError
from gala.plan import RunPlan
from gala.spec import RunSpec

log = logging.getLogger(__name__)

WAIT_SECONDS: Final = 60.0
"""How long a starting worker waits for its rank to appear in the plan: a mounted plan may be older than the worker."""
POLL_SECONDS: Final = 0.2


def read(path: Path) -> RunPlan:
    """The plan as it stands now.

    Raises:
        UsageError: the file cannot be read.
        SpecError: it is not a plan.
    """
    return RunPlan.from_json(_text(path))


class PlanFile:
    """The plan of one rank, as of the newest epoch that was seen."""

    def __init__(self, path: Path, rank: int, wait_seconds: float = WAIT_SECONDS) -> None:
        """Waits until the plan has `rank`.

        Raises:
            UsageError: the file cannot be read.
            SpecError: it is not a plan.
            RunError: it has no such rank, also after the wait.
        """
        self._path = path
        self._complaint = ""
        """Of the last look, so that what stays wrong is said once."""
        deadline = time.monotonic() + wait_seconds
        while True:
            self._text = _text(path)
            self.plan = RunPlan.from_json(self._text)
            if rank in self.plan.ranks:
                return
            if time.monotonic() >= deadline:
                raise RunError(f"rank {rank} is not in the plan, which has the ranks {list(self.plan.ranks)}")
            time.sleep(POLL_SECONDS)

    def follow(self) -> RunPlan | None:
        """The plan, if it is of a newer epoch than before; what keeps it from being read is logged once."""
        try:
            text = _text(self._path)
            is_new, self._text = text != self._text, text
            newer = RunPlan.from_json(text) if is_new else self.plan
        except GalaError as error:
            if str(error) != self._complaint:
                log.warning("keeping the plan of epoch %d: %s", self.plan.epoch, error)
            self._complaint = str(error)
            return None
        self._complaint = ""
        if newer.epoch <= self.plan.epoch or newer.run_uid != self.plan.run_uid:
            return None
        self.plan = dataclasses.replace(newer, spec=adopt(self.plan.spec, newer.spec))
        return self.plan


def adopt(own: RunSpec, newer: RunSpec) -> RunSpec:
    """`own` with what a running learner takes over from a newer plan.

    Everything else, such as the precision of the gossip, is what the learner was built with: it changes with its next
    start.
    """
    return own.model_copy(
        update={
            "learners": newer.learners,
            "topology": newer.topology,
            "total_steps": newer.total_steps,
            "checkpoint": newer.checkpoint,
            "evaluation": own.evaluation.model_copy(update={"every_steps": newer.evaluation.every_steps}),
        }
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the plan {path}: it is no text") from error
