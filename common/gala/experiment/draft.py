"""A run's spec in the making: pieces laid over each other, and where in the definition each value was set. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gala import spec
from gala.algorithms import ALGORITHMS
from gala.errors import Problem, SpecError

TOTAL_SIMULATORS: Final = "totalSimulators"
"""Instead of environment.simulators: of all acting ranks together."""

Path = tuple[str, ...]


def acting_ranks(algorithm: str, learners: int) -> int:
    """How many ranks of a run have simulators."""
    return learners - (ALGORITHMS[algorithm].centre is not None)


@dataclass
class Draft:
    """A piece of a GalaRun's spec that grows."""

    spec: dict[str, Any] = field(default_factory=dict)
    _origins: dict[Path, str] = field(default_factory=dict)
    """Path in the spec -> path in the definition, for each value that is no mapping."""

    def copy(self) -> Draft:
        """One that can be changed without changing this one."""
        return Draft(_copied(self.spec), dict(self._origins))

    def merge(self, piece: Mapping[str, Any], origin: str) -> None:
        """Put a piece over it, whose outermost keys may be dotted paths. `origin`: where the piece stands.

        Raises: SpecError when a path leads through something that is no mapping.
        """
        for key, value in piece.items():
            self.put(key, value, f"{origin}.{key}")

    def put(self, dotted: str, value: Any, origin: str) -> None:
        """Set the field at a dotted path; a mapping is merged into what is there. Raises: SpecError, see `merge`."""
        path = tuple(dotted.split("."))
        target = self.spec
        for depth, part in enumerate(path[:-1]):
            inner = target.setdefault(part, {})
            if not isinstance(inner, dict):
                where = ".".join(path[: depth + 1])
                raise SpecError([Problem(path=origin, message=f"cannot be set: {where} is no mapping")])
            target = inner
        self._put(target, path, value, origin)

    def share_simulators(self) -> None:
        """totalSimulators -> environment.simulators. What is no number stays, to be complained of like any field.

        Raises: SpecError when it cannot be shared out evenly.
        """
        algorithm, learners = self._value("algorithm"), self._value("learners")
        total = self.spec.get(TOTAL_SIMULATORS)
        if type(total) is not int or total < 1:
            return
        if type(learners) is not int or not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            del self.spec[TOTAL_SIMULATORS]  # what is wrong with those two is said without it
            return
        origin = self._origins[(TOTAL_SIMULATORS,)]
        acting = max(1, acting_ranks(algorithm, learners))
        if total % acting:
            raise SpecError(
                [
                    Problem(
                        path=origin,
                        value=total,
                        message=f"must be a multiple of the {acting} ranks that have simulators",
                        remedy=f"change it, or learners: {learners} (of A3C and IMPALA rank 0 has none)",
                    )
                ]
            )
        del self.spec[TOTAL_SIMULATORS]
        self.put("environment.simulators", total // acting, origin)

    def traced(self, problem: Problem) -> Problem:
        """A problem of the GalaRun, said where the definition sets the value."""
        parts = problem.path.split(".")
        if parts[0] != "spec":
            return problem
        path = self._origin(tuple(part.partition("[")[0] for part in parts[1:]))
        return Problem(path=path, value=problem.value, message=problem.message, remedy=problem.remedy)

    def _value(self, field: str) -> Any:
        """Of an outermost field; its default where it is not there or null, as in any GalaRun."""
        given = self.spec.get(field)
        return spec.RunSpec.model_fields[field].default if given is None else given

    def _put(self, target: dict[str, Any], path: Path, value: Any, origin: str) -> None:
        key = path[-1]
        if isinstance(value, Mapping) and value:
            inner = target.get(key)
            if not isinstance(inner, dict):
                inner = target[key] = {}
            for name, item in value.items():
                self._put(inner, (*path, name), item, f"{origin}.{name}")
        else:
            target[key] = _copied(value)
            self._origins[path] = origin

    def _origin(self, path: Path) -> str:
        """Where the value at a path of the spec comes from, or would stand if it is missing."""
        for end in range(len(path), 0, -1):
            if found := self._origins.get(path[:end]):
                return ".".join([found, *path[end:]])
        for other, origin in self._origins.items():
            if path and other[: len(path)] == path:  # a section: it stands where its first field does
                return origin.removesuffix("." + ".".join(other[len(path) :]))
        return ".".join(["spec.base", *path])


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value
