"""Experiments of made-up runs for the tests of their reports."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gala import report

STARTED = 1_750_000_000.0
ROLES = {"A3C": "server", "IMPALA": "learner"}


class SyntheticExperiment:
    """An experiment's folder as `gala experiment` and the runs leave it."""

    def __init__(
        self,
        root: Path,
        name: str = "curves-small",
        *,
        algorithms: Sequence[str] = ("GALA-A2C", "A2C"),
        environments: Sequence[str] = ("CartPole-v1",),
        simulators: Sequence[int] = (8,),
        learners: Sequence[int] = (2,),
        seeds: int = 3,
        figures: Sequence[str] = ("convergence", "curves", "scores", "throughput"),
        threshold: float = 475.0,
        energy: bool = True,
        records: int = 40,
        side_by_side: int = 1,
    ) -> None:
        self.directory = root / name
        self.directory.mkdir(parents=True)
        self.index: dict[str, Any] = {
            "format": 1, "name": name, "experiment": "synthetic", "scale": "small", "description": "Made up.",
            "figures": list(figures),
            "thresholds": {one: {"return": threshold, "measure": "greedy"} for one in environments},
            "factors": {
                "algorithm": list(algorithms), "environment": list(environments), "simulators": list(simulators),
                "learners": list(learners), "seed": list(range(1, seeds + 1)),
            },
            "runs": [],
        }  # fmt: skip
        for environment in environments:
            for algorithm in algorithms:
                for each in simulators:
                    for ranks in learners:
                        for seed in range(1, seeds + 1):
                            self._run(algorithm, environment, each, ranks, seed, energy, records, side_by_side)
        self.save()

    def save(self) -> None:
        """Writes the index."""
        self.write("experiment.json", json.dumps(self.index))

    def write(self, path: str, content: str) -> None:
        """Replaces a file of the experiment."""
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).write_text(content, encoding="utf-8")

    def _run(
        self, algorithm: str, environment: str, simulators: int, learners: int, seed: int, energy: bool, records: int,
        side_by_side: int,
    ) -> None:  # fmt: skip
        dice = random.Random(ascii((algorithm, environment, simulators, learners, seed)))
        name = f"run-{len(self.index['runs'])}"
        role = ROLES.get(algorithm, "actor-learner")
        acting = learners - (role != "actor-learner")
        total, speed = 400_000, 500.0 * acting**0.8 * dice.uniform(0.9, 1.1)
        best = 500.0 if environment.startswith("CartPole") else 18.0
        worst = 20.0 if environment.startswith("CartPole") else -21.0
        lucky = dice.random() < (0.95 if algorithm.startswith("GALA") else 8 / (8 + simulators / 4))
        reached = best if lucky else worst + (best - worst) * dice.uniform(0.2, 0.8)
        middle = dice.uniform(0.3, 0.5) + (0.0 if algorithm.startswith("GALA") else 0.1)
        spec = {
            "algorithm": algorithm, "environment": {"id": environment, "simulators": simulators}, "learners": learners,
            "totalSteps": total, "seed": seed, "topology": {"type": "Ring"},
        }  # fmt: skip
        seconds = total / speed
        for rank in range(learners):
            holds = rank == 0 and role != "actor-learner"
            lines = []
            for i in range(1, records + 1):
                share = i / records
                mean = worst + (reached - worst) / (1 + math.exp(-12 * (share - middle)))
                mean += dice.gauss(0, 0.01 * (best - worst))
                record = {
                    "kind": "train", "time": STARTED + share * seconds + rank * 0.1, "wallSeconds": share * seconds,
                    "rank": rank, "incarnation": 1, "updates": int(share * 1000), "cpuSeconds": 1.1 * share * seconds,
                    "steps": 0 if holds else int(share * total / acting), "globalSteps": int(share * total),
                    "stepsPerSecond": 0.0 if holds else speed / acting,
                    "meanReturn": None if holds or i < 3 else mean, "updateNorm": 0.1, "parameterNorm": 10.0,
                    "gossip": {"stalenessUpdates": int(algorithm != "A2C"), "mixes": i, "seconds": 0.1, "edges": []},
                }  # fmt: skip
                if role == "actor-learner" or holds:
                    record |= {"policyLoss": 0.1, "valueLoss": 0.2, "entropy": 1.0, "gradientNorm": 0.5}
                lines.append(record)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            self.write(f"{name}/learner-{rank}/metrics.jsonl", text)
        final = {mode: {"meanReturn": reached - i * 3, "episodes": 10} for i, mode in enumerate(("greedy", "sampled"))}
        card = {"run": name, "globalSteps": total, "evaluation": final, "spec": spec}
        self.write(f"{name}/final/card.json", json.dumps(card))
        self.write(f"{name}/galarun.yaml", yaml.safe_dump({"metadata": {"name": name}, "spec": spec}))
        facts = {
            "cpu": {"source": "RAPL: package-0"} if energy else {"missing": "/sys/class/powercap has no RAPL counter"},
            "gpu": {"missing": "the run uses no GPU"},
        }
        self.write(
            f"{name}/run.json",
            json.dumps({"state": "finished", "wallSeconds": seconds, "startTime": STARTED - 5, "energy": facts}),
        )
        if energy:
            watts = 20.0 + 5 * acting
            samples = [
                {"time": STARTED - 5 + s, "wallSeconds": s, "cpuJoules": watts * s, "gpuJoules": None}
                for s in range(0, int(seconds) + 30, 10)
            ]
            self.write(f"{name}/energy.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
        self.index["runs"].append(
            {
                "name": name, "environment": environment, "algorithm": algorithm, "topology": "Ring",
                "factors": {
                    "algorithm": algorithm, "environment": environment, "simulators": simulators, "learners": learners,
                    "seed": seed,
                },
                "learners": learners, "simulators": simulators, "totalSimulators": simulators * acting,
                "totalSteps": total, "seed": seed, "state": "finished", "reason": "", "steps": total,
                "wallSeconds": seconds, "sideBySide": side_by_side,
            }
        )  # fmt: skip


def write(experiment: SyntheticExperiment) -> Path:
    return report.write([experiment.directory], experiment.directory / "report.html")


def summary(experiment: SyntheticExperiment) -> dict[str, Any]:
    """figures/summary.json's numbers by section."""
    content = json.loads((experiment.directory / "figures" / "summary.json").read_text())
    return {name: figure["numbers"] for name, figure in content["figures"].items()}


def captions(experiment: SyntheticExperiment) -> dict[str, str]:
    content = json.loads((experiment.directory / "figures" / "summary.json").read_text())
    return {name: figure["caption"] for name, figure in content["figures"].items()}
