"""What tells the algorithms apart before anything runs: roles, who keeps state, who is missed, published defaults.

One table, `ALGORITHMS`. `gala.plan` takes roles and peers from it, `gala.spec` the defaults of hyperparameters; what an
algorithm does is in `gala_worker.algorithms`. docs/algorithms.md has the sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from gala import names

GALA_A2C: Final = "GALA-A2C"
GALA_PPO: Final = "GALA-PPO"
A2C: Final = "A2C"
A3C: Final = "A3C"
IMPALA: Final = "IMPALA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """One algorithm."""

    member: str
    """Role of every rank, but for rank 0 where there is a centre."""
    centre: str | None = None
    """Role of rank 0 where all others depend on it; it has no simulators. None: no rank is special."""
    gossips: bool = False
    """Whether learners exchange parameters with the neighbours that spec.topology gives them."""
    opens_ports: bool = False
    """Whether ranks also listen on ports that nobody knows beforehand, as torch.distributed does."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters, by their names in Python, whose default is not that of GALA-A2C."""

    def role(self, rank: int) -> str:
        """Of one rank."""
        return self.centre if self.centre is not None and rank == 0 else self.member

    def keepers(self, ranks: int) -> tuple[int, ...]:
        """Ranks that keep state: they save checkpoints, evaluate, and leave a final model."""
        return (0,) if self.centre is not None else tuple(range(ranks))

    def essential(self, ranks: int) -> tuple[int, ...]:
        """Ranks that the others wait for while they are away."""
        if self.gossips:
            return ()
        return (0,) if self.centre is not None else tuple(range(ranks))


ALGORITHMS: Final[Mapping[str, Facts]] = MappingProxyType(
    {
        GALA_A2C: Facts(member=names.ROLE_ACTOR_LEARNER, gossips=True),
        GALA_PPO: Facts(
            member=names.ROLE_ACTOR_LEARNER,
            gossips=True,
            defaults={
                "learning_rate": 2.5e-4,
                "learning_rate_schedule": "linear",
                "rollout_length": 128,
                "gae_lambda": 0.95,
            },
        ),
        A2C: Facts(member=names.ROLE_ACTOR_LEARNER, opens_ports=True),
        A3C: Facts(
            member=names.ROLE_ACTOR_LEARNER,
            centre=names.ROLE_SERVER,
            defaults={
                "learning_rate_schedule": "linear",
                "max_gradient_norm": 40.0,
                "rms_prop_epsilon": 0.1,
                "loss_reduction": "sum",
            },
        ),
        IMPALA: Facts(
            member=names.ROLE_ACTOR,
            centre=names.ROLE_LEARNER,
            defaults={
                "learning_rate": 6e-4,
                "learning_rate_schedule": "linear",
                "rollout_length": 20,
                "value_coefficient": 0.25,
                "max_gradient_norm": 40.0,
                "rms_prop_epsilon": 0.01,
                "loss_reduction": "sum",
            },
        ),
    }
)


def exceptions(hyperparameter: str) -> dict[str, Any]:
    """The algorithms with a default of their own for a hyperparameter, and that default."""
    return {
        name: facts.defaults[hyperparameter] for name, facts in ALGORITHMS.items() if hyperparameter in facts.defaults
    }
