"""GalaExperiment: a matrix of runs as one document. Read like a GalaRun: strictly, and with all that is wrong at once.

    base      what all runs have in common: a piece of a GalaRun's spec
    matrix    factor -> levels; one run for every combination of levels
    per       more of the spec for some combinations; exclude: combinations that are left out
    small, toy    changes that make a smaller version of the same experiment: for these machines, for tests

A piece of a spec is a mapping like `spec` of a GalaRun; its outermost keys may be dotted paths, such as
`hyperparameters.learningRate`. Whether it fits is found out by making the runs: see `matrix`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from gala import document, spec_problems
from gala.errors import SpecError
from gala.experiment.index import Level
from gala.spec_base import RFC1035_LABEL, SIMULATOR_ID, FreeObject, Number, Section

KIND: Final = "GalaExperiment"
MAX_NAME: Final = 40
"""Characters of an experiment's name; its folder may get `-small` behind it."""
MAX_RANGE: Final = 1000
MAX_LABEL: Final = 100
MAX_FACTOR: Final = 63
_LABEL: Final = re.compile(r"(spec\.(?:(small|toy)\.)?matrix\.(.+)\[(\d+)\])\.label")
_RANGE: Final = re.compile(r"(\d{1,9})\.\.(\d{1,9})")

Scale = Literal["full", "small", "toy"]
Figure = Literal["convergence", "curves", "scores", "epsilon-ball", "gradient-correlation", "throughput"]


def _plain(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool) or (isinstance(value, str) and not 0 < len(value) <= MAX_LABEL):
        raise PydanticCustomError("level", "must be a number, true, false or a short text")
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        first, last = map(int, found.groups())
        if not first <= last < first + MAX_RANGE:
            raise PydanticCustomError(
                "level", "must be a range such as 1..10, upwards, of at most {most} numbers", {"most": MAX_RANGE}
            )
    return value


Label = Annotated[Any, AfterValidator(_plain)]


def _factor(name: str) -> str:
    # It becomes the name of a label in a cluster.
    if len(name) > MAX_FACTOR or not re.fullmatch(r"[A-Za-z]([A-Za-z0-9.]*[A-Za-z0-9])?", name):
        raise PydanticCustomError(
            "factor",
            "must be a name of letters, digits and inner dots that begins with a letter, of at most {most} characters",
            {"most": MAX_FACTOR},
        )
    return name


FactorName = Annotated[str, AfterValidator(_factor)]


class LevelChoice(Section):
    """One level of a factor."""

    label: Label = Field(description="What the level is called, in names, tables and figures.")
    set: FreeObject | None = Field(
        description="What of the spec the level sets. A plain level sets the factor's field."
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_level(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping) else {"label": data, "set": None}

    def levels(self) -> list[Level]:
        """The levels that it stands for: 1..10 for ten of them."""
        return [self.label] if self.set is not None else _all_of(self.label)


def _all_of(value: Any) -> list[Any]:
    found = _RANGE.fullmatch(value) if isinstance(value, str) else None
    return list(range(int(found[1]), int(found[2]) + 1)) if found else [value]


def _listed(value: Any) -> list[Any]:
    return [level for item in (value if isinstance(value, list | tuple) else (value,)) for level in _all_of(item)]


class When(Section):
    """Some of the combinations."""

    when: dict[FactorName, Any] = Field(
        min_length=1,
        description="Factor -> the level, or a list or range of the levels, that are meant; all must agree.",
    )

    def matches(self, levels: Mapping[str, Level]) -> bool:
        """Whether a combination of levels is meant."""
        return all(
            any(same(levels.get(factor), value) for value in _listed(wanted)) for factor, wanted in self.when.items()
        )

    def mentioned(self) -> list[tuple[str, Any]]:
        """Every factor and level that it names."""
        return [(factor, value) for factor, wanted in self.when.items() for value in _listed(wanted)]


class Override(When):
    """More of the spec for some of the combinations."""

    set: FreeObject = Field(description="What of the spec it sets, over base and matrix.")


class Threshold(Section):
    """What "converged" means in an environment."""

    value: Number = Field(alias="return", description="The mean return to be reached.")
    measure: Literal["greedy", "training"] = Field(
        description="greedy: the final model's mean return when it takes its best actions (the final evaluation)."
        " training: the mean return of the last episodes of the training."
    )


EnvironmentId = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=SIMULATOR_ID)]
Matrix = dict[FactorName, Annotated[tuple[LevelChoice, ...], Field(max_length=1000)]]


