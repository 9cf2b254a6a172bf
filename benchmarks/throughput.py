"""Agent decisions per second, side by side: GALA-A2C, itself without gossip, Stable-Baselines3's A2C, and the roofline.

    python benchmarks/throughput.py [--rounds 3] [--seconds 20] [--only NAME ...]

The same work for all: Pong, 32 simulators, the nature-32 network, rollouts of 5 steps, on all cores. The contenders
take turns, every round in another order, so that a machine that others use too slows all of them alike; the
figures to quote are the ratios of the medians. Needs `pip install -e '.[benchmark]'`.

The roofline is what would remain if everything but the emulator and the network's arithmetic cost nothing:
1 / (emulator time + network time), both from bare loops, as many at once as there are learners. "In turn" is one bare
loop of both, step by step as a learner has them: what each leaves of the caches for the other is in it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

LEARNERS = 2
SIMULATORS = 16
ROLLOUT = 5
WARM_UP_SECONDS = 5.0
START_SECONDS = 120.0

RUN = """
apiVersion: gala.dev/v1alpha1
kind: GalaRun
metadata: {{name: throughput}}
spec:
  environment: {{id: ALE/Pong-v5, simulators: {simulators}}}
  learners: {learners}
  totalSteps: 1000000000
  precision: {precision}
  gossip: {{everyUpdates: {every}}}
  hyperparameters: {{rolloutLength: {rollout}}}
  worker: {{gpus: 0}}
  evaluation: {{everySteps: null}}
"""
NO_GOSSIP = 10_000


def gala(precision: str, every: int) -> Callable[[float], float]:
    """A real run: the launcher, its workers, their metrics."""

    def measure(seconds: float) -> float:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.yaml"
            file.write_text(
                RUN.format(simulators=SIMULATORS, learners=LEARNERS, precision=precision, every=every, rollout=ROLLOUT)
            )
            command = [sys.executable, "-P", "-m", "gala", "run", str(file), "--output", folder]
            with running(command) as process:
                records = await_training(process, Path(folder) / "throughput", LEARNERS)
                return watch(process, records, seconds)

    return measure


class Reading(NamedTuple):
    """A learner's own decisions until a moment, in seconds of its training."""

    decisions: int
    at: float


def await_training(process: subprocess.Popen[bytes], directory: Path, learners: int) -> list[Path]:
    """The files of the learners' records, once all of them train."""
    files = [directory / f"learner-{rank}" / "metrics.jsonl" for rank in range(learners)]
    await_records(process, files, [None] * learners)
    return files


def watch(process: subprocess.Popen[bytes], files: list[Path], seconds: float) -> float:
    """Decisions per second of all learners of a run together, after a warm-up.

    By their own records, one every five seconds: nobody is asked, so nobody is disturbed. The time watched is `seconds`
    and what it takes to the next records.
    """
    time.sleep(WARM_UP_SECONDS)
    before = await_records(process, files, list(map(last_record, files)))
    time.sleep(seconds)
    after = await_records(process, files, list(map(last_record, files)))
    return sum((b.decisions - a.decisions) / (b.at - a.at) for a, b in zip(before, after, strict=True))


def await_records(process: subprocess.Popen[bytes], files: list[Path], old: list[Reading | None]) -> list[Reading]:
    """The learners' newest records, as soon as all have newer ones than `old`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        readings = list(map(last_record, files))
        fresh = [reading for reading, before in zip(readings, old, strict=True) if reading and reading != before]
        if len(fresh) == len(files):
            return fresh
        time.sleep(0.1)
    raise SystemExit(f"the run does not train: exit code {process.poll()}")


def last_record(file: Path) -> Reading | None:
    """What a learner has written last of its training; None before."""
    from gala.experiment.folder import last_training

    record = last_training(file)
    return None if record is None else Reading(record["steps"], record["wallSeconds"])


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, interrupted in the end as a user would."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def roofline(precision: str, *loops: str) -> Callable[[float], float]:
    """Bare loops, one after the other."""

    def measure(seconds: float) -> float:
        times = [bare(name, precision, seconds / len(loops)) for name in loops]
        return LEARNERS * SIMULATORS * ROLLOUT / sum(times)

    return measure


def bare(name: str, precision: str, seconds: float) -> float:
    """Seconds per update of LEARNERS bare loops that run at once, on average."""
    command = [sys.executable, "-P", __file__, "--bare", name, "--precision", precision, "--seconds", str(seconds)]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(LEARNERS)]
    return statistics.mean(float(loop.communicate()[0]) for loop in loops)


def bare_loop(name: str, precision: str) -> Callable[[], None]:
    """One update's work of the emulator, of the network, or of both in turn as a learner has it."""
    step = None if name == "network" else bare_emulator()
    network = None if name == "emulator" else BareNetwork(precision)

    def update() -> None:
        for t in range(ROLLOUT):
            if network:
                network.act(t)
            if step:
                step()
        if network:
            network.learn()

    return update


