"""The end of the training: the learners have finished, and the results pod makes the final model of their files.

While it waits for the last learners and for the results, nothing of the ring is replaced any more: the steps are done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from gala import names
from gala.answers import count, mapping, number
from gala_operator import conditions, failures, manifests, stuck, times
from gala_operator.actions import DeletePod, Manifest
from gala_operator.failures import Tally
from gala_operator.learners import FINISHED, Learner
from gala_operator.observed import ObservedPod
from gala_operator.situation import Situation

PATIENCE: Final = timedelta(seconds=60)
"""From the first finished learner on: whoever has not finished by then is left out of the final model. Only those
that keep state count: the others have nothing to give."""
FINISHING: Final = "Finishing"
"""Reason of Progressing from then on."""
MAX_FAILURES: Final = 3
"""Failures of the results pod before the run is given up."""
MAKING: Final = "The final model is being made"
LIMIT_RANGE: Final = re.compile(r" per (Container|Pod) is ")
"""Kubernetes's LimitRanger of what it refuses."""
QUOTA_OF_LIMITS: Final = re.compile(r"exceeded quota: .*requested: \S*limits\.")
"""Kubernetes's ResourceQuota of what it refuses, if that is a limit and not (only) a request."""
AS_A_LEARNER: Final = "its pod asks for what a learner asks for"
WITH_LESS: Final = "its pod may use less than a learner"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the run ends."""

    succeeded: bool
    reason: str
    message: str
    final_model: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """How far the end has come."""

    since: datetime
    """When the first learner that keeps state had finished."""
    message: str
    tally: Tally = field(default_factory=Tally)
    outcome: Outcome | None = None
    create: tuple[Manifest, ...] = ()
    delete: tuple[DeletePod, ...] = ()
    look_again: datetime | None = None
    problem: stuck.Stuck | None = None


def assess(situation: Situation, learners: Sequence[Learner]) -> Finish | None:
    """None while the training goes on."""
    pod = situation.pods.get(names.results_name(situation.run.name))
    keepers = [learner for learner in learners if learner.rank in situation.plan.keepers]
    finished = [learner for learner in keepers if learner.state == FINISHED]
    if pod is None and not finished:
        return None
    since = times.read(situation.run.status.get("finishingTime")) or situation.now
    at_work = [learner for learner in keepers if learner.ready and learner.state != FINISHED]
    if pod is None and at_work and situation.now < since + PATIENCE:
        return Finish(
            since=since,
            message=f"{len(finished)} of {len(keepers)} learners have finished; {at_work[0].name} has not yet.",
            look_again=since + PATIENCE,
        )
    return _gather(situation, since, pod)


class Size(NamedTuple):
    """How much the results pod asks for and may use; see `manifests.results_pod`."""

    modest: bool = True
    frugal: bool = False

    def __str__(self) -> str:
        """What is unusual about it; `size` reads it in the status."""
        unusual = (AS_A_LEARNER if not self.modest else "", WITH_LESS if self.frugal else "")
        return "".join(f"; {each}" for each in unusual if each)


def size(status: Mapping[str, Any], tally: Tally) -> Size:
    """What the API server may let in, going by what it has just refused, if it has.

    A LimitRange may want more CPU or memory than a results pod needs, or limits nearer to what is asked for. It has let
    the learners in, so it lets in what asks for as much. A quota may have less left than a learner's limits. Where both
    refuse, both are heeded; and if even that is refused, all is tried from the start. `tally`: once it has run out of
    memory it is not to make do with less.
    """
    refusal = conditions.refusal(status)
    if not refusal:
        return Size()
    was = conditions.read(status).get("Progressing", {})
    told = str(was.get("message")) if was.get("reason") == FINISHING else ""
    before = Size(modest=AS_A_LEARNER not in told, frugal=WITH_LESS in told)
    if before == Size(modest=False, frugal=True):
        return Size()
    if LIMIT_RANGE.search(refusal):
        return before._replace(modest=False)
    starved = tally.last is not None and tally.last.reason == stuck.OOM_KILLED
    return before._replace(frugal=not starved and (before.frugal or bool(QUOTA_OF_LIMITS.search(refusal))))


def _gather(situation: Situation, since: datetime, pod: ObservedPod | None) -> Finish:
    now = situation.now
    before = Tally.read(mapping(situation.run.status.get("results")))
    message = f"{MAKING}."
    if pod is None:
        retry_at = before.retry_at(situation.settings) if before.failures else None
        if retry_at is not None and retry_at > now:
            return Finish(since=since, message=message, tally=before, look_again=retry_at)
        chosen = size(situation.run.status, before)
        message = f"{MAKING}{chosen}."
        manifest = manifests.results_pod(
            situation.document,
            situation.owner,
            situation.plan,
            created=now,
            settings=situation.settings,
            **chosen._asdict(),
        )
        free = not situation.is_taken(names.results_name(situation.run.name))
        return Finish(since=since, message=message, tally=before, create=(manifest,) if free else ())
    if pod.deleting:
        problem = stuck.of_deletion(pod, now)
        if problem is not None:
            message = f"The final model cannot be made yet: {problem.reason}: {problem.message}"
        look_again = stuck.next_look([pod], now)
        return Finish(since=since, message=message, tally=before, problem=problem, look_again=look_again)
    if failures.has_failed(pod):
        return _failed(situation, since, pod, before)
    if pod.phase in ("Failed", "Succeeded"):
        at = failures.replaceable_at(pod)
        delete = (DeletePod(name=pod.name, uid=pod.uid),) if at <= now else ()
        return Finish(since=since, message=message, tally=before, delete=delete, look_again=at)
    problem = stuck.of_pod(pod, now)
    if problem is not None:
        message = f"The final model cannot be made yet: {problem.reason}: {problem.message}"
    return Finish(since=since, message=message, tally=before, outcome=_outcome(situation, pod), problem=problem)


def _failed(situation: Situation, since: datetime, pod: ObservedPod, before: Tally) -> Finish:
    now = situation.now
    tally = before.count(pod, now)
    why = stuck.of_failures(pod.name, tally, MAX_FAILURES - 1)
    assert why is not None  # it has just been counted
    if tally.is_final(MAX_FAILURES - 1):
        outcome = Outcome(succeeded=False, reason="NoFinalModel", message=why.message)
        return Finish(since=since, message=why.message, tally=tally, outcome=outcome)
    retry_at = tally.retry_at(situation.settings) or now
    delete: tuple[DeletePod, ...] = ()
    if not before.has_counted(pod):
        retry_at = now + timedelta(seconds=1)
    elif retry_at <= now:
        delete = (DeletePod(name=pod.name, uid=pod.uid),)
    return Finish(
        since=since,
        message=f"The final model cannot be made yet: {why.message}",
        tally=tally,
        delete=delete,
        look_again=retry_at,
        problem=why,
    )


def _outcome(situation: Situation, pod: ObservedPod) -> Outcome | None:
    answer = situation.observed.results
    if answer is None or answer.pod_uid != pod.uid:
        return None
    if answer.state == "failed":
        message = answer.message or "the results pod does not say why"
        return Outcome(succeeded=False, reason="NoFinalModel", message=f"There is no final model: {message}")
    if answer.state != "ready":
        return None
    card = mapping(answer.card)
    scores = mapping(card.get("evaluation"))
    greedy, sampled = (number(mapping(scores.get(mode)).get("meanReturn")) for mode in ("greedy", "sampled"))
    fields = {
        "globalSteps": count(card.get("globalSteps")),
        "meanReturn": greedy,
        "sampledMeanReturn": sampled,
        "sha256": None if answer.sha256 is None else answer.sha256[:64],
        "averaged": _ranks(card.get("averaged")),
        "location": f"pod/{pod.name}",
    }
    model = {name: value for name, value in fields.items() if value is not None}
    least = situation.spec.evaluation.min_return
    if least is not None and (greedy is None or greedy < least):
        message = f"The final model's mean return is {_words(greedy)}, below evaluation.minReturn {least:g}."
        return Outcome(succeeded=False, reason="ScoreTooLow", message=message, final_model=model)
    message = f"The final model's mean return is {_words(greedy)}."
    return Outcome(succeeded=True, reason="Completed", message=message, final_model=model)


def _ranks(value: Any) -> list[int] | None:
    """What is no list of ranks is left out: a status that the API server refuses would keep the run from ending."""
    ranks = [count(rank) for rank in value] if isinstance(value, list | tuple) else [None]
    return [rank for rank in ranks if rank is not None] if None not in ranks else None


def _words(score: float | None) -> str:
    return "unknown" if score is None else f"{score:g}"
