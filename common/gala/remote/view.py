"""From a GalaRun, as a cluster delivers it, to what is shown: the table of `gala run`, a list, the details. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gala import answers
from gala.algorithms import GALA_A2C
from gala.local.table import LearnerRow, Snapshot, count, decimal, duration, shape
from gala.status_schema import ENDED

HINT: Final = "Ctrl-C ends the watching, not the run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A GalaRun with its status; whatever is missing or foreign reads as nothing."""

    name: str
    namespace: str
    uid: str
    generation: int
    created: datetime | None
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Run:
        """From the API server's JSON."""
        metadata = _mapping(document, "metadata")
        return cls(
            name=_text(metadata, "name"),
            namespace=_text(metadata, "namespace"),
            uid=_text(metadata, "uid"),
            generation=int(_number(metadata, "generation") or 0),
            created=_time(metadata, "creationTimestamp"),
            spec=_mapping(document, "spec"),
            status=_mapping(document, "status"),
        )

    @property
    def algorithm(self) -> str:
        """Its name; an API server fills in the default."""
        return _text(self.spec, "algorithm") or GALA_A2C

    @property
    def state(self) -> str:
        """The operator's word; `Pending` before it has said one."""
        return _text(self.status, "state") or "Pending"

    @property
    def message(self) -> str:
        """Why it is so, in one sentence; may be empty."""
        return _text(self.status, "message")

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self.state in ENDED

    @property
    def seen(self) -> bool:
        """Whether an operator has looked at the spec as it is now."""
        return (_number(self.status, "observedGeneration") or 0) >= max(1, self.generation)

    @property
    def refusal(self) -> str | None:
        """Why the operator does not accept the spec as it is now; None while it does."""
        accepted = self.condition("Accepted")
        if not self.seen or _text(accepted, "status") != "False":
            return None
        return _text(accepted, "message") or _text(accepted, "reason") or "the operator does not accept it"

    @property
    def failure(self) -> str:
        """Of a run that has failed: `ScoreTooLow: ...`."""
        failed = self.condition("Failed")
        reason, message = _text(failed, "reason"), _text(failed, "message") or self.message
        return ": ".join(part for part in (reason, message) if part) or "no reason is given"

    @property
    def stuck(self) -> str:
        """What keeps pods from being ready, as one word; empty when nothing does."""
        ready = self.condition("PodsReady")
        return _text(ready, "reason") if _text(ready, "status") == "False" else ""

    @property
    def final_model(self) -> Mapping[str, Any]:
        """Empty before there is one."""
        return _mapping(self.status, "finalModel")

    @property
    def learner_statuses(self) -> list[Mapping[str, Any]]:
        """One for each learner that the operator knows, by rank."""
        return sorted(_objects(self.status, "learnerStatuses"), key=lambda learner: _number(learner, "rank") or 0)

    @property
    def conditions(self) -> list[Mapping[str, Any]]:
        """All of them, in the operator's order."""
        return _objects(self.status, "conditions")

    def condition(self, kind: str) -> Mapping[str, Any]:
        """One of them; empty if it is not there."""
        return next((condition for condition in self.conditions if condition.get("type") == kind), {})

    def wall_seconds(self, now: datetime) -> float:
        """Since the run became active, until its end."""
        start, end = _time(self.status, "startTime"), _time(self.status, "completionTime")
        return max(0.0, ((end or now) - start).total_seconds()) if start else 0.0


def snapshot(run: Run, now: datetime) -> Snapshot:
    """The run as the table of `gala run` shows it."""
    known = run.learner_statuses
    asked = int(_number(run.spec, "learners") or 0)
    rows = [_row(learner) for learner in known] or [LearnerRow(rank=rank, state="pending") for rank in range(asked)]
    topology = _text(_mapping(run.spec, "topology"), "type") or "Ring"
    return Snapshot(
        name=run.name,
        environment=_text(_mapping(run.spec, "environment"), "id"),
        topology=shape(run.algorithm, topology, asked),
        learners=rows,
        global_steps=int(_number(run.status, "steps") or 0),
        total_steps=int(_number(run.spec, "totalSteps") or 0),
        wall_seconds=run.wall_seconds(now),
        note="" if run.state == "Running" else (f"{run.state}: {run.message}" if run.message else run.state),
        hint=HINT,
    )


