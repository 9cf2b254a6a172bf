"""Run directories as the launcher and the workers leave them, made up for the tests of reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

LINKS = (("out", "open", 1), ("in", "live", -1))
STARTED = 1_750_000_000.0
FILES = ("galarun.yaml", "plan.json", "run.json", "final/card.json")


class SyntheticRun:
    """A run directory as the launcher and the workers leave it."""

    def __init__(
        self,
        root: Path,
        name: str = "pong",
        *,
        learners: int = 4,
        seconds: float = 600,
        interval: float = 5,
        seed: int = 1,
        environment: str = "ALE/Pong-v5",
        finished: bool = True,
        speed: float = 600,
        crash: tuple[int, float, float] | None = None,
    ) -> None:
        """`crash` = (rank, from, to): a learner that is away for that time, in wall-clock seconds."""
        self.directory = root / name
        self.learners = learners
        self.crash = crash
        self._random = random.Random(f"{name}{seed}")
        self._total = int(speed * seconds * learners)
        self.spec: dict[str, Any] = {
            "algorithm": "GALA-A2C",
            "environment": {"id": environment, "simulators": 16, "preset": "paper", "kwargs": {}},
            "learners": learners,
            "totalSteps": self._total,
            "seed": seed,
            "topology": {"type": "Ring", "peers": 1},
            "gossip": {"everyUpdates": 1, "maxStaleness": None, "precision": "float32", "peerTimeoutSeconds": 30},
        }
        document = {"apiVersion": "gala.dev/v1alpha1", "kind": "GalaRun", "metadata": {"name": name}, "spec": self.spec}
        plan = {
            "format": 1,
            "runName": name,
            "runUid": f"uid-{name}",
            "epoch": 0,
            "learners": [
                {"rank": i, "outPeers": [(i + 1) % learners] if learners > 1 else []} for i in range(learners)
            ],
            "spec": self.spec,
        }
        state = {
            "uid": f"uid-{name}",
            "state": "finished" if finished else "running",
            "startTime": STARTED,
            "wallSeconds": seconds,
        }
        self.directory.mkdir(parents=True)
        self.write("galarun.yaml", yaml.safe_dump(document))
        self.write("plan.json", json.dumps(plan))
        self.write("run.json", json.dumps(state))
        for rank in range(learners):
            self._learner(rank, seconds, interval, speed, finished)
        if finished:
            final = {mode: self._evaluation(1.0, mode) for mode in ("greedy", "sampled")}
            card = {"run": name, "globalSteps": self._total, "wallSeconds": seconds, "evaluation": final}
            self.write(
                "final/card.json",
                json.dumps({**card, "spec": self.spec, "versions": {"python": "3.11.2", "torch": "2.13"}}),
            )

    def write(self, path: str, content: str) -> None:
        """Replaces a file of the run."""
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).write_text(content, encoding="utf-8")

    def append(self, rank: int, content: str) -> None:
        """Appends to a learner's metrics.jsonl."""
        with (self.directory / f"learner-{rank}" / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(content)

    def _learner(self, rank: int, seconds: float, interval: float, speed: float, finished: bool) -> None:
        lines: list[dict[str, Any]] = [self._event(rank, 0, "started"), self._event(rank, 0.5, "seeded")]
        noise, num_records = 0.0, int(seconds / interval)
        incarnation = 1
        for i in range(1, num_records + 1):
            wall = i * interval + rank * 0.1
            away = self.crash is not None and self.crash[0] == rank and self.crash[1] < wall < self.crash[2]
            if self.crash and self.crash[0] == rank and wall >= self.crash[2] and incarnation == 1:
                incarnation = 2
                lines.append(self._event(rank, self.crash[2], "resumed", incarnation))
            if away:
                continue
            share = i / num_records
            noise = 0.9 * noise + self._random.gauss(0, 0.5)
            lines.append(self._train(rank, incarnation, wall, share, speed, noise))
            if i % max(num_records // 10, 1) == 0:
                lines.append(self._event(rank, wall, "checkpoint", incarnation))
                if (i // max(num_records // 10, 1)) % self.learners == rank:
                    stamp = {"kind": "evaluation", "time": STARTED + wall, "wallSeconds": wall, "rank": rank}
                    steps = int(share * self._total)
                    lines += [
                        {**stamp, "globalSteps": steps, "mode": mode, **self._evaluation(share, mode)}
                        for mode in ("greedy", "sampled")
                    ]
        if self.crash and rank == (self.crash[0] + 1) % self.learners:
            lines.append(self._event(rank, self.crash[1] + 8, "peer-gone", peer=self.crash[0]))
            lines.append(self._event(rank, self.crash[2] + 1, "peer-back", peer=self.crash[0]))
        if finished:
            lines.append(self._event(rank, seconds + 0.5, "finished", incarnation))
        self.write(f"learner-{rank}/metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def _train(
        self, rank: int, incarnation: int, wall: float, share: float, speed: float, noise: float
    ) -> dict[str, Any]:
        progress = 1 / (1 + math.exp(-10 * (share - 0.45)))
        steps = int(share * self._total / self.learners)
        update_norm = 0.05 + 0.03 * self._random.random()
        disagreement = 0.09 * math.exp(self._random.gauss(0, 0.2)) if self.learners > 1 else 0.0
        edges = [
            {"peer": (rank + offset) % self.learners, "direction": direction, "state": state, "messages": steps // 80,
             "bytes": steps // 80 * 3_500_000, "replaced": steps // 900, "refused": 0}
            for direction, state, offset in LINKS
        ] if self.learners > 1 else []  # fmt: skip
        return {
            "kind": "train", "time": STARTED + wall, "wallSeconds": wall, "rank": rank,
            "incarnation": incarnation, "epoch": 0, "updates": steps // 80, "steps": steps,
            "globalSteps": int(share * self._total),
            "stepsPerSecond": speed * (1 + 0.06 * self._random.gauss(0, 1)),
            "meanReturn": None if share < 0.03 else -21 + 38 * progress + noise, "episodes": steps // 900,
            "policyLoss": self._random.gauss(0, 0.02),
            "valueLoss": 0.02 + 0.1 * math.exp(-3 * share) * self._random.random(),
            "entropy": 1.8 * math.exp(-2 * share) + 0.02 * self._random.gauss(0, 1),
            "gradientNorm": 0.4 + 0.2 * self._random.random(), "learningRate": 7e-4, "updateNorm": update_norm,
            "parameterNorm": 40.0,
            "gossip": {
                "mixes": steps // 100, "skips": steps // 80 - steps // 100, "seconds": 0.02 * wall,
                "stalenessUpdates": self._random.choice([0, 1, 1, 2]),
                "stalenessSeconds": 0.05 + 0.02 * self._random.random(),
                "disagreement": disagreement, "relativeDisagreement": disagreement / 40, "edges": edges,
            },
        }  # fmt: skip

    def _evaluation(self, share: float, mode: str) -> dict[str, Any]:
        mean = -21 + 40 / (1 + math.exp(-10 * (share - 0.45))) - (1.5 if mode == "sampled" else 0)
        returns = [round(min(21.0, mean + self._random.gauss(0, 2.5))) for _ in range(10)]
        average = sum(returns) / len(returns)
        deviation = math.sqrt(sum((value - average) ** 2 for value in returns) / len(returns))
        return {
            "episodes": 10, "meanReturn": average, "stdReturn": deviation, "returns": returns,
            "humanNormalised": (average + 20.7) / 35.3,
        }  # fmt: skip

    def _event(self, rank: int, wall: float, event: str, incarnation: int = 1, **details: Any) -> dict[str, Any]:
        stamp = {"kind": "event", "time": STARTED + wall, "wallSeconds": wall, "rank": rank, "incarnation": incarnation}
        return {**stamp, "event": event, **details}
