"""After the end: finished learners are let go, pods are cleaned up, and the run is deleted when its time is over.

Nothing but the pod that serves the result (`serving`) is ever made again for a run that has ended. All this waits until
the end stands in the status.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from gala import names
from gala.errors import SpecError
from gala.spec import RunPolicy, parse
from gala_operator import conditions, serving, situation, status, times
from gala_operator.actions import Actions, DeletePod, RunEvent
from gala_operator.learners import is_ready
from gala_operator.observed import Observed, ObservedPod, RunObject
from gala_operator.serving import Serving
from gala_operator.settings import OperatorSettings

RELEASE: Final = timedelta(seconds=30)
"""How long finished learners have to exit by themselves, so that their pods stay as Completed."""


def actions(run: RunObject, observed: Observed, now: datetime, settings: OperatorSettings) -> Actions:
    """What is left to do for a run that has ended."""
    end = times.read(run.status.get("completionTime")) or now
    policy = _policy(run)
    own = situation.own_pods(run, observed)
    learners = situation.learner_pods(run, observed)
    running = [pod for pod in learners if pod.phase not in ("Succeeded", "Failed")]
    trained = "finishingTime" in run.status
    exits_until = end + RELEASE if trained else end
    waiting = bool(running) and now < exits_until
    requeue = [exits_until] if waiting else []
    delete_run = False
    if policy.ttl_seconds_after_finished is not None:
        expires = end + timedelta(seconds=policy.ttl_seconds_after_finished)
        delete_run = expires <= now
        requeue.append(expires)
    served = None if delete_run else serving.assess(run, observed, now, settings)
    if served is not None and served.look_again is not None:
        requeue.append(served.look_again)
    lingering = [pod for pod in learners if pod.lingering]
    superfluous = () if waiting else _superfluous(policy, own, running, lingering)
    return Actions(
        release=tuple(pod.ip for pod in running if pod.ip is not None and not pod.deleting) if waiting else (),
        create=() if served is None else served.create,
        delete=superfluous if served is None else (*superfluous, *served.delete),
        delete_run=delete_run,
        status=_status(run, observed, served, now),
        events=_events(run, served),
        requeue_at=min((at for at in requeue if at > now), default=None),
    )


def _superfluous(
    policy: RunPolicy,
    own: Sequence[ObservedPod],
    running: Sequence[ObservedPod],
    lingering: Sequence[ObservedPod],
) -> tuple[DeletePod, ...]:
    """By cleanPodPolicy. The results pod serves `gala fetch` and goes only with All. Learners that are still at work,
    or have yet to start, are stopped whatever the policy: a run that is over does not go on training."""
    if policy.clean_pod_policy == "All":
        chosen = own
    elif policy.clean_pod_policy == "Running":
        chosen = (*running, *lingering)
    else:
        chosen = running
    return tuple(DeletePod(name=pod.name, uid=pod.uid) for pod in chosen if not pod.deleting)


def _policy(run: RunObject) -> RunPolicy:
    try:
        return parse(run.document).spec.run_policy
    except SpecError:
        return RunPolicy()


def _events(run: RunObject, served: Serving | None) -> tuple[RunEvent, ...]:
    """That the result is gone, and that it is there again."""
    if served is None:
        return ()
    if served.problem and run.status.get("message") != serving.message(run, served):
        return (RunEvent(type="Warning", reason=serving.GONE, message=served.problem),)
    if served.create:
        message = f"{names.results_name(run.name)} is made again: it serves the result from its volume."
        return (RunEvent(type="Normal", reason=serving.AGAIN, message=message),)
    return ()


def _status(run: RunObject, observed: Observed, served: Serving | None, now: datetime) -> dict[str, Any]:
    """As it was at the end, but for what the pods do, and for obstacles that are no more: those are told anew for as
    long as they last. Which trouble the learners were in at the end stays."""
    pods = {pod.name: pod for pod in situation.learner_pods(run, observed)}
    entries = situation.entries(run.status)
    learners = []
    for rank, entry in sorted(entries.items()):
        pod = pods.get(names.learner_name(run.name, rank))
        state = entry.get("state")
        if state not in ("finished", "failed"):
            state = "pending" if pod is None or pod.phase in ("Succeeded", "Failed") else "stopping"
        fields = {**entry, "ready": is_ready(pod), "state": state}
        learners.append({**fields, **({"stepsPerSecond": 0.0} if "stepsPerSecond" in entry else {})})
    ready = sum(bool(entry["ready"]) for entry in learners)
    after = {**run.status, **status.readiness(ready, len(learners)), "observedGeneration": run.generation}
    if learners:
        after["learnerStatuses"] = learners
    if "stepsPerSecond" in after:
        after["stepsPerSecond"] = 0.0
    table = conditions.Conditions(run.status, generation=run.generation, now=now)
    was_ready = conditions.is_true(run.status, "PodsReady") and ready < len(learners)
    if was_ready or conditions.reason(run.status, "PodsReady") in (conditions.REFUSED, conditions.NAME_TAKEN):
        table.set("PodsReady", False, "Ended", "The run is over.")
    after["conditions"] = table.document()
    after["message"] = serving.message(run, served)
    if served is not None and served.tally.failures:
        after["results"] = served.tally.document()
    return after
