"""The tables and the small print of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import yaml

from gala.report import formats, ring
from gala.report.ball import Ball, pairwise_bound, radius
from gala.report.canvas import swatch_class
from gala.report.facts import LearnerFacts, RunFacts, Score, scores, seed_groups
from gala.report.markup import escape, folded, note, table
from gala.report.read import Record, Run, mapping, number, text

MAX_EVENTS = 200
MAX_EDGES = 256
QUIET_EVENTS = frozenset({"checkpoint", "ring"})
"""Too frequent for the list of events; the timeline shows them."""


def learners(run: Run, facts: Sequence[LearnerFacts]) -> str:
    """A row per learner: what it did, and what crossed the wire."""
    return _gossiping(facts) if run.gossips else _exchanging(facts)


def _exchanging(facts: Sequence[LearnerFacts]) -> str:
    head = (
        "Rank", "State", "Role", "Decisions", "Share", "Decisions/s", "Updates", "Return", "Staleness",
        "Exchange time", "Restarts",
    )  # fmt: skip
    rows = [
        (
            str(one.rank),
            _state(one),
            one.role,
            formats.compact(one.steps),
            formats.percent(one.share),
            formats.compact(one.steps_per_second),
            formats.compact(one.updates),
            formats.score(one.mean_return),
            formats.compact(one.staleness_updates),
            formats.percent(one.gossip_share, 1),
            str(one.restarts),
        )
        for one in facts
    ]
    return table(head, rows) + note(
        "Last values; decisions/s: mean over the whole run. Staleness in updates. Exchange time: on the learner's own "
        "thread, waiting for others included, of its running time."
    )


def _state(facts: LearnerFacts) -> str:
    return facts.state + (f" ({facts.unreadable_lines} unreadable lines)" if facts.unreadable_lines else "")


def _gossiping(facts: Sequence[LearnerFacts]) -> str:
    head = (
        "Rank", "State", "Decisions", "Share", "Decisions/s", "Updates", "Return", "Staleness",
        "‖x − m‖", "‖x − m‖ / ‖x‖", "Mixed after", "Gossip time", "Restarts",
    )  # fmt: skip
    rows = [
        (
            str(one.rank),
            _state(one),
            formats.compact(one.steps),
            formats.percent(one.share),
            formats.compact(one.steps_per_second),
            formats.compact(one.updates),
            formats.score(one.mean_return),
            formats.compact(one.staleness_updates),
            formats.compact(one.disagreement),
            formats.percent(one.relative_disagreement, 2),
            formats.percent(one.mixing_share),
            formats.percent(one.gossip_share, 1),
            str(one.restarts),
        )
        for one in facts
    ]
    return table(head, rows) + note(
        "Last values; decisions/s: mean over the whole run. Staleness in updates. Mixed after: of the updates after "
        "which a learner could mix, those after which every live neighbour had sent something new. Gossip time: on the "
        "learner's own thread, of its running time."
    )


def ball_note(facts: RunFacts, ball: Ball | None) -> str:
    """The epsilon-ball in numbers; "" if there is no bound or nothing measured."""
    measured = [one.disagreement for one in facts.learners if one.disagreement > 0]
    if ball is None or not measured:
        return ""
    limit = ball.bound.last
    # The bound is proportional to the update norm.
    update = limit / pairwise_bound(ball.num_learners, 1.0, ball.beta, ball.period)
    within = radius(ball.num_learners, update, ball.beta, ball.period)
    return note(
        f"ε-ball: with β = {ball.beta:.3f} and local updates of at most {formats.compact(update)}, synchronous gossip "
        f"keeps the {ball.num_learners} learners together within {formats.compact(within)} of their common mean "
        f"(Frobenius norm), and ‖x − m‖ before a mixing below {formats.compact(limit)}. The largest last measurement "
        f"is {formats.compact(max(measured))}: {formats.percent(max(measured) / limit)} of that."
    )


def edges(run: Run) -> str:
    """A row per directed edge; "" if no learner has reported any."""
    found = ring.edges(run)
    if not any(edge.sender_state or edge.receiver_state for edge in found):
        return ""
    rows = [
        (
            f"{edge.source} → {edge.target}",
            edge.state if edge.planned else f"{edge.state}, not in the plan",
            formats.count(edge.sent),
            formats.count(edge.received),
            formats.size(edge.bytes),
            formats.count(edge.replaced),
            formats.count(edge.refused),
        )
        for edge in found[:MAX_EDGES]
    ]
    head = ("Edge", "State", "Messages sent", "Received", "Bytes", "Replaced", "Refused")
    return folded(f"Edges ({len(found)})", table(head, rows) + _left_out(len(found), MAX_EDGES))


def events(run: Run) -> str:
    """The events of all learners in the order of time, without the frequent ones; "" if there are none."""
    found = [(number(event, "wallSeconds"), one.rank, event) for one in run.learners for event in one.events]
    found = [entry for entry in found if text(entry[2], "event") not in QUIET_EVENTS]
    if not found:
        return ""
    found.sort(key=lambda entry: (math.inf if math.isnan(entry[0]) else entry[0], entry[1]))
    rows = [
        (
            formats.duration(wall),
            text(event, "event"),
            str(rank),
            formats.moment(number(event, "time")),
            _details(event),
        )
        for wall, rank, event in found[-MAX_EVENTS:]
    ]
    head = ("Wall-clock", "Event", "Learner", "Time", "Details")
    return folded(f"Events ({len(found)})", table(head, rows) + _left_out(len(found), MAX_EVENTS))


def _details(event: Record) -> str:
    known = {"kind", "time", "wallSeconds", "rank", "incarnation", "event"}
    return ", ".join(f"{key} {_short(str(value))}" for key, value in event.items() if key not in known)


def _short(value: str) -> str:
    return value if len(value) <= 120 else f"{value[:120]}…"


def _left_out(total: int, limit: int) -> str:
    return note(f"{total - limit} more are left out.") if total > limit else ""


def spec(run: Run) -> str:
    """The run's document as YAML; "" if there is none."""
    document: dict[str, Any] = dict(run.document) or ({"spec": dict(run.spec)} if run.spec else {})
    if not document:
        return ""
    if isinstance(document.get("spec"), dict):
        document["spec"] = without_secrets(document["spec"])
    shown = yaml.safe_dump(_plain(document), sort_keys=False, allow_unicode=True, width=100)
    return folded("Spec", f"<pre>{escape(shown)}</pre>")


