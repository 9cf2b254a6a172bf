"""The figures of experiments, by the names that definitions use. A new one is a module with one function and a line here.

A figure takes the experiment and a prefix for the ids of its drawings, which are unique in the page, and yields its
sections; none where there is nothing to draw yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gala.report.experiment import Experiment
from gala.report.section import Section

Figure = Callable[[Experiment, str], Iterable[Section]]

FIGURES: Final[Mapping[str, Figure]] = {}
