"""experiment.json: what an experiment consists of, and how far it is. `gala experiment` writes, `gala report` reads it.

    runs/<experiment>/
        experiment.yaml         the definition, as it was given
        experiment.json         this file; replaced atomically each time that a run changes its state
        documents/<run>.yaml    the GalaRun of each run
        logs/<run>.txt          what `gala run` printed
        <run>/                  a run directory like any other: galarun.yaml, run.json, learner-*/, final/, energy.jsonl

The format, by example:

    {
      "format": 1,
      "name": "curves-small",                 the folder's name
      "experiment": "curves",                 metadata.name of the definition
      "scale": "small",                       full | small | toy
      "description": "Return against ...",    may be ""
      "figures": ["curves", "scores"],        convergence | curves | scores | epsilon-ball | gradient-correlation |
                                              throughput
      "thresholds": {                         by environment id; what "converged" means there. May lack an environment
        "CartPole-v1": {"return": 475.0, "measure": "greedy"}
      },                                      greedy: final/card.json evaluation.greedy.meanReturn of the final model;
                                              training: the mean over the learners of their last meanReturn
      "factors": {                            the matrix: factor -> its levels, in the order of the definition
        "algorithm": ["GALA-A2C", "A2C"], "seed": [1, 2]
      },
      "runs": [{
        "name": "curves-small-gala-a2c-s1",   and the name of its folder, which is not there before the run has started
        "factors": {"algorithm": "GALA-A2C", "seed": 1},    its level of every factor, as it stands in "factors"
        "environment": "CartPole-v1",         what of the spec figures ask for, whether it is a factor or not
        "algorithm": "GALA-A2C",
        "topology": "Ring",
        "learners": 4,                        ranks
        "simulators": 16,                     of one acting rank
        "totalSimulators": 64,                of all acting ranks together
        "totalSteps": 1000000,
        "seed": 1,
        "state": "finished",                  waiting | running | interrupted | finished | failed
        "reason": "",                         of failed: one line
        "steps": 1000000,                     decisions made so far, all learners together; 0 if nothing is known
        "wallSeconds": 412.3,                 of run.json; 0 if nothing is known
        "sideBySide": 1                       how many runs might go on at once on its machine while it did: above 1 its
      }]                                      wall-clock and energy are shared. 0 = not known (a cluster)
    }

A level is a number, a string or a truth value: the value itself where the matrix lists plain values, else its label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

FORMAT: Final = 1
INDEX_FILE: Final = "experiment.json"
DEFINITION_FILE: Final = "experiment.yaml"

Level = str | int | float | bool
State = Literal["waiting", "running", "interrupted", "finished", "failed"]


@dataclass(kw_only=True, slots=True)
class RunEntry:
    """One run of the experiment; see the module's text for each field."""

    name: str
    factors: Mapping[str, Level]
    environment: str
    algorithm: str
    topology: str
    learners: int
    simulators: int
    total_simulators: int
    total_steps: int
    seed: int
    state: State = "waiting"
    reason: str = ""
    steps: int = 0
    wall_seconds: float = 0.0
    side_by_side: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """experiment.json."""

    name: str
    experiment: str
    scale: str
    description: str
    figures: Sequence[str]
    thresholds: Mapping[str, Mapping[str, Any]]
    factors: Mapping[str, Sequence[Level]]
    runs: Sequence[RunEntry] = field(default_factory=tuple)

    def to_json(self) -> str:
        """The file's content."""
        document = {
            "format": FORMAT,
            "name": self.name,
            "experiment": self.experiment,
            "scale": self.scale,
            "description": self.description,
            "figures": list(self.figures),
            "thresholds": {environment: dict(entry) for environment, entry in self.thresholds.items()},
            "factors": {factor: list(levels) for factor, levels in self.factors.items()},
            "runs": [_to_json(entry) for entry in self.runs],
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Index:
        """Read the file. Raises: ValueError, KeyError, TypeError, AttributeError or RecursionError for any other."""
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, this GALA reads {FORMAT}")
        return cls(
            name=document["name"],
            experiment=document["experiment"],
            scale=document["scale"],
            description=document["description"],
            figures=tuple(document["figures"]),
            thresholds=document["thresholds"],
            factors={factor: tuple(levels) for factor, levels in document["factors"].items()},
            runs=tuple(_from_json(entry) for entry in document["runs"]),
        )


def read(directory: Path) -> Index | None:
    """The index in an experiment's folder; None where there is none. Raises as `Index.from_json` does."""
    try:
        return Index.from_json((directory / INDEX_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


_KEYS: Final = {
    "name": "name",
    "factors": "factors",
    "environment": "environment",
    "algorithm": "algorithm",
    "topology": "topology",
    "learners": "learners",
    "simulators": "simulators",
    "totalSimulators": "total_simulators",
    "totalSteps": "total_steps",
    "seed": "seed",
    "state": "state",
    "reason": "reason",
    "steps": "steps",
    "wallSeconds": "wall_seconds",
    "sideBySide": "side_by_side",
}


def _to_json(entry: RunEntry) -> dict[str, Any]:
    document = {key: getattr(entry, name) for key, name in _KEYS.items()}
    return document | {"factors": dict(entry.factors), "wallSeconds": round(entry.wall_seconds, 3)}


def _from_json(document: Mapping[str, Any]) -> RunEntry:
    return RunEntry(**{name: document[key] for key, name in _KEYS.items()})
