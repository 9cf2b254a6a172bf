"""`decide`: from what is observed of a run to what is to be done about it. Pure: no clock, no memory, no network.

Place in the flow: `controller` calls it for every change that concerns a run, and after every time it asks for; it
carries out the `Actions` and forgets them. All that must outlive a pass is in the cluster: in the run's status and in
its children. So a pass may be repeated, come late, or see a cache that lags behind, and an operator may be replaced at
any point:

- names are fixed, so what was made but is not seen yet is made once only (409 is success);
- a pod is deleted by its uid, and only when it has ended, or its rank has left the plan, or the run stops;
- a failure is written to the status before its pod is deleted, so it counts exactly once;
- an end is written to the status before anything is cleaned up, and is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gala import names
from gala.errors import SpecError
from gala.spec import parse
from gala_operator import (
    children,
    ended,
    essential,
    learners,
    manifests,
    refused,
    results,
    ring,
    situation,
    status,
    stuck,
    times,
    transitions,
)
from gala_operator.actions import Actions, AnnotatePod, DeletePod, Manifest
from gala_operator.learners import FAILED, Learner
from gala_operator.observed import Observed, RunObject
from gala_operator.results import Finish, Outcome
from gala_operator.settings import OperatorSettings
from gala_operator.situation import Situation


def decide(run: RunObject, observed: Observed, now: datetime, settings: OperatorSettings) -> Actions:
    """What is to be done about a run.

    Args:
        run: the GalaRun as last seen.
        observed: everything else that is known of it.
        now: the present time, with its zone.
        settings: the operator's.
    """
    if run.deleting:
        return Actions(status=run.status)  # the garbage collector takes the children
    if status.has_ended(run.status):
        return ended.actions(run, observed, now, settings)
    try:
        document = parse(run.document)
        if (refusal := refused.changed(run, document, observed, now)) is not None:
            return refusal
        understood = Situation(
            run=run,
            document=document,
            plan=children.current_plan(run, document, observed),
            observed=observed,
            now=now,
            settings=settings,
            pods={pod.name: pod for pod in situation.own_pods(run, observed)},
            entries=situation.entries(run.status),
        )
        if document.spec.run_policy.suspend:
            return _suspend(understood)
        wanted = manifests.children(document, understood.owner, understood.plan, settings, left_out=understood.left_out)
    except SpecError as error:
        return refused.invalid(run, observed, now, error)
    return _pursue(understood, children.compare(wanted, run, observed))


def _suspend(situation: Situation) -> Actions:
    after = status.of_suspended(situation)
    return Actions(
        delete=tuple(DeletePod(name=pod.name, uid=pod.uid) for pod in situation.pods.values() if not pod.deleting),
        status=after,
        events=transitions.events(situation.run.status, after),
        requeue_at=stuck.next_look(situation.pods.values(), situation.now),
    )


def _pursue(situation: Situation, difference: children.Difference) -> Actions:
    """Brings a run that is to be active closer to what it should be."""
    now, spec = situation.now, situation.spec
    ranks = [learners.assess(situation, rank, difference) for rank in range(spec.learners)]
    finish = results.assess(situation, ranks)
    outcome = _outcome(situation, ranks, finish)
    hearing = ring.assess(situation, ranks)
    after, numbers_due = status.of_active(situation, ranks, hearing, finish, outcome, difference.obstacle)
    events = transitions.events(situation.run.status, after, ranks)
    if outcome is not None:
        return Actions(status=after, events=events, requeue_at=now + timedelta(seconds=1))
    look_again = [numbers_due, _deadline(situation), stuck.next_look(situation.pods.values(), now)]
    if difference.obstacle is not None or difference.claims:
        look_again.append(now + timedelta(seconds=5))
    if finish is None:
        stranded, stranded_at = essential.stranded(situation, ranks, hearing)
        look_again += [stranded_at, *(learner.look_again for learner in ranks)]
        create, delete = _pods(situation, ranks, stranded)
    else:
        look_again.append(finish.look_again)
        in_the_way = names.results_name(situation.run.name) in difference.claims
        create, delete = () if in_the_way else finish.create, finish.delete
    return Actions(
        apply=difference.apply,
        create=create,
        delete=delete,
        annotate=_annotations(situation, ranks),
        status=after,
        events=events,
        requeue_at=min((at for at in look_again if at is not None and at > now), default=None),
        poll=any(pod.phase == "Running" and not pod.deleting for pod in situation.pods.values()),
    )


def _outcome(situation: Situation, ranks: list[Learner], finish: Finish | None) -> Outcome | None:
    if finish is not None and finish.outcome is not None:
        return finish.outcome
    deadline = _deadline(situation)
    if deadline is not None and deadline <= situation.now:
        seconds = situation.spec.run_policy.active_deadline_seconds
        message = f"The run was active for longer than runPolicy.activeDeadlineSeconds, {seconds} s."
        return Outcome(succeeded=False, reason="DeadlineExceeded", message=message)
    lost = essential.lost(situation, ranks)
    if finish is None and lost is not None and lost.stuck is not None:
        message = f"{lost.stuck.message}; the others cannot go on without it"
        return Outcome(succeeded=False, reason=essential.LOST, message=message)
    left = sum(learner.state != FAILED for learner in ranks)
    least = situation.spec.run_policy.min_learners
    if finish is None and left < least:
        last = status.worst(ranks)
        why = f"; {last.stuck.message}" if last is not None and last.stuck is not None else ""
        message = f"{left} of {len(ranks)} learners are left, fewer than runPolicy.minLearners {least}{why}"
        return Outcome(succeeded=False, reason="TooFewLearners", message=message)
    return None


def _deadline(situation: Situation) -> datetime | None:
    seconds = situation.spec.run_policy.active_deadline_seconds
    if seconds is None:
        return None
    start = times.read(situation.run.status.get("startTime")) or situation.now
    return start + timedelta(seconds=seconds)


def _pods(
    situation: Situation, ranks: Sequence[Learner], stranded: Sequence[Learner]
) -> tuple[tuple[Manifest, ...], tuple[DeletePod, ...]]:
    """The learners' pods that are missing, and those that have ended, are stranded, or whose rank has left the plan."""
    create = tuple(
        manifests.learner_pod(
            situation.document,
            situation.owner,
            situation.plan,
            learner.rank,
            attempt=learner.tally.failures,
            created=situation.now,
            settings=situation.settings,
        )
        for learner in ranks
        if learner.create
    )
    ended_pods = [each.pod for each in ranks if (each.delete or each in stranded) and each.pod is not None]
    planned = {learner.name for learner in ranks}
    surplus = [pod for pod in situation.pods.values() if pod.name not in planned and not pod.deleting]
    return create, tuple(DeletePod(name=pod.name, uid=pod.uid) for pod in (*ended_pods, *surplus))


def _annotations(situation: Situation, ranks: list[Learner]) -> tuple[AnnotatePod, ...]:
    """Tells the kubelets of pods that know an older plan: they then refresh the mounted one at once."""
    epoch = situation.plan.epoch
    return tuple(
        AnnotatePod(name=pod.name, uid=pod.uid, annotations={names.ANNOTATION_PLAN_EPOCH: str(epoch)})
        for pod in (learner.pod for learner in ranks)
        if pod is not None and not pod.deleting and pod.phase in ("Pending", "Running") and pod.plan_epoch < epoch
    )
