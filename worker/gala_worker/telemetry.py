"""What a learner knows about itself: the record that goes to metrics.jsonl and the answer to /status.

Place in the flow: the learner thread notes every update here, which is a few additions, and builds a record every few
seconds. `metrics` writes the records; `http` serves the last status.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gala_worker.algorithms.a2c import Update
from gala_worker.environments import Episode
from gala_worker.gossip.peer import GossipStats, Mixing
from gala_worker.state import Counters

EPISODES_IN_MEAN = 100
"""`meanReturn` is over the last 100 real episodes of this learner: the usual training curve."""


class Telemetry:
    """Belongs to the learner thread, except `status`, which any thread may call."""

    def __init__(
        self, *, run: str, rank: int, incarnation: int, total_steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = {"rank": rank, "incarnation": incarnation}
        self._run = run
        self._total_steps = total_steps
        self._clock = clock
        self._returns: deque[float] = deque(maxlen=EPISODES_IN_MEAN)
        self._lengths: deque[int] = deque(maxlen=EPISODES_IN_MEAN)
        self._mixes = 0
        self._skips = 0
        self._mixing: Mixing | None = None
        self._update: Update | None = None
        self._update_norm: float | None = None
        self._last_rate = (clock(), 0)
        self._status: dict[str, Any] = {}
        self.evaluation: dict[str, Any] | None = None

    def start(self, counters: Counters) -> None:
        """From here on decisions per second are counted."""
        self._last_rate = (self._clock(), counters.steps)

    def note_update(self, update: Update, mixing: Mixing | None, *, offered: bool) -> None:
        """After every update; `offered` says whether a mixing was due."""
        self._update = update
        if update.step.update_norm is not None:
            self._update_norm = update.step.update_norm
        if mixing is not None:
            self._mixing = mixing
            self._mixes += 1
        elif offered:
            self._skips += 1

    def note_episodes(self, episodes: Sequence[Episode], counters: Counters) -> None:
        """Real episodes that ended."""
        counters.episodes += len(episodes)
        for episode in episodes:
            self._returns.append(episode.return_)
            self._lengths.append(episode.steps)

    def record(self, counters: Counters, stats: GossipStats, parameters: Tensor) -> dict[str, Any]:
        """A `train` record of metrics.jsonl; `parameters` [P] is only measured."""
        now = self._clock()
        then, steps_then = self._last_rate
        self._last_rate = (now, counters.steps)
        record: dict[str, Any] = {
            **self._fixed,
            "epoch": counters.epoch,
            "updates": counters.updates,
            "steps": counters.steps,
            "globalSteps": counters.global_steps,
            "stepsPerSecond": (counters.steps - steps_then) / max(now - then, 1e-9),
            "meanReturn": _mean(self._returns),
            "episodes": counters.episodes,
            "meanEpisodeSteps": _mean(self._lengths),
            "parameterNorm": float(parameters.norm()),
            "updateNorm": self._update_norm,
            "gossip": self._gossip(stats),
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

    def publish(self, state: str, record: dict[str, Any], stats: GossipStats) -> None:
        """Replaces the answer to /status."""
        gossip = record["gossip"]
        kept = ("rank", "incarnation", "epoch", "updates", "steps", "globalSteps", "stepsPerSecond", "meanReturn", "episodes")
        self._status = {
            "run": self._run,
            "state": state,
            **{key: record[key] for key in kept},
            "totalSteps": self._total_steps,
            "stalenessUpdates": gossip["stalenessUpdates"],
            "disagreement": gossip["disagreement"],
            "relativeDisagreement": gossip["relativeDisagreement"],
            "inPeers": list(stats.in_peers),
            "outPeers": list(stats.out_peers),
            "evaluation": self.evaluation,
        }

    def status(self, state: str) -> dict[str, Any]:
        """The answer to /status, as of the last `publish`."""
        status = self._status or {"run": self._run, **self._fixed, "totalSteps": self._total_steps}
        return {**status, "state": state}

    def _gossip(self, stats: GossipStats) -> dict[str, Any]:
        mixing = self._mixing
        return {
            "mixes": self._mixes,
            "skips": self._skips,
            "seconds": stats.learner_seconds,
            "stalenessUpdates": None if mixing is None else mixing.staleness_updates,
            "stalenessSeconds": None if mixing is None else mixing.staleness_seconds,
            "disagreement": None if mixing is None else mixing.disagreement,
            "relativeDisagreement": None if mixing is None else mixing.relative_disagreement,
            "edges": [edge.document() for edge in stats.edges],
        }


def _mean(values: Sequence[float] | deque[float] | deque[int]) -> float | None:
    return sum(values) / len(values) if values else None
