"""Which part a rank plays: from the plan's algorithm and role to the class that plays it."""

from __future__ import annotations

from gala import names
from gala.algorithms import A2C, A3C, ALGORITHMS, IMPALA
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
    if name == A2C:
        from gala_worker.algorithms.synchronous import SynchronousA2C

        return SynchronousA2C(setup)
    if name == A3C:
        from gala_worker.algorithms import a3c

        return a3c.Server(setup) if setup.me.role == names.ROLE_SERVER else a3c.ActorLearner(setup)
    if name == IMPALA:
        from gala_worker.algorithms import impala

        return impala.Learner(setup) if setup.me.role == names.ROLE_LEARNER else impala.Actor(setup)
    raise UsageError(f"spec.algorithm: {name} is not built yet")