class Variation(Section):
    """What a smaller version of the experiment does differently."""

    description: str | None = Field(default=None, max_length=4000, description="Instead of the full one's.")
    figures: tuple[Figure, ...] | None = Field(default=None, description="Instead of the full one's.")
    base: FreeObject = Field(default={}, description="Merged over the full one's.")
    matrix: Matrix = Field(default={}, description="Replaces factors of the same name; an empty list removes one.")
    exclude: tuple[When, ...] = Field(default=(), max_length=1000, description="In addition.")
    per: tuple[Override, ...] = Field(default=(), max_length=1000, description="In addition, after the full one's.")
    thresholds: dict[EnvironmentId, Threshold] = Field(default={}, description="In addition, or instead.")


class ExperimentSpec(Section):
    """The runs, and what is drawn of them."""

    description: str = Field(default="", max_length=4000, description="What it shows; stands in the report.")
    figures: Annotated[tuple[Figure, ...], Field(min_length=1)] = Field(description="What the report draws of it.")
    base: FreeObject = Field(description="What all runs have in common: a piece of a GalaRun's spec.")
    matrix: Annotated[Matrix, Field(min_length=1)] = Field(
        description="Factor -> levels. A level is a value, or a mapping of label and set; 1..10 stands for ten seeds."
    )
    exclude: tuple[When, ...] = Field(default=(), max_length=1000, description="Combinations that are left out.")
    per: tuple[Override, ...] = Field(
        default=(), max_length=1000, description="More of the spec for some combinations; of two, the later one wins."
    )
    thresholds: dict[EnvironmentId, Threshold] = Field(
        default={}, description="By environment: when a run counts as converged."
    )
    small: Variation | None = Field(default=None, description="Changes that make it small: gala experiment --small.")
    toy: Variation | None = Field(default=None, description="Changes that make it tiny, for tests.")


class ExperimentMetadata(Section):
    """Name of the experiment."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=RFC1035_LABEL)] = Field(
        description="Name of the experiment: its folder, and what the names of its runs begin with."
    )


class GalaExperiment(Section):
    """A matrix of training runs."""

    api_version: Literal["gala.dev/v1alpha1"] = Field(description="gala.dev/v1alpha1.")
    kind: Literal["GalaExperiment"] = Field(description="GalaExperiment.")
    metadata: ExperimentMetadata = Field(description="Name of the experiment.")
    spec: ExperimentSpec = Field(description="The runs, and what is drawn of them.")


def parse(data: Mapping[str, Any]) -> GalaExperiment:
    """An experiment from a document.

    Raises: SpecError with every problem of the document's form. Whether its runs are valid: `matrix.expand`.
    """
    try:
        return GalaExperiment.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        found = spec_problems.problems(GalaExperiment, data, error)
        raise SpecError([replace(problem, path=_written(problem.path, data)) for problem in found]) from error


def _written(path: str, data: Any) -> str:
    """A problem's path as the user wrote it: without the label that a plain level is."""
    found = _LABEL.fullmatch(path)
    if found is None:
        return path
    place = data["spec"][found[2]] if found[2] else data["spec"]
    return path if isinstance(place["matrix"][found[3]][int(found[4])], Mapping) else found[1]


def load(path: str | Path) -> GalaExperiment:
    """An experiment from a YAML file. Raises: SpecError."""
    return parse(document.read(path))


def same(one: object, other: object) -> bool:
    """Whether two levels are one: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
