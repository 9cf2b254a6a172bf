"""After the end: the results pod, which serves `gala fetch`, is made again when it is lost and its volume is there.

Without a volume the result goes with its pod; the status then says so. The end itself is never taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gala import names
from gala.answers import mapping
from gala.errors import SpecError
from gala.spec import GalaRun, parse
from gala_operator import children, conditions, failures, manifests, situation, stuck
from gala_operator.actions import DeletePod, Manifest
from gala_operator.failures import Tally
from gala_operator.observed import Observed, ObservedPod, RunObject
from gala_operator.results import MAX_FAILURES, size
from gala_operator.settings import OperatorSettings
from gala_operator.status import MAX_MESSAGE

GONE: Final = "ResultGone"
"""Reason of the Event."""
AGAIN: Final = "ResultServedAgain"
MAX_PROBLEM: Final = 512
"""Characters; the run's end is said in the same message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """Whether the result can be fetched, and what that takes."""

    tally: Tally
    """Failures of the results pod, before the end and after it."""
    problem: str = ""
    """Why the result cannot be fetched, as a sentence; empty while it can, or will be soon."""
    create: tuple[Manifest, ...] = ()
    delete: tuple[DeletePod, ...] = ()
    look_again: datetime | None = None


def assess(run: RunObject, observed: Observed, now: datetime, settings: OperatorSettings) -> Serving | None:
    """None where there is nothing to be served: no final model, or the run wants none of its pods kept."""
    if "finalModel" not in run.status:
        return None
    try:
        document = parse(run.document)
    except SpecError:
        return None
    if document.spec.run_policy.clean_pod_policy == "All":
        return None
    name = names.results_name(run.name)
    tally = Tally.read(mapping(run.status.get("results")))
    pod = next((pod for pod in situation.own_pods(run, observed) if pod.name == name), None)
    if pod is not None and pod.phase not in ("Failed", "Succeeded"):
        return _present(pod, tally, now)
    if document.spec.checkpoint.volume is None:
        return Serving(tally=tally, problem="The result is gone with its pod: there is no spec.checkpoint.volume.")
    if pod is not None:
        return _ended(pod, tally, now, settings)
    if tally.is_final(MAX_FAILURES - 1):
        return Serving(tally=tally, problem=_given_up(name, tally))
    retry_at = tally.retry_at(settings)
    if retry_at is not None and retry_at > now:
        return Serving(tally=tally, look_again=retry_at)
    if any(each.name == name for each in observed.pods):  # of an earlier run; it is going
        return Serving(tally=tally)
    return Serving(tally=tally, create=(_manifest(run, document, observed, now, settings),))


def message(run: RunObject, served: Serving | None) -> str:
    """How the run ended, and what is wrong with its result."""
    problem = "" if served is None else served.problem[:MAX_PROBLEM]
    ended = "Succeeded" if conditions.is_true(run.status, "Succeeded") else "Failed"
    said = conditions.read(run.status).get(ended, {}).get("message") or run.status.get("message", "")
    return " ".join(filter(None, (str(said)[: MAX_MESSAGE - MAX_PROBLEM - 1], problem)))


def _present(pod: ObservedPod, tally: Tally, now: datetime) -> Serving:
    why = stuck.of_deletion(pod, now) or stuck.of_pod(pod, now)
    problem = "" if why is None else f"The result cannot be fetched at present: {why.reason}: {why.message}"
    return Serving(tally=tally, problem=problem, look_again=stuck.next_look([pod], now))


def _ended(pod: ObservedPod, before: Tally, now: datetime, settings: OperatorSettings) -> Serving:
    """As with learners: a failure is written down before its pod is deleted, so that it counts once."""
    if not failures.has_failed(pod):
        at = failures.replaceable_at(pod)
        return Serving(tally=before, delete=_deletion(pod) if at <= now else (), look_again=at)
    tally = before.count(pod, now)
    if tally.is_final(MAX_FAILURES - 1):
        return Serving(tally=tally, problem=_given_up(pod.name, tally))
    if not before.has_counted(pod):
        return Serving(tally=tally, look_again=now + timedelta(seconds=1))
    retry_at = tally.retry_at(settings) or now
    return Serving(tally=tally, delete=_deletion(pod) if retry_at <= now else (), look_again=retry_at)


def _deletion(pod: ObservedPod) -> tuple[DeletePod, ...]:
    return () if pod.deleting else (DeletePod(name=pod.name, uid=pod.uid),)


def _given_up(name: str, tally: Tally) -> str:
    why = stuck.of_failures(name, tally, MAX_FAILURES - 1)
    return f"The result cannot be fetched: {why.message if why is not None else name}"


def _manifest(
    run: RunObject, document: GalaRun, observed: Observed, now: datetime, settings: OperatorSettings
) -> Manifest:
    plan = children.current_plan(run, document, observed)
    chosen = size(run.status, Tally.read(mapping(run.status.get("results"))))._asdict()
    return manifests.results_pod(document, situation.owner(run), plan, created=now, settings=settings, **chosen)
