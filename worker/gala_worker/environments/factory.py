"""Which simulator an environment id gets."""

from __future__ import annotations

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments import atari, games, vector
from gala_worker.environments.simulators import Simulators


def make_simulators(
    environment: Environment, num: int, *, threads: int = 1, for_evaluation: bool = False
) -> Simulators:
    """Makes `num` simulators of the environment; `reset` them before the first step.

    Args:
        environment: `spec.environment` of a run.
        num: B, at least 1; `environment.simulators` is what a learner asks for.
        threads: emulator threads, at least 1. Always given: the native default counts the cores of the machine and
            knows nothing of a container's CPU quota.
        for_evaluation: whole games. The preset stays, but a lost life is no end.

    Raises:
        SimulatorError: unknown id or ROM, a keyword argument that the environment does not take, or spaces that no
            policy supports; the text says where, what and what to do.
    """
    if num < 1:
        raise SimulatorError(f"the number of simulators must be at least 1, got {num}")
    if threads < 1:
        raise SimulatorError(f"the number of simulator threads must be at least 1, got {threads}")
    if games.is_atari(environment.id):
        return atari.AtariSimulators(environment, num, threads=threads, for_evaluation=for_evaluation)
    return vector.VectorSimulators(environment, num)
