"""GalaRun: everything a run can be told, with defaults, bounds and the rules across fields.

This is the source: `gala.crd` generates the CRD from these models and `gala.reference` the field reference. A model is
frozen; attributes are snake_case, the document is camelCase. The way in is `load` (a file) or `parse` (a mapping, such
as what an API server delivers); both raise one SpecError with everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from gala import document, names, spec_problems
from gala.algorithms import ALGORITHMS, GALA_A2C, GALA_PPO
from gala.errors import SpecError
from gala.spec_base import (
    DNS_LABEL,
    IMMUTABLE,
    RFC1035_LABEL,
    SIMULATOR_ID,
    Annotations,
    FreeObject,
    Integer,
    Labels,
    Number,
    Rule,
    Section,
    Switch,
)
from gala.spec_learning import Diagnostics as Diagnostics
from gala.spec_learning import Hyperparameters as Hyperparameters
from gala.spec_learning import Policy as Policy
from gala.spec_worker import CheckpointVolume, Worker

OTHER_METADATA: Final = frozenset(
    {
        *("generateName", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"),
        *("deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields", "selfLink"),
    }
)
"""What an API server adds to metadata: accepted and dropped, so that `kubectl get -o yaml` gives a valid document."""


def beside(name: str, suffix: str) -> str:
    """A name like that of a run, for another one beside it: `pong-2`. Shortened where it would be too long."""
    return f"{name[: names.MAX_RUN_NAME - len(suffix) - 1].rstrip('-')}-{suffix}"


class Metadata(Section):
    """Name and labels of the run."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=names.MAX_RUN_NAME, pattern=RFC1035_LABEL)] = Field(
        description="Name of the run: its folder, its pods and its Service are named after it."
    )
    namespace: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_LABEL)] = Field(
        default="default", description="Namespace of the run in a cluster."
    )
    labels: Labels = Field(default={}, description="Labels of the run.")
    annotations: Annotations = Field(default={}, description="Annotations of the run.")

    @model_validator(mode="before")
    @classmethod
    def _without_what_a_server_adds(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if key not in OTHER_METADATA}
        return data


