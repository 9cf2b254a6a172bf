"""The numbers of the report's tables, computed from what was read. Pure; NaN where nothing is known."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gala.report.read import Learner, Record, Run, integer, mapping, number, text

RECENT_RECORDS = 12
"""Train records that count as "now": about a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One evaluation's outcome."""

    mode: str
    mean: float
    deviation: float
    episodes: int | None
    human_normalised: float
    global_steps: int | None
    final: bool
    """Of the averaged final model, rather than the last of the periodic ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerFacts:
    """A row of the per-learner table."""

    rank: int
    role: str
    state: str
    updates: float
    steps: float
    share: float
    """Of all learners' decisions."""
    steps_per_second: float
    """Over its whole running time."""
    mean_return: float
    disagreement: float
    relative_disagreement: float
    staleness_updates: float
    mixing_share: float
    """Of the updates after which it could mix, those after which it did."""
    gossip_share: float
    """Of its running time, what gossip took on the learner thread."""
    restarts: int
    unreadable_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run in one look."""

    state: str
    global_steps: int
    total_steps: int | None
    wall_seconds: float
    """From the first to the last train record, without stops of the whole run."""
    steps_per_second: float
    """Of all learners together, over the whole running time."""
    mean_return: float
    """Mean over learners of the last mean training return."""
    updated: float
    """Unix seconds of the newest record."""
    scores: dict[str, Score]
    learners: tuple[LearnerFacts, ...]


def run_facts(run: Run) -> RunFacts:
    """Everything the header and the tables say about a run."""
    total = sum(_finite(number(learner.last, "steps")) for learner in run.learners)
    learners = tuple(_learner_facts(learner, run.role(learner.rank), total) for learner in run.learners)
    # The launcher's wallSeconds holds starting up and the final evaluation as well.
    walls = [number(one.last, "wallSeconds") for one in run.learners]
    wall = max((value for value in walls if not math.isnan(value)), default=math.nan)
    returns = [one.mean_return for one in learners if not math.isnan(one.mean_return)]
    times = [
        number(r, "time") for one in run.learners for r in (*one.train[-1:], *one.events[-1:], *one.evaluations[-1:])
    ]
    return RunFacts(
        state=run_state(run),
        global_steps=run.global_steps,
        total_steps=integer(run.spec, "totalSteps"),
        wall_seconds=wall,
        steps_per_second=run.global_steps / wall if wall > 0 and run.global_steps else math.nan,
        mean_return=sum(returns) / len(returns) if returns else math.nan,
        updated=max((time for time in times if not math.isnan(time)), default=math.nan),
        scores=scores(run),
        learners=learners,
    )


def run_state(run: Run) -> str:
    """What the launcher recorded, or what the files say by themselves."""
    recorded = text(run.state, "state")
    # The launcher writes the report as its last act but one: by then the final model is there, "finished" is not.
    done = integer(run.card, "globalSteps")
    if done is not None and done >= (integer(run.spec, "totalSteps") or 0) and recorded in ("", "running"):
        return "finished"
    if recorded:
        return recorded
    return "unknown" if any(one.train or one.events for one in run.learners) else "no data yet"


def scores(run: Run) -> dict[str, Score]:
    """The final model's score by mode, or the last periodic evaluation's while the run has not ended."""
    found: dict[str, Score] = {}
    for mode, records in evaluation_records(run).items():
        if records:
            found[mode] = _score(mode, records[-1])
    return found


def evaluation_records(run: Run) -> dict[str, list[Record]]:
    """Evaluations by mode, ascending in global steps: the last of repeated ones, and the final model's."""
    found: dict[str, dict[int, Record]] = {"greedy": {}, "sampled": {}}
    for record in run.evaluations:
        steps = integer(record, "globalSteps")
        if text(record, "mode") in found and steps is not None and not math.isnan(number(record, "meanReturn")):
            found[text(record, "mode")][steps] = record
    for mode, record in final_evaluation(run).items():
        found[mode][integer(record, "globalSteps") or 0] = record
    return {mode: [by_steps[steps] for steps in sorted(by_steps)] for mode, by_steps in found.items()}


