"""What a learner knows about itself: the records of metrics.jsonl and the answer to /status.

Place in the flow: the learner thread notes every update here, which costs next to nothing, and builds a record every
few seconds. `metrics` writes the records, `http` serves the last status.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from torch import Tensor

from gala import names
from gala_worker.algorithms.a2c import Update
from gala_worker.environments import Episode
from gala_worker.gossip.stats import GossipStats
from gala_worker.state import Counters

EPISODES_IN_MEAN: Final = 100
"""`meanReturn` is over the last 100 real episodes of this learner: the usual training curve."""

_RATE_HALF_LIFE_SECONDS: Final = 5.0


class Telemetry:
    """Belongs to the learner thread, except `status`, which any thread may call."""

    def __init__(
        self,
        *,
        run: str,
        uid: str,
        rank: int,
        incarnation: int,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`run` and `uid` are the plan's."""
        self._identity = {"run": run, names.STATUS_UID: uid, "rank": rank, "incarnation": incarnation}
        self.total_steps = total_steps
        """Of the run, as the newest plan has it."""
        self._clock = clock
        self._returns: deque[float] = deque(maxlen=EPISODES_IN_MEAN)
        self._lengths: deque[float] = deque(maxlen=EPISODES_IN_MEAN)
        self._update: Update | None = None
        self._update_norm: float | None = None
        self._last: tuple[float, int] | None = None
        self._rate: float | None = None
        self._status: dict[str, Any] = {}
        self.state = "starting"
        """starting, training, waiting, stopping or finished."""
        self.evaluation: dict[str, Any] | None = None
        """The last one: globalSteps, mode, meanReturn. Set by the evaluation's thread."""

    def note_update(self, update: Update | None, episodes: Sequence[Episode], counters: Counters) -> None:
        """After every step, with the update if there was one and the real episodes that ended during its rollout."""
        if update is not None:
            self._update = update
            if update.step.update_norm is not None:
                self._update_norm = update.step.update_norm
        counters.episodes += len(episodes)
        for episode in episodes:
            self._returns.append(episode.return_)
            self._lengths.append(episode.steps)

    def publish(self, counters: Counters, stats: GossipStats) -> None:
        """Replaces the answer to /status; call it about once a second."""
        self._measure_rate(counters.steps)
        self._status = {
            "epoch": counters.epoch,
            "updates": counters.updates,
            "skippedUpdates": counters.skipped_updates,
            "steps": counters.steps,
            "globalSteps": counters.global_steps,
            "totalSteps": self.total_steps,
            "stepsPerSecond": self._rate or 0.0,
            "meanReturn": _mean(self._returns),
            "episodes": counters.episodes,
            "stalenessUpdates": stats.staleness_updates,
            "stalenessMaxUpdates": stats.staleness_max_updates,
            "disagreement": stats.disagreement,
            "relativeDisagreement": stats.relative_disagreement,
            "inPeers": list(stats.in_peers),
            "outPeers": list(stats.out_peers),
        }

    def status(self) -> dict[str, Any]:
        """The answer to /status."""
        return {**self._identity, **self._status, "state": self.state, "evaluation": self.evaluation}

    def record(self, counters: Counters, stats: GossipStats, parameters: Tensor) -> dict[str, Any]:
        """A `train` record of metrics.jsonl; `parameters` [P] is only measured."""
        mixed = stats.mixes > 0
        record: dict[str, Any] = {
            "epoch": counters.epoch,
            "updates": counters.updates,
            "skippedUpdates": counters.skipped_updates,
            "steps": counters.steps,
            "globalSteps": counters.global_steps,
            "stepsPerSecond": self._rate,
            "meanReturn": _mean(self._returns),
            "episodes": counters.episodes,
            "meanEpisodeSteps": _mean(self._lengths),
            "updateNorm": self._update_norm,
            "parameterNorm": float(parameters.norm()),
            "cpuSeconds": time.process_time(),
            "gossip": {
                "mixes": stats.mixes,
                "skips": stats.skips,
                "seconds": stats.seconds,
                "waitedSeconds": stats.waited_seconds,
                "stalenessUpdates": stats.staleness_updates if mixed else None,
                "stalenessMaxUpdates": stats.staleness_max_updates if mixed else None,
                "stalenessSeconds": stats.staleness_seconds if mixed else None,
                "disagreement": stats.disagreement if mixed else None,
                "relativeDisagreement": stats.relative_disagreement if mixed else None,
                "weight": stats.weight,
                "strangers": stats.strangers,
                "edges": [asdict(edge) for edge in stats.edges],
            },
        }
        if self._update is not None:
            loss = self._update.loss
            record |= {
                "policyLoss": float(loss.policy),
                "valueLoss": float(loss.value),
                "entropy": float(loss.entropy),
                "gradientNorm": self._update.step.gradient_norm,
                "learningRate": self._update.learning_rate,
            }
        return record

    def _measure_rate(self, steps: int) -> None:
        """Decisions per second, smoothed so that a single late update does not show."""
        now = self._clock()
        if self._last is not None and now > self._last[0]:
            elapsed = now - self._last[0]
            rate = (steps - self._last[1]) / elapsed
            weight = 1.0 if self._rate is None else 1.0 - 0.5 ** (elapsed / _RATE_HALF_LIFE_SECONDS)
            self._rate = rate if self._rate is None else self._rate + weight * (rate - self._rate)
        self._last = (now, steps)


def _mean(values: deque[float]) -> float | None:
    return sum(values) / len(values) if values else None
