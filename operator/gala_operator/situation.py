"""A run that has been understood, with all that is known of it: what the parts of `decide` share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gala import names
from gala.plan import RunPlan
from gala.spec import GalaRun, RunSpec
from gala_operator import failures
from gala_operator.failures import Tally
from gala_operator.manifests import Owner
from gala_operator.observed import Observed, ObservedPod, RunObject
from gala_operator.settings import OperatorSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """Everything that a decision about an acceptable run rests on."""

    run: RunObject
    document: GalaRun
    plan: RunPlan
    """As it should be, with its epoch."""
    observed: Observed
    now: datetime
    settings: OperatorSettings
    pods: Mapping[str, ObservedPod]
    """This very run's, by name."""
    entries: Mapping[int, Mapping[str, Any]]
    """What the status says about each rank."""

    @property
    def spec(self) -> RunSpec:
        """What the run asks for."""
        return self.document.spec

    @property
    def owner(self) -> Owner:
        """The run as the owner of its children."""
        return owner(self.run)

    @property
    def left_out(self) -> int:
        """How many learners have failed for good."""
        limit = self.spec.run_policy.backoff_limit
        return sum(self.tally(rank).is_final(limit) for rank in range(self.spec.learners))

    def tally(self, rank: int) -> Tally:
        """The failures of a learner, with that of its present pod."""
        tally = Tally.read(self.entries.get(rank, {}))
        pod = self.pods.get(names.learner_name(self.run.name, rank))
        return tally.count(pod, self.now) if pod is not None and failures.has_failed(pod) else tally

    def is_taken(self, name: str) -> bool:
        """Whether a pod of an earlier run has that name; the garbage collector will see to it."""
        return any(pod.name == name and pod.run_uid != self.run.uid for pod in self.observed.pods)


def owner(run: RunObject) -> Owner:
    """The run as the owner of its children."""
    return Owner(name=run.name, namespace=run.namespace, uid=run.uid)


def own_pods(run: RunObject, observed: Observed) -> tuple[ObservedPod, ...]:
    """The pods that were made for this very run."""
    return tuple(pod for pod in observed.pods if pod.run_uid == run.uid)


def learner_pods(run: RunObject, observed: Observed) -> tuple[ObservedPod, ...]:
    """Those of them that have a rank, whatever their role."""
    return tuple(pod for pod in own_pods(run, observed) if pod.rank is not None)


def entries(status: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
    """The status' learnerStatuses by rank; what is no entry is left out."""
    listed = status.get("learnerStatuses")
    if not isinstance(listed, list):
        return {}
    return {entry["rank"]: entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("rank"), int)}
