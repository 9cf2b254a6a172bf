"""Playing whole games with a policy that does not learn, and counting raw scores.

Place in the flow: `BackgroundEvaluator` plays during training, in a thread with its own simulators and its own copy of
the policy; `finalize` and `evaluate` play afterwards, by calling `evaluate` themselves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from gala import scores
from gala.answers import number
from gala.spec import RunSpec
from gala_worker.environments import Simulators, make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy

log = logging.getLogger(__name__)

Mode = Literal["greedy", "sampled"]
"""greedy takes the most probable action, sampled draws from the policy as training does."""

MAX_SIDE_BY_SIDE: Final = 10
"""Episodes that are played side by side; ten is the usual number of an evaluation."""
MAX_EPISODE_STEPS: Final = 27_000
"""Unless the environment has a longer limit of its own, an episode is cut and counted here: Atari's 108,000 frames."""


class Interrupted(Exception):
    """The evaluation was asked to stop before it had all its episodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Scores of one evaluation."""

    environment_id: str
    mode: Mode
    returns: tuple[float, ...]
    """Raw, undiscounted, unclipped; one for each episode."""
    episode_steps: tuple[int, ...]
    """Agent decisions of each episode."""

    @property
    def mean_return(self) -> float:
        """The mean raw score."""
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        """The standard deviation over the episodes (not of the mean)."""
        return float(np.std(self.returns))

    @property
    def mean_episode_steps(self) -> float:
        """The mean length, in agent decisions."""
        return float(np.mean(self.episode_steps))

    @property
    def human_normalised(self) -> float | None:
        """0 = random, 1 = human; None where nobody has measured humans."""
        return scores.human_normalised(self.environment_id, self.mean_return)

    def document(self) -> dict[str, Any]:
        """For metrics.jsonl and the final model's card. JSON has no word for a score that is not finite: it is None."""
        return {
            "mode": self.mode,
            "episodes": len(self.returns),
            "meanReturn": number(self.mean_return),
            "stdReturn": number(self.std_return),
            "returns": [number(score) for score in self.returns],
            "meanEpisodeSteps": self.mean_episode_steps,
            "humanNormalised": number(self.human_normalised),
        }


def make_evaluation_policy(spec: RunSpec, simulators: Simulators, device: torch.device | str = "cpu") -> ActorCritic:
    """A policy of the run's shape; its parameters are for the caller to fill."""
    policy = make_policy(simulators.observation_space, simulators.action_space, spec.policy, seed=spec.seed)
    return policy.to(device).eval()


def make_evaluation_simulators(spec: RunSpec, episodes: int, *, threads: int = 1) -> Simulators:
    """Simulators that play whole games with the run's preset, as many as are of use for so many episodes.

    Raises:
        SimulatorError: the environment cannot be made.
    """
    num = max(1, min(episodes, MAX_SIDE_BY_SIDE))
    return make_simulators(spec.environment, num, threads=threads, for_evaluation=True)


