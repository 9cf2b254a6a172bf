"""`plan(run) -> RunPlan`: the one decision that the local launcher and the operator share.

Pure and deterministic: the same run, epoch and uid give the same plan, byte for byte, wherever it is made. The
launchers differ only in where a worker goes and in `address`, which says how a rank is reached.

The plan travels to the workers as plan.json, a file in both worlds. A changed epoch in it is a changed ring.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gala import names, topology
from gala.algorithms import ALGORITHMS
from gala.errors import MAX_SHOWN_VALUE, Problem, SpecError
from gala.spec import GalaRun, RunSpec, Topology, parse

FORMAT: Final = 1
"""Of plan.json; a reader refuses another one."""

SEEDS_PER_LEARNER: Final = 2 * names.MAX_SIMULATORS
"""A learner's simulators take consecutive seeds from its range: training from its start, evaluation from its middle."""
_SEED_RANGES: Final = 2**31 // SEEDS_PER_LEARNER
"""Simulator seeds stay below 2**31, what the Atari emulator takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a learner listens."""

    gossip: str
    """`host:port` of the gRPC server."""
    http: str
    """`host:port` of /healthz /readyz /metrics /status."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerPlan:
    """What one worker is to be."""

    rank: int
    name: str
    """`<run>-<rank>`."""
    role: str
    """`names.ROLE_*`: what the algorithm wants of this rank."""
    seed: int
    """First of this learner's `SEEDS_PER_LEARNER` simulator seeds; no two learners of a run share one."""
    in_peers: tuple[int, ...]
    """Ranks that send to this one when all are alive, in any round of a time-varying topology; ascending."""
    out_peers: tuple[int, ...]
    """Ranks that this one sends to, likewise. `gala.topology.successors` says who takes over when one is gone."""
    address: Address


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What every worker of a run knows about it."""

    run_name: str
    run_uid: str
    """Tells two runs of one name apart; peers refuse strangers by it."""
    epoch: int
    """0, 1, 2, ...: grows when the set of learners changes."""
    seed: int
    """Of the parameters' initialisation, the same on all ranks: all start from one point."""
    spec: RunSpec
    learners: tuple[LearnerPlan, ...]
    """In the order of their ranks."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the plan, ascending."""
        return tuple(learner.rank for learner in self.learners)

    @property
    def keepers(self) -> tuple[int, ...]:
        """Ranks that keep state: they save checkpoints, evaluate, and leave a final model."""
        return ALGORITHMS[self.spec.algorithm].keepers(len(self.learners))

    @property
    def essential(self) -> tuple[int, ...]:
        """Ranks without which the others wait. When one has used up its restarts, the run has failed."""
        return ALGORITHMS[self.spec.algorithm].essential(len(self.learners))

    @property
    def opens_ports(self) -> bool:
        """Whether ranks also listen on ports that nobody knows beforehand."""
        return ALGORITHMS[self.spec.algorithm].opens_ports

    def learner(self, rank: int) -> LearnerPlan:
        """The plan of one rank.

        Raises: KeyError when the rank is not, or no longer, in the plan.
        """
        for learner in self.learners:
            if learner.rank == rank:
                return learner
        raise KeyError(rank)

    def with_gossip_precision(self, precision: Literal["float32", "bfloat16"]) -> RunPlan:
        """The same plan with another number format on the wire."""
        gossip = self.spec.gossip.model_copy(update={"precision": precision})
        return replace(self, spec=self.spec.model_copy(update={"gossip": gossip}))

    def to_json(self) -> str:
        """The content of plan.json."""
        document = {
            "format": FORMAT,
            "runName": self.run_name,
            "runUid": self.run_uid,
            "epoch": self.epoch,
            "seed": self.seed,
            "learners": [_entry(learner) for learner in self.learners],
            "spec": self.spec.model_dump(mode="json", by_alias=True),
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """Read plan.json.

        Raises: SpecError for a text that is not a plan of this format, or whose spec is not acceptable.
        """
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise _refused(f"is of format {document['format']!r}, this GALA reads {FORMAT}")
            if not document["learners"]:
                raise _refused("has no learners")
            # The spec goes through the same checks as a user's file: a plan may come from another version of GALA.
            run = parse(
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "metadata": {"name": document["runName"]},
                    "spec": document["spec"],
                }
            )
            return cls(
                run_name=run.metadata.name,
                run_uid=str(document["runUid"]),
                epoch=int(document["epoch"]),
                seed=_whole(document["seed"], names.MAX_SEED),
                spec=run.spec,
                learners=tuple(_learner(entry) for entry in document["learners"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise _refused(f"cannot be read ({type(error).__name__}: {error})") from error


def plan(
    run: GalaRun,
    *,
    epoch: int = 0,
    uid: str = "",
    address: Callable[[int], Address] | None = None,
) -> RunPlan:
    """Decide who takes part in a run, who gossips with whom, and which seeds they use.

    Args:
        run: the validated document.
        epoch: 0 at the start; the caller adds one with every change of the number of learners.
        uid: the run's identity, given by the launcher.
        address: how a rank is reached; by default its DNS name under the run's headless Service in a cluster.
    """
    spec = run.spec
    facts = ALGORITHMS[spec.algorithm]
    resolve = address or cluster_addresses(run)
    return RunPlan(
        run_name=run.metadata.name,
        run_uid=uid,
        epoch=epoch,
        seed=spec.seed,
        spec=spec,
        learners=tuple(
            LearnerPlan(
                rank=rank,
                name=names.learner_name(run.metadata.name, rank),
                role=facts.role(rank),
                seed=simulator_seed(spec.seed, rank),
                in_peers=_peers(spec, rank, topology.all_in_peers),
                out_peers=_peers(spec, rank, topology.all_out_peers),
                address=resolve(rank),
            )
            for rank in range(spec.learners)
        ),
    )


def _peers(spec: RunSpec, rank: int, of_topology: Callable[[Topology, int, int], tuple[int, ...]]) -> tuple[int, ...]:
    """Gossip: as the topology says. Else everybody, or, where there is a centre, a star around rank 0."""
    facts = ALGORITHMS[spec.algorithm]
    if facts.gossips:
        return of_topology(spec.topology, rank, spec.learners)
    if facts.centre is not None and rank != 0:
        return (0,)
    return tuple(other for other in range(spec.learners) if other != rank)


def cluster_addresses(run: GalaRun) -> Callable[[int], Address]:
    """How a rank is reached in a cluster: `<run>-<rank>.<run>.<namespace>.svc`, on the fixed ports."""

    def address(rank: int) -> Address:
        host = names.learner_host(run.metadata.name, run.metadata.namespace, rank)
        return Address(gossip=f"{host}:{names.PORT_GOSSIP}", http=f"{host}:{names.PORT_HTTP}")

    return address


def simulator_seed(run_seed: int, rank: int) -> int:
    """The first of a rank's simulator seeds, in [0, 2**31 - SEEDS_PER_LEARNER].

    Ranges of different ranks of a run are disjoint. So are those of run seeds 0 to 255; seeds that differ by a multiple
    of 256 share simulator seeds, but neither initial parameters nor actions.
    """
    return (run_seed * names.MAX_LEARNERS + rank) % _SEED_RANGES * SEEDS_PER_LEARNER


def _learner(entry: dict[str, Any]) -> LearnerPlan:
    return LearnerPlan(
        rank=_whole(entry["rank"], names.MAX_LEARNERS - 1),
        name=str(entry["name"]),
        role=str(entry["role"]),
        seed=_whole(entry["seed"], names.MAX_SEED),
        in_peers=tuple(int(peer) for peer in entry["inPeers"]),
        out_peers=tuple(int(peer) for peer in entry["outPeers"]),
        address=Address(gossip=str(entry["address"]["gossip"]), http=str(entry["address"]["http"])),
    )


def _whole(value: Any, most: int) -> int:
    number = int(value)
    if not 0 <= number <= most:
        raise ValueError(f"must be from 0 to {most}, got {str(number)[:MAX_SHOWN_VALUE]}")
    return number


def _entry(learner: LearnerPlan) -> dict[str, Any]:
    return {
        "rank": learner.rank,
        "name": learner.name,
        "role": learner.role,
        "seed": learner.seed,
        "inPeers": learner.in_peers,
        "outPeers": learner.out_peers,
        "address": {"gossip": learner.address.gossip, "http": learner.address.http},
    }


def _refused(message: str) -> SpecError:
    return SpecError([Problem(path=names.PLAN_FILE, message=message)])
