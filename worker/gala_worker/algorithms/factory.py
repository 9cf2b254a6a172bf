"""Which part a rank plays: from the plan's algorithm and role to the class that plays it."""

from __future__ import annotations

from gala.algorithms import ALGORITHMS
from gala.errors import UsageError
from gala_worker.algorithms.algorithm import Algorithm, Setup


def make_algorithm(setup: Setup) -> Algorithm:
    """The part of `setup.me` in `setup.plan`. What only one algorithm needs is imported for that one alone.

    Raises: UsageError for an algorithm that this version does not have.
    """
    name = setup.plan.spec.algorithm
    if ALGORITHMS[name].gossips:
        from gala_worker.algorithms.gala import Gala

        return Gala(setup)
    raise UsageError(f"spec.algorithm: {name} is not built yet")