def without_secrets(spec: Record) -> dict[str, Any]:
    """The spec without the values of environment variables: reports are passed around, tokens must not be."""
    hidden = "(not shown)"
    result = dict(spec)
    worker = dict(mapping(spec, "worker"))
    if worker.get("env"):
        variables = worker["env"] if isinstance(worker["env"], list) else []
        names = [{"name": text(variable, "name"), "value": hidden} for variable in variables]
        result["worker"] = {**worker, "env": names or hidden}
    if worker.get("podTemplate"):
        # Free-form: environment variables may be anywhere in it.
        result["worker"] = {**mapping(result, "worker"), "podTemplate": hidden}
    return result


def _plain(value: object) -> Any:
    """What yaml can write, whatever was read."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def origin(run: Run) -> str:
    """Versions, the run's uid and its folder."""
    uid = text(run.state, "uid") or text(run.plan, "runUid") or text(run.card, "uid")
    versions = mapping(run.card, "versions")
    parts = [f"{name} {version}" for name, version in versions.items() if isinstance(version, str)]
    return note(" · ".join([*parts, *([f"run {uid}"] if uid else []), str(run.directory)]))


def comparison(runs: Sequence[Run], facts: Sequence[RunFacts], labels: Sequence[str]) -> str:
    """A row per run: where it stands, how fast it was, what it scored."""
    head = [
        "Run", "State", "Environment", "Learners", "Seed", "Decisions", "Wall-clock", "Decisions/s", "Training return",
        "Greedy", "Sampled", "Of human",
    ]  # fmt: skip
    one_environment = len({run.environment for run in runs}) == 1
    rows = []
    for run, fact, label in zip(runs, facts, labels, strict=True):
        greedy, sampled = fact.scores.get("greedy"), fact.scores.get("sampled")
        best = greedy or sampled
        rows.append(
            [
                label,
                fact.state,
                run.environment or formats.DASH,
                str(run.num_learners),
                str(run.spec.get("seed", formats.DASH)),
                formats.compact(fact.global_steps),
                formats.duration(fact.wall_seconds),
                formats.compact(fact.steps_per_second),
                formats.score(fact.mean_return),
                _score(greedy),
                _score(sampled),
                formats.percent(best.human_normalised) if best else formats.DASH,
            ]
        )
    if one_environment:  # the page's head says which
        for row in (head, *rows):
            del row[2]
    return table(head, rows, [swatch_class(i) for i in range(len(runs))]) + note(
        "Decisions of all learners together, per second over the whole time of training. Training return: last 100 "
        "episodes, mean of the learners. Greedy and sampled: raw scores of the final model, mean ± standard deviation "
        "over episodes; * of the latest evaluation, while there is no final model. Of human: the greedy score, "
        "human-normalised."
    )


def _score(score: Score | None) -> str:
    if score is None:
        return formats.DASH
    deviation = "" if math.isnan(score.deviation) else f" ± {formats.score(score.deviation)}"
    return f"{formats.score(score.mean)}{deviation}{'' if score.final else '*'}"


def seeds(runs: Sequence[Run]) -> str:
    """Final scores over runs that differ in nothing but the seed; "" if there are no such runs."""
    rows = []
    for group in seed_groups(runs):
        for mode in ("greedy", "sampled"):
            ended = [(run.name, score.mean) for run in group if (score := scores(run).get(mode)) and score.final]
            if len(ended) > 1:
                names, means = zip(*ended, strict=True)
                row = (", ".join(names), mode, str(len(ended)), formats.score(mean(means)), formats.score(stdev(means)))
                rows.append(row)
    head = ("Runs that differ in the seed only", "Mode", "Runs", "Mean final score", "Standard deviation")
    return f"<h3>Over seeds</h3>{table(head, rows)}" if rows else ""