class Environment(Section):
    """What is learned."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=SIMULATOR_ID)] = Field(
        description="A Gymnasium id, such as ALE/Pong-v5 or CartPole-v1; package.module:Name-v0 imports the module."
    )
    simulators: Annotated[Integer, Field(ge=1, le=names.MAX_SIMULATORS)] = Field(
        default=16, description="Simulators that each learner steps together: the batch of one decision."
    )
    preset: Literal["paper", "modern"] = Field(
        default="paper",
        description="Atari protocol. paper: up to 30 no-ops, losing a life ends an episode for the learner, no sticky"
        " actions, minimal action set. modern: sticky actions with probability 0.25, no life-loss signal, full action"
        " set (Machado et al. 2018). Other environments do not read it.",
    )
    kwargs: FreeObject = Field(default={}, description="Keyword arguments for the environment's constructor.")


class Topology(Section):
    """Who sends parameters to whom."""

    type: Literal["Ring", "Exponential", "OnePeerExponential", "Complete"] = Field(
        default="Ring",
        description="Ring: to the next ranks. Exponential: to the ranks 1, 2, 4, ... further. OnePeerExponential: to"
        " one of those in turn. Complete: to everyone.",
        json_schema_extra=IMMUTABLE,
    )
    peers: Annotated[Integer, Field(ge=1, le=names.MAX_LEARNERS - 1)] | None = Field(
        default=None,
        description="How many learners each learner sends to. Unset = the type's own number: 1 for Ring and"
        " OnePeerExponential, all of them for Exponential and Complete.",
    )


class Gossip(Section):
    """How learners exchange parameters."""

    every_updates: Annotated[Integer, Field(ge=1, le=10_000)] = Field(
        default=1, description="A learner sends, and mixes, after each so many of its own updates."
    )
    max_staleness: Annotated[Integer, Field(ge=0, le=1_000_000)] | None = Field(
        default=None,
        description="Updates that a learner makes at most without mixing while a neighbour is alive; then it waits. 0 ="
        " synchronous gossip, unset = never wait.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Number format on the wire, the same for all learners; bfloat16 halves the traffic. Where"
        " observations are normalised it is float32 all the same: 8 significant bits are too few for their statistics.",
        json_schema_extra=IMMUTABLE,
    )
    mixing: Literal["average", "push-sum"] = Field(
        default="average",
        description="average: the mean of own and received parameters. push-sum: every message carries a weight, so"
        " that the mean over all learners is kept whatever is late, lost or uneven.",
        json_schema_extra=IMMUTABLE,
    )
    peer_timeout_seconds: Annotated[Number, Field(ge=1, le=3600)] = Field(
        default=30.0,
        description="Seconds of silence after which a neighbour counts as gone and the ring closes without it.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="maxStaleness",
            holds=lambda gossip: gossip.max_staleness is None or gossip.max_staleness >= gossip.every_updates - 1,
            cel="!has(self.maxStaleness) || self.maxStaleness >= self.everyUpdates - 1",
            message="must be at least everyUpdates - 1",
            remedy="raise it or lower everyUpdates: a learner makes everyUpdates - 1 updates between two exchanges",
        ),
    )


class Checkpoint(Section):
    """What survives a crash."""

    every_steps: Annotated[Integer, Field(ge=1, le=10**15)] = Field(
        default=1_000_000, description="A checkpoint each time the run's decisions pass a multiple of this."
    )
    keep: Annotated[Integer, Field(ge=1, le=1000)] = Field(default=2, description="Checkpoints kept per learner.")
    volume: CheckpointVolume | None = Field(
        default=None,
        description="Where checkpoints live in a cluster. Unset = in the pod, gone with it; a replaced learner then"
        " takes its state from a neighbour. `gala run` keeps them in the run's folder.",
    )


class Evaluation(Section):
    """How the policy is scored, on raw returns, beside the training."""

    every_steps: Annotated[Integer, Field(ge=1, le=10**15)] | None = Field(
        default=1_000_000,
        description="An evaluation each time the run's decisions pass a multiple of this; null = only at the end.",
    )
    episodes: Annotated[Integer, Field(ge=1, le=10_000)] = Field(default=10, description="Episodes per evaluation.")
    min_return: Annotated[Number, Field(ge=-(10**12), le=10**12)] | None = Field(
        default=None,
        description="Mean greedy return (raw score) that the final model must reach for the run to succeed; below it"
        " the run fails, in a cluster with the reason ScoreTooLow. Unset = any score will do.",
    )


class RunPolicy(Section):
    """When a run pauses, gives up and is cleaned up."""

    suspend: Switch = Field(
        default=False, description="Stop all learners, after a checkpoint, until it is false again."
    )
    backoff_limit: Annotated[Integer, Field(ge=0, le=1000)] = Field(
        default=6,
        description="Restarts of one learner before it is left out. Disruptions by the cluster do not count.",
    )
    min_learners: Annotated[Integer, Field(ge=1, le=names.MAX_LEARNERS)] = Field(
        default=1,
        description="The run fails when fewer learners than this are left, all others having used up their restarts.",
    )
    active_deadline_seconds: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="Seconds that the run may be active before it is failed; unset = no limit."
    )
    ttl_seconds_after_finished: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Seconds after its end that the run is deleted from the cluster; unset = never."
    )
    clean_pod_policy: Literal["None", "Running", "All"] = Field(
        default="Running",
        description="Which pods are deleted at the run's end. None: those of learners that are still at work. Running:"
        " also those in which a sidecar goes on. All: every pod. What has ended is else kept for its log, and the"
        " results pod for `gala fetch`.",
    )


def _exponential_has(peers: int | None, learners: int) -> bool:
    return peers is None or peers == 1 or (peers <= 10 and 2 ** (peers - 1) < learners)


class RunSpec(Section):
    """What to train, on what, and how."""

    algorithm: Literal["GALA-A2C", "GALA-PPO", "A2C", "A3C", "IMPALA"] = Field(
        default=GALA_A2C,
        description="GALA-A2C, GALA-PPO: learners gossip their parameters. A2C: learners average their gradients at"
        " every update. A3C: rank 0 is a server that the others push gradients to. IMPALA: rank 0 learns from what the"
        " others, its actors, send.",
        json_schema_extra=IMMUTABLE,
    )
    environment: Environment = Field(description="What is learned, by its Gymnasium id.", json_schema_extra=IMMUTABLE)
    learners: Annotated[Integer, Field(ge=1, le=names.MAX_LEARNERS)] = Field(
        default=4,
        description="Workers of the run: the actor-learners in the ring; for A3C and IMPALA rank 0, the server or"
        " learner, counts too. The scale subresource; may change while the run is active.",
    )
    total_steps: Annotated[Integer, Field(ge=1, le=10**15)] = Field(
        default=40_000_000,
        description="Agent decisions over all learners together, after which the run ends. Atari: times 4 = frames.",
    )
    seed: Annotated[Integer, Field(ge=0, le=names.MAX_SEED)] = Field(
        default=1,
        description="Seeds the parameters (the same for all learners) and the simulators; those of A3C's and IMPALA's"
        " acting ranks start elsewhere in their range of seeds at every start.",
        json_schema_extra=IMMUTABLE,
    )
    topology: Topology = Field(default=Topology(), description="Who sends parameters to whom.")
    gossip: Gossip = Field(default=Gossip(), description="How learners exchange parameters.")
    hyperparameters: Hyperparameters = Field(default=Hyperparameters(), description="The learner's numbers.")
    policy: Policy = Field(default=Policy(), description="The network.", json_schema_extra=IMMUTABLE)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Number format of the network's arithmetic; auto = the fastest that the hardware does well.",
    )
    worker: Worker = Field(
        default=Worker(), description="The pods that the learners run in. `gala run` reads only `gpus`."
    )
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="What survives a crash.")
    evaluation: Evaluation = Field(default=Evaluation(), description="How the policy is scored.")
    diagnostics: Diagnostics = Field(default=Diagnostics(), description="What is recorded for the study of gossip.")
    run_policy: RunPolicy = Field(default=RunPolicy(), description="When a run pauses, gives up and is cleaned up.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="topology.peers",
            holds=lambda spec: (
                spec.topology.type not in ("Ring", "Exponential")
                or spec.topology.peers in (None, 1)
                or spec.topology.peers < spec.learners
            ),
            cel="!(self.topology.type in ['Ring', 'Exponential']) || !has(self.topology.peers)"
            " || self.topology.peers == 1 || self.topology.peers < self.learners",
            message="must be less than spec.learners",
            remedy="lower it or raise spec.learners: a learner cannot send to itself",
        ),
        Rule(
            path="topology.peers",
            holds=lambda spec: (
                spec.topology.type != "Exponential"
                or (spec.topology.peers or 1) >= max(spec.learners, 2)  # the rule above has said so
                or _exponential_has(spec.topology.peers, spec.learners)
            ),
            cel="self.topology.type != 'Exponential' || !has(self.topology.peers) || self.topology.peers == 1"
            " || self.topology.peers >= self.learners || (self.topology.peers <= 10"
            " && [1, 2, 4, 8, 16, 32, 64, 128, 256, 512][self.topology.peers - 1] < self.learners)",
            message="must be at most log2(spec.learners), rounded up, for type Exponential",
            remedy="leave it unset to send to all of the ranks 1, 2, 4, ... further",
        ),
        Rule(
            path="topology.peers",
            holds=lambda spec: spec.topology.type != "OnePeerExponential" or spec.topology.peers in (None, 1),
            cel="self.topology.type != 'OnePeerExponential' || !has(self.topology.peers) || self.topology.peers == 1",
            message="must be 1 for type OnePeerExponential",
            remedy="leave it unset, or use type Exponential",
        ),
        Rule(
            path="topology.peers",
            holds=lambda spec: spec.topology.type != "Complete" or spec.topology.peers is None,
            cel="self.topology.type != 'Complete' || !has(self.topology.peers)",
            message="must be unset for type Complete",
            remedy="remove it: everyone sends to everyone; use type Ring to choose a number",
        ),
        Rule(
            path="runPolicy.minLearners",
            holds=lambda spec: spec.run_policy.min_learners <= spec.learners,
            cel="self.runPolicy.minLearners <= self.learners",
            message="must be at most spec.learners",
            remedy="lower it or raise spec.learners: the run could never have so many",
        ),
        Rule(
            path="learners",
            holds=lambda spec: ALGORITHMS[spec.algorithm].centre is None or spec.learners >= 2,
            cel="!(self.algorithm in ['A3C', 'IMPALA']) || self.learners >= 2",
            message="must be at least 2 for this algorithm",
            remedy="rank 0 is the server or learner and has no simulators: count it and at least one more",
        ),
        Rule(
            path="hyperparameters.minibatches",
            holds=lambda spec: (
                spec.algorithm != GALA_PPO
                or spec.hyperparameters.minibatches <= spec.hyperparameters.rollout_length * spec.environment.simulators
            ),
            cel="self.algorithm != 'GALA-PPO' || !has(self.hyperparameters.rolloutLength)"
            " || self.hyperparameters.minibatches <= self.hyperparameters.rolloutLength * self.environment.simulators",
            message="must be at most rolloutLength x simulators",
            remedy="lower it: a minibatch needs at least one decision",
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _with_the_algorithms_defaults(cls, data: Any) -> Any:
        """Where a hyperparameter is not given, and the algorithm was published with another default than A2C's."""
        if not isinstance(data, Mapping):
            return data
        name, given = data.get("algorithm"), data.get("hyperparameters")
        facts = ALGORITHMS.get(name) if isinstance(name, str) else None
        if facts is None or not (given is None or isinstance(given, Mapping)):
            return data
        defaults = {to_camel(key): value for key, value in facts.defaults.items()}
        set_by_hand = {key: value for key, value in (given or {}).items() if key not in defaults or value is not None}
        return {**data, "hyperparameters": {**defaults, **set_by_hand}}


