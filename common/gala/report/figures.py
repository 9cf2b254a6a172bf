"""The figures of experiments by the names that definitions use. A new one is a module with a function and a line here.

A figure takes the experiment and a prefix for the ids of its drawings, which are unique in the page, and yields its
sections; none where there is nothing to draw yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from gala.report import convergence, curves, epsilon, final_scores, gradients, scaling
from gala.report.canvas import style
from gala.report.experiment import Experiment
from gala.report.section import Section

Figure = Callable[[Experiment, str], Iterable[Section]]

FIGURES: Final[Mapping[str, Figure]] = {
    "convergence": convergence.sections,
    "curves": curves.sections,
    "epsilon-ball": epsilon.sections,
    "gradient-correlation": gradients.sections,
    "scores": final_scores.sections,
    "throughput": scaling.sections,
}


def draw(experiment: Experiment) -> list[Section]:
    """The sections of the figures that an experiment is for, in its order; names of sections are made unique."""
    sections: list[Section] = []
    taken: set[str] = set()
    with style():
        for i, name in enumerate(dict.fromkeys(experiment.figures)):
            if name not in FIGURES:
                continue
            for section in FIGURES[name](experiment, f"figure{i}"):
                free = next(candidate for candidate in _candidates(section.name) if candidate not in taken)
                taken.add(free)
                sections.append(section if free == section.name else replace(section, name=free))
    return sections


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{i}" for i in itertools.count(2))