def bare_emulator() -> Callable[[], None]:
    """A step of random actions, nothing else."""
    import numpy as np

    from gala.spec import Environment
    from gala_worker.environments import make_simulators

    simulators = make_simulators(Environment(id="ALE/Pong-v5"), SIMULATORS)
    simulators.reset(1)
    actions = itertools.cycle(np.random.default_rng(1).integers(0, 6, (1000, SIMULATORS)))

    def step() -> None:
        simulators.step(next(actions))

    return step


class BareNetwork:
    """Forward passes to act and to bootstrap, one backward pass, one optimiser step, on random images."""

    def __init__(self, precision: str) -> None:
        import gymnasium
        import numpy as np
        import torch

        from gala.spec import Hyperparameters, Policy
        from gala_worker.algorithms.rmsprop import RMSprop
        from gala_worker.device import prepare
        from gala_worker.flat import FlatState
        from gala_worker.model import Tape, make_policy

        prepare(torch.device("cpu"))
        torch.set_num_threads(1)
        images = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        policy = make_policy(images, gymnasium.spaces.Discrete(6), Policy(), seed=1)
        self._flat = FlatState(policy, policy.gossiped_buffers())
        hyper = Hyperparameters()
        self._optimizer = RMSprop(self._flat.trainable, decay=hyper.rms_prop_decay, epsilon=hyper.rms_prop_epsilon)
        self._tape = Tape(policy, ROLLOUT, SIMULATORS, getattr(torch, precision))
        self._observations = torch.randint(0, 255, (ROLLOUT + 1, SIMULATORS, 4, 84, 84), dtype=torch.uint8)
        self._starts = torch.zeros(SIMULATORS, dtype=torch.bool)

    def act(self, t: int) -> None:
        """The forward pass of step t; a rollout begins with t = 0."""
        if t == 0:
            self._tape.begin()
        self._tape.act(self._observations[t], self._starts)

    def learn(self) -> None:
        """The bootstrap and the update."""
        self._tape.bootstrap(self._observations[-1], self._starts)
        parameters, values = self._tape.replay()
        self._flat.differentiate(parameters.square().mean() + values.square().mean())
        self._optimizer.step(self._flat.gradient, learning_rate=1e-6, max_gradient_norm=0.5)


def time_per_call(function: Callable[[], None], seconds: float) -> float:
    """Seconds per call, after a tenth of the time to warm up."""
    calls = 0
    warm = time.perf_counter() + seconds / 10
    while time.perf_counter() < warm:
        function()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        function()
        calls += 1
    return elapsed / calls


def stable_baselines3(vectorisation: str) -> Callable[[float], float]:
    """Stable-Baselines3's A2C with its own wrappers, in its default precision and threads."""

    def measure(seconds: float) -> float:
        command = [sys.executable, "-P", __file__, "--sb3", vectorisation, "--seconds", str(seconds)]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        return float(output.split()[-1])

    return measure


def excuse(names: list[str]) -> str | None:
    """Why these contenders cannot be run here, if they cannot."""
    asked = any(name.startswith("Stable-Baselines3") for name in names)
    if not asked or importlib.util.find_spec("stable_baselines3") is not None:
        return None
    return "Stable-Baselines3 is not installed: pip install -e '.[benchmark]', or leave it out with --only"