def immutable_fields(section: type[Section] = RunSpec) -> tuple[str, ...]:
    """Dotted paths of what makes it another run: a checkpoint of the one means nothing to the other."""
    found: list[str] = []
    for field in section.model_fields.values():
        if field.json_schema_extra == IMMUTABLE:
            found.append(str(field.alias))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += (f"{field.alias}.{path}" for path in immutable_fields(field.annotation))
    return tuple(found)


class GalaRun(Section):
    """A training run of gossiping actor-learners."""

    api_version: Literal["gala.dev/v1alpha1"] = Field(description="gala.dev/v1alpha1.")
    kind: Literal["GalaRun"] = Field(description="GalaRun.")
    metadata: Metadata = Field(description="Name and labels of the run.")
    spec: RunSpec = Field(description="What to train, on what, and how.")

    @model_validator(mode="before")
    @classmethod
    def _without_status(cls, data: Any) -> Any:
        """The status is what an operator has observed; nobody reads it from a document."""
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if key != "status"}
        return data

    def document(self) -> dict[str, Any]:
        """The run as JSON-like data with every default filled in. `parse(run.document()) == run`."""
        return self.model_dump(mode="json", by_alias=True)


def parse(data: Mapping[str, Any]) -> GalaRun:
    """A run from a document, as read from YAML or delivered by an API server.

    Raises: SpecError with every problem of the document.
    """
    try:
        return GalaRun.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise SpecError(spec_problems.problems(GalaRun, data, error)) from error


def load(path: str | Path, overrides: Sequence[str] = ()) -> GalaRun:
    """A run from a YAML file, with overrides such as `spec.learners=8` applied.

    Raises: SpecError with every problem of the file, or of the overrides.
    """
    return parse(document.override(document.read(path), overrides))
