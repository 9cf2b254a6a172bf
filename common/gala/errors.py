"""Every error GALA raises on purpose, as one tree.

    GalaError                   exit code 1
    ├── SpecError               2   a galarun.yaml (or an override) with problems; lists all of them
    ├── UsageError              2   the command line asks for what cannot be done: a name already taken, an unknown run
    │   └── NotFoundError       2   the cluster has no such object
    ├── SimulatorError          2   the environment cannot be made: unknown id, unknown ROM, unsupported spaces
    ├── RunError                1   a run that cannot start, or did not reach its end
    ├── TimedOutError         124   the user's --timeout is over, and what was waited for goes on
    ├── ClusterError            1   a cluster answers with what it should not
    │   └── UnreachableError    1   a cluster does not answer, or is in trouble; trying again may help
    ├── CheckpointError         1   a checkpoint that is truncated, foreign or unreadable
    └── GossipError             1
        ├── RefusedError        1   a neighbour refused our hello, with its reason
        ├── SilentError         1   a neighbour has not answered in time
        └── MessageError        1   a message that is malformed or hostile
            └── NotFiniteError  1   a message with a NaN or an infinity in it

`str(error)` is a text for the user, without a traceback; a command ends with `error.exit_code`. Exit code 2 says "the
user's mistake, trying again will not help"; 124 "not yet"; 1 is everything else. Errors of other libraries are
translated where they enter, with `from`.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

MAX_SHOWN_VALUE: Final = 80
"""Characters of a user's value that a message repeats: enough to find it, never a whole file."""


class _Missing(enum.Enum):
    """A type of its own because None is a value that a user can write; an enum because its members survive pickling."""

    MISSING = "MISSING"


MISSING: Final = _Missing.MISSING
"""The value of a problem about something that is not there; the message then has no "got ..."."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong with a document.

    `str(problem)` reads `spec.learners: must be at least 1, got -3; set the number of actor-learners of the ring`.
    """

    path: str
    """Where, in the document's own words: `spec.environment.id`, `spec.worker.env[0].name`; a file name for all."""
    value: object = MISSING
    """What stands there, or MISSING."""
    message: str
    """What is wrong, with the bound: `must be at least 1`."""
    remedy: str = ""
    """What to do about it; may be empty where the message says it."""

    def __str__(self) -> str:
        got = "" if self.value is MISSING else f", got {_shown(self.value)}"
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.path}: {self.message}{got}{remedy}"


class GalaError(Exception):
    """The root: what a caller catches to tell GALA's own errors from bugs."""

    exit_code: ClassVar[int] = 1


class SpecError(GalaError):
    """A GalaRun document is not acceptable. `problems` holds all that is wrong, `str()` has one line for each."""

    exit_code: ClassVar[int] = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class UsageError(GalaError):
    """The command line asks for something that cannot be done: a name already taken, a run that does not exist."""

    exit_code: ClassVar[int] = 2


class NotFoundError(UsageError):
    """The cluster has no such object. `kind` is what there is none of, as the API server calls it: galaruns, pods."""

    def __init__(self, message: str, kind: str) -> None:
        self.kind = kind
        super().__init__(message)

    def __reduce__(self) -> tuple[type[NotFoundError], tuple[str, str]]:
        return type(self), (str(self), self.kind)


class SimulatorError(GalaError):
    """The environment cannot be made: unknown id, unknown ROM, spaces that no policy supports."""

    exit_code: ClassVar[int] = 2


class RunError(GalaError):
    """A run cannot start, or ended without having reached its total steps."""


class TimedOutError(GalaError):
    """The user's --timeout is over; what was waited for goes on. The exit code is that of timeout(1)."""

    exit_code: ClassVar[int] = 124


class ClusterError(GalaError):
    """A cluster, or a pod in it, answers with what it should not."""


class UnreachableError(ClusterError):
    """A cluster does not answer, or is in trouble; trying again may help."""


class CheckpointError(GalaError):
    """A checkpoint is truncated, belongs to another model, or cannot be read."""


class GossipError(GalaError):
    """Something between two neighbours went wrong; a learner survives every one of these."""


class RefusedError(GossipError):
    """A neighbour refused our hello. `reason` is the neighbour's answer."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class SilentError(GossipError):
    """A neighbour has not answered in time; it may do so later."""


class MessageError(GossipError):
    """A message is malformed or hostile: it is dropped and counted, nothing else happens."""


class NotFiniteError(MessageError):
    """There is a NaN or an infinity in a message."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, what the system does not let us look at below `path` is a UsageError: no permission, a name too long.

    pathlib takes "there is none" for an answer; other refusals it raises.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_VALUE else text[: MAX_SHOWN_VALUE - 3] + "..."


def to_install(extra: str) -> str:
    """How the user gets one of pyproject's extras. Not by a package's name: on PyPI, gala is something else."""
    return f"in GALA's checkout: pip install -e '.[{extra}]'"