def evaluate(
    policy: ActorCritic,
    simulators: Simulators,
    *,
    environment_id: str,
    episodes: int,
    mode: Mode,
    seed: int,
    stop: threading.Event | None = None,
    watch: Callable[[float, int], None] | None = None,
    max_episode_steps: int = MAX_EPISODE_STEPS,
) -> EvaluationResult:
    """Plays `episodes` whole games and returns their raw scores.

    Every simulator plays a share that is fixed beforehand. Taking whichever games end first would prefer short ones,
    and in many games those are the bad ones.

    Args:
        policy: used as it is, without gradients; must be in `eval()` mode, on any device.
        simulators: made `for_evaluation`; they are reset first, and left open.
        seed: of the simulators and of the sampled actions: the same seed gives the same games.
        stop: when set, the evaluation ends within one step.
        watch: called after the reset and after every step with the score and the length so far of the game in the
            first simulator.
        max_episode_steps: a longer game is cut there and counted, unless the environment has a longer limit of its own;
            what follows counts as the next one.

    Raises:
        Interrupted: `stop` was set.
    """
    num = simulators.num_simulators
    device = next(policy.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    shares = [episodes // num + (i < episodes % num) for i in range(num)]
    returns: list[list[float]] = [[] for _ in range(num)]
    lengths: list[list[int]] = [[] for _ in range(num)]
    scored = np.zeros(num, dtype=np.float64)
    counted = np.zeros(num, dtype=np.int64)
    resetting = np.zeros(num, dtype=np.bool_)

    longest = max(max_episode_steps, simulators.max_episode_steps or 0)

    observations = simulators.reset(seed)
    simulators.pop_episodes()  # nobody else takes what they log, and it would pile up from evaluation to evaluation
    state = _on(policy.initial_state(num), device)
    starts = torch.ones(num, dtype=torch.bool, device=device)
    if watch is not None:
        watch(0.0, 0)
    with torch.inference_mode():
        while any(len(done) < share for done, share in zip(returns, shares, strict=True)):
            if stop is not None and stop.is_set():
                raise Interrupted
            output = policy(_observations(observations, device), state, starts)
            state = output.state
            if mode == "greedy":
                actions = policy.actions.mode(output.parameters)
            else:
                actions = policy.actions.sample(output.parameters, generator=generator)
            transition = simulators.step(policy.actions.to_environment(actions))
            observations = transition.observations
            starts = torch.as_tensor(transition.starts, device=device)
            # Not `valid`: a step that the simulator takes by itself (FIRE after a lost life) scores and may end a game.
            scored += np.where(resetting, 0.0, transition.rewards)
            counted += ~resetting
            over = (transition.terminated | transition.truncated) & ~resetting
            ended = over | (counted >= longest)
            if watch is not None:
                watch(float(scored[0]), int(counted[0]))
            resetting = over
            for i in np.flatnonzero(ended):
                if len(returns[i]) < shares[i]:
                    returns[i].append(float(scored[i]))
                    lengths[i].append(int(counted[i]))
                scored[i] = counted[i] = 0
    return EvaluationResult(
        environment_id=environment_id,
        mode=mode,
        returns=tuple(value for done in returns for value in done),
        episode_steps=tuple(value for done in lengths for value in done),
    )


class BackgroundEvaluator:
    """Evaluates snapshots of the parameters beside the training, which never waits for it.

    At most one evaluation runs and one waits; a newer snapshot replaces the one that waits.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        schema_hash: str,
        seed: int,
        on_result: Callable[[EvaluationResult, int], None],
        modes: tuple[Mode, ...] = ("greedy", "sampled"),
        device: torch.device | str = "cpu",
    ) -> None:
        """Starts nothing yet: simulators and policy are made in the thread, by the first evaluation.

        Args:
            schema_hash: of the vectors that will be submitted.
            seed: of the evaluation simulators; every evaluation plays the same starts, so that they compare.
            on_result: called in the evaluation's thread with the result and the snapshot's global steps.
        """
        self._spec = spec
        self._schema_hash = schema_hash
        self._seed = seed
        self._on_result = on_result
        self._modes = modes
        self._device = device
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._waiting: tuple[Tensor, int] | None = None
        self._busy = False
        self._thread: threading.Thread | None = None

    def submit(self, vector: Tensor, *, global_steps: int) -> None:
        """Copies `vector` [N] and returns; it is evaluated when the evaluation before it is done."""
        snapshot = vector.detach().to("cpu", copy=True)
        with self._changed:
            if self._stop.is_set():
                return
            if self._waiting is not None:
                log.warning("no evaluation at %s steps: a newer one is due already", f"{self._waiting[1]:,}")
            self._waiting = (snapshot, global_steps)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="evaluation", daemon=True)
                self._thread.start()

    def wait(self, timeout_seconds: float) -> bool:
        """Waits until all that was submitted is evaluated; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and self._waiting is None, timeout_seconds)

    def close(self, timeout_seconds: float = 5.0) -> bool:
        """Stops the evaluation that runs and waits at most so long; a hung one is left behind (then False)."""
        self._stop.set()
        with self._changed:
            self._waiting = None
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            log.warning("the evaluation does not stop; leaving it behind")
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._evaluate_all()
        except Exception:  # whatever went wrong here, the learner is not to know
            log.exception("periodic evaluation ends; training goes on")
        with self._changed:
            self._stop.set()
            self._busy = False
            self._waiting = None
            self._changed.notify_all()

    def _evaluate_all(self) -> None:
        episodes = self._spec.evaluation.episodes
        simulators = make_evaluation_simulators(self._spec, episodes)
        try:
            policy = make_evaluation_policy(self._spec, simulators, self._device)
            flat = FlatState(policy, policy.gossiped_buffers())
            if flat.schema.hash != self._schema_hash:
                raise RuntimeError("the evaluation's policy has another schema than the learner's")
            for vector, global_steps in self._snapshots():
                flat.vector.copy_(vector)
                for mode in self._modes:
                    result = evaluate(
                        policy,
                        simulators,
                        environment_id=self._spec.environment.id,
                        episodes=episodes,
                        mode=mode,
                        seed=self._seed,
                        stop=self._stop,
                    )
                    self._on_result(result, global_steps)
        except Interrupted:
            log.debug("evaluation interrupted")
        finally:
            simulators.close()

    def _snapshots(self) -> Iterator[tuple[Tensor, int]]:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stop.is_set() or self._waiting is not None)
                if self._stop.is_set() or self._waiting is None:
                    return
                snapshot, self._waiting = self._waiting, None
                self._busy = True
            yield snapshot


def _observations(observations: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(observations, device=device)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