def final_evaluation(run: Run) -> dict[str, Record]:
    """The final model's evaluation by mode, from the card; without those it lacks."""
    result: dict[str, Record] = {}
    for mode in ("greedy", "sampled"):
        record = mapping(run.card, "evaluation", mode)
        if not math.isnan(number(record, "meanReturn")):
            steps = integer(run.card, "globalSteps")
            result[mode] = {
                **record, "globalSteps": run.global_steps if steps is None else steps, "mode": mode, "final": True
            }  # fmt: skip
    return result


def frames_per_decision(run: Run) -> int | None:
    """Emulator frames per agent decision: 4 for Atari unless the spec says otherwise; None where there are none."""
    if not run.environment.removeprefix("ale_py:").startswith("ALE/"):
        return None
    return integer(run.spec, "environment", "kwargs", "frameskip") or 4


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose specs differ in nothing but the seed, in groups of at least two."""
    groups: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.spec:
            spec = {key: value for key, value in run.spec.items() if key != "seed"}
            groups[json.dumps(spec, sort_keys=True, default=str)].append(run)
    return [group for group in groups.values() if len({integer(run.spec, "seed") for run in group}) > 1]


def _learner_facts(learner: Learner, role: str, total_steps: float) -> LearnerFacts:
    last, gossip = learner.last, mapping(learner.last, "gossip")
    steps = number(last, "steps")
    mixes, skips = number(gossip, "mixes"), number(gossip, "skips")
    running, gossiping = _running_seconds(learner)
    recent = [number(record, "meanReturn") for record in learner.train[-RECENT_RECORDS:]]
    return LearnerFacts(
        rank=learner.rank,
        role=role,
        state=_learner_state(learner),
        updates=number(last, "updates"),
        steps=steps,
        share=steps / total_steps if total_steps else math.nan,
        steps_per_second=_mean_speed(learner),
        mean_return=next((value for value in reversed(recent) if not math.isnan(value)), math.nan),
        disagreement=number(gossip, "disagreement"),
        relative_disagreement=number(gossip, "relativeDisagreement"),
        staleness_updates=number(gossip, "stalenessUpdates"),
        mixing_share=mixes / (mixes + skips) if mixes + skips > 0 else math.nan,
        gossip_share=gossiping / running if running > 0 else math.nan,
        restarts=max(len(learner.incarnations) - 1, 0),
        unreadable_lines=learner.unreadable_lines,
    )


def _learner_state(learner: Learner) -> str:
    last_event = next((e for e in reversed(learner.events) if text(e, "event") in ("finished", "stopped", "left")), {})
    trained_after = number(learner.last, "time") > number(last_event, "time")
    if last_event and not trained_after:
        return text(last_event, "event")
    return "training" if learner.train else "no data yet"


def _running_seconds(learner: Learner) -> tuple[float, float]:
    """(seconds of training, seconds of those in gossip on the learner thread), over all of its lives."""
    running = gossiping = 0.0
    for before, after in itertools.pairwise(learner.train):
        if integer(before, "incarnation") != integer(after, "incarnation"):
            continue
        passed = number(after, "wallSeconds") - number(before, "wallSeconds")
        spent = number(after, "gossip", "seconds") - number(before, "gossip", "seconds")
        if passed > 0 and spent >= 0:
            running, gossiping = running + passed, gossiping + spent
    return running, gossiping


def _mean_speed(learner: Learner) -> float:
    speeds = [number(record, "stepsPerSecond") for record in learner.train]
    known = [speed for speed in speeds if not math.isnan(speed)]
    return sum(known) / len(known) if known else math.nan


def _score(mode: str, record: Record) -> Score:
    return Score(
        mode=mode,
        mean=number(record, "meanReturn"),
        deviation=number(record, "stdReturn"),
        episodes=integer(record, "episodes"),
        human_normalised=number(record, "humanNormalised"),
        global_steps=integer(record, "globalSteps"),
        final=record.get("final") is True,
    )


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else value