def failures(run: Run) -> dict[int, tuple[int, str]]:
    """By rank: how often the learner has failed, and how the last time."""
    found = {}
    for learner in run.learner_statuses:
        last = _mapping(learner, "lastFailure")
        why = ": ".join(part for part in (_text(last, "reason"), _text(last, "message")) if part)
        found[int(_number(learner, "rank") or 0)] = (int(_number(learner, "failures") or 0), why)
    return found


def listing(runs: Sequence[Run], now: datetime, *, namespaces: bool = False) -> str:
    """One line a run, like kubectl's."""
    rows = [("NAMESPACE", "NAME", "STATE", "READY", "STEPS", "STEPS/S", "RETURN", "ENVIRONMENT", "AGE")]
    rows += [
        (
            run.namespace,
            run.name,
            run.state,
            _ready(run),
            count(_number(run.status, "steps")),
            count(_number(run.status, "stepsPerSecond")),
            decimal(_number(run.status, "meanReturn")),
            _text(_mapping(run.spec, "environment"), "id"),
            duration((now - run.created).total_seconds()) if run.created else "-",
        )
        for run in sorted(runs, key=lambda run: (run.namespace, run.name))
    ]
    return _columns([row if namespaces else row[1:] for row in rows])


def details(run: Run, now: datetime, options: str = "") -> str:
    """Everything that is known of a run, for people. `options`: of the commands that it names, `Cluster.options`."""
    shown = snapshot(run, now)
    total = f"{shown.global_steps:,} of {shown.total_steps:,} decisions"
    share = min(1.0, shown.global_steps / max(1, shown.total_steps))
    setup = shown.topology if shown.topology.startswith(run.algorithm) else f"{run.algorithm}, {shown.topology}"
    lines = [
        f"{run.name}: {run.state}" + (f", {run.message}" if run.message else ""),
        f"  environment  {shown.environment}, {setup}",
        f"  learners     {_ready(run)} ready",
        f"  progress     {total} ({share:.1%}), {count(_number(run.status, 'stepsPerSecond'))}/s, "
        f"return {decimal(_number(run.status, 'meanReturn'))}",
        f"  active for   {duration(shown.wall_seconds)}",
    ]
    if not run.seen:
        lines.append("  the operator has not looked at the present spec yet")
    model = run.final_model
    if model:
        lines.append(
            f"  final model  mean return {decimal(_number(model, 'meanReturn'))} greedy, "
            f"{decimal(_number(model, 'sampledMeanReturn'))} sampled; gala fetch {run.name}{options}"
        )
    if run.conditions:
        table = [("CONDITION", "STATUS", "REASON", "MESSAGE")]
        table += [
            tuple(_text(condition, key) for key in ("type", "status", "reason", "message"))  # type: ignore[misc]
            for condition in run.conditions
        ]
        lines += ["", _columns(table)]
    if run.learner_statuses:
        lines += ["", _columns(_learner_table(run))]
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def _learner_table(run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("LEARNER", "STATE", "STEPS", "STEPS/S", "RETURN", "STALENESS", "FAILURES", "LAST FAILURE")
    ]
    last = failures(run)
    for row in (_row(learner) for learner in run.learner_statuses):
        rows.append(
            (
                str(row.rank),
                row.state,
                count(row.steps),
                count(row.steps_per_second),
                decimal(row.mean_return),
                count(row.staleness),
                str(row.restarts),
                last[row.rank][1],
            )
        )
    return rows


def _row(learner: Mapping[str, Any]) -> LearnerRow:
    steps, staleness = _number(learner, "steps"), _number(learner, "staleness")
    return LearnerRow(
        rank=int(_number(learner, "rank") or 0),
        state=_text(learner, "state") or "pending",
        steps=None if steps is None else int(steps),
        steps_per_second=_number(learner, "stepsPerSecond"),
        mean_return=_number(learner, "meanReturn"),
        staleness=None if staleness is None else int(staleness),
        disagreement=_number(learner, "disagreement"),
        restarts=int(_number(learner, "failures") or 0),
    )


def _ready(run: Run) -> str:
    ready, asked = _number(run.status, "readyLearners") or 0, _number(run.spec, "learners") or 0
    return _text(run.status, "ready") or f"{ready:.0f}/{asked:.0f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _text(record: Mapping[str, Any], key: str) -> str:
    return " ".join(answers.text(record.get(key)).split())


def _number(record: Mapping[str, Any], key: str) -> float | None:
    return answers.number(record.get(key))


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return answers.mapping(record.get(key))


def _objects(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return answers.items(record.get(key))


def _time(record: Mapping[str, Any], key: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(_text(record, key))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