def run_stable_baselines3(seconds: float, vectorisation: str) -> float:
    """Decisions per second of a training of so many seconds, after a warm-up."""
    import ale_py
    import gymnasium
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack
    from torch import nn

    gymnasium.register_envs(ale_py)

    class Nature32(BaseFeaturesExtractor):
        """The same network as GALA's, whose last convolution is half as wide as Stable-Baselines3's own."""

        def __init__(self, space: gymnasium.spaces.Box) -> None:
            super().__init__(space, 512)
            self.layers = nn.Sequential(
                *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
                *(nn.Conv2d(64, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 512), nn.ReLU()),
            )

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layers(observations)
            return features

    class Window(BaseCallback):
        """Counts decisions between the end of the warm-up and the end of the time."""

        def _on_training_start(self) -> None:
            self.opened: tuple[float, int] | None = None
            self.begin = time.perf_counter() + WARM_UP_SECONDS
            self.rate = math.nan

        def _on_step(self) -> bool:
            now = time.perf_counter()
            if self.opened is None and now >= self.begin:
                self.opened = (now, self.num_timesteps)
            if self.opened is not None and now >= self.opened[0] + seconds:
                self.rate = (self.num_timesteps - self.opened[1]) / (now - self.opened[0])
                return False
            return True

    # Forked, so that the processes know the environments that are registered here.
    kind, options = {"dummy": (DummyVecEnv, {}), "subprocess": (SubprocVecEnv, {"start_method": "fork"})}[vectorisation]
    simulators = make_atari_env(
        "PongNoFrameskip-v4", n_envs=LEARNERS * SIMULATORS, seed=1, vec_env_cls=kind, vec_env_kwargs=options
    )
    keywords = {"features_extractor_class": Nature32}
    model = A2C("CnnPolicy", VecFrameStack(simulators, 4), policy_kwargs=keywords, n_steps=ROLLOUT, device="cpu")
    window = Window()
    model.learn(10**9, callback=window)
    simulators.close()
    return window.rate


CONTENDERS: dict[str, Callable[[float], float]] = {
    "GALA-A2C bfloat16": gala("bfloat16", 1),
    "GALA-A2C bfloat16, no gossip": gala("bfloat16", NO_GOSSIP),
    "in turn bfloat16": roofline("bfloat16", "both"),
    "roofline bfloat16": roofline("bfloat16", "emulator", "network"),
    "GALA-A2C float32": gala("float32", 1),
    "GALA-A2C float32, no gossip": gala("float32", NO_GOSSIP),
    "in turn float32": roofline("float32", "both"),
    "roofline float32": roofline("float32", "emulator", "network"),
    "Stable-Baselines3 A2C, in one process": stable_baselines3("dummy"),
    "Stable-Baselines3 A2C, subprocesses": stable_baselines3("subprocess"),
}


def compare(names: list[str], rounds: int, seconds: float) -> None:
    """Measures in turn, and prints a row per contender and the ratios that matter."""
    results: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in random.Random(number).sample(names, len(names)):
            results[name].append(CONTENDERS[name](seconds))
            print(f"round {number + 1} of {rounds}: {name}: {results[name][-1]:,.0f} decisions/s", flush=True)
    medians = {name: statistics.median(values) for name, values in results.items()}
    print(f"\n{'agent decisions/s':<40}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in results.items():
        print(f"{name:<40}{medians[name]:>9,.0f}{min(values):>9,.0f}{max(values):>9,.0f}")
    yardstick = max((v for name, v in medians.items() if name.startswith("Stable")), default=None)
    print()
    for precision in ("bfloat16", "float32"):
        own = medians.get(f"GALA-A2C {precision}")
        others = {
            "Stable-Baselines3 (the faster one)": yardstick,
            "itself without gossip": medians.get(f"GALA-A2C {precision}, no gossip"),
            "emulator and network in turn": medians.get(f"in turn {precision}"),
            "the roofline": medians.get(f"roofline {precision}"),
        }
        for label, other in others.items():
            if own and other:
                print(f"GALA-A2C {precision}: {own / other:.2f} x {label}")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="measured, of each contender in each round")
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--bare", choices=["emulator", "network", "both"], help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--sb3", choices=["dummy", "subprocess"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(time_per_call(bare_loop(options.bare, options.precision), options.seconds))
    elif options.sb3:
        print(run_stable_baselines3(options.seconds, options.sb3))
    elif reason := excuse(options.only):
        parser.error(reason)
    else:
        compare(options.only, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
