"""Scoring a policy: which games count, what they score, and that training never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from gala import scores
from gala.spec import GalaRun, RunSpec, parse
from gala_worker import evaluation
from gala_worker.environments import Episode, Transition, make_simulators
from gala_worker.evaluation import BackgroundEvaluator, EvaluationResult, Interrupted, evaluate
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, make_policy

pytestmark = pytest.mark.usefixtures("one_compute_thread")


class Scripted:
    """Simulator i plays games of `lengths[i]` steps in turn; `rewards(i, step)` is what a step scores."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        *,
        truncate: bool = False,
        invalid_at: Sequence[int] = (),
        limit: int | None = None,
    ) -> None:
        self.num_simulators = len(lengths)
        self.max_episode_steps = limit
        self.actions: list[np.ndarray] = []
        self._lengths = lengths
        self._truncate = truncate
        self._invalid_at = invalid_at

    def reset(self, seed: int) -> np.ndarray:
        self._games = [0] * self.num_simulators
        self._steps = [0] * self.num_simulators
        self._over = [False] * self.num_simulators
        self.actions.clear()
        return np.zeros((self.num_simulators, 1), np.float32)

    def step(self, actions: np.ndarray) -> Transition:
        self.actions.append(actions.copy())
        n = self.num_simulators
        rewards = np.ones(n, np.float32)
        ended, valid, starts = np.zeros(n, bool), np.ones(n, bool), np.zeros(n, bool)
        for i in range(n):
            if self._over[i]:
                self._over[i], self._steps[i] = False, 0
                rewards[i], valid[i], starts[i] = 0.0, False, True
                continue
            self._steps[i] += 1
            valid[i] = self._steps[i] not in self._invalid_at
            if self._steps[i] == self._lengths[i][min(self._games[i], len(self._lengths[i]) - 1)]:
                self._games[i] += 1
                self._over[i] = ended[i] = True
        nothing = np.zeros(n, bool)
        observations = np.array(self._steps, np.float32)[:, None]
        return Transition(
            observations,
            rewards,
            nothing if self._truncate else ended,
            ended if self._truncate else nothing,
            valid,
            starts,
        )

    def pop_episodes(self) -> list[Episode]:
        return []

    def close(self) -> None:
        pass


def policy_for(simulators: Any, **options: Any) -> ActorCritic:
    return make_policy(simulators.observation_space, simulators.action_space, spec(**options).policy, seed=1).eval()


def spec(environment: str = "CartPole-v1", *, episodes: int = 2, **policy: Any) -> RunSpec:
    run: GalaRun = parse(
        {
            "apiVersion": "gala.dev/v1alpha1",
            "kind": "GalaRun",
            "metadata": {"name": "test"},
            "spec": {
                "environment": {"id": environment},
                "learners": 2,
                "policy": policy,
                "evaluation": {"episodes": episodes},
            },
        }
    )
    return run.spec


def score(simulators: Any, episodes: int, **options: Any) -> EvaluationResult:
    arguments = {"environment_id": "X-v0", "mode": "greedy", "seed": 0} | options
    return evaluate(policy_for(simulators), simulators, episodes=episodes, **arguments)


def test_short_games_are_not_preferred() -> None:
    """Whoever takes the first four games to end gets four of one step, a mean of 1."""
    result = score(Scripted([[1], [100], [1], [100]]), episodes=4)
    assert result.returns == (1.0, 100.0, 1.0, 100.0)
    assert result.mean_return == 50.5


def test_every_simulator_plays_its_share_of_the_episodes() -> None:
    result = score(Scripted([[2, 3, 4], [5, 6, 7]]), episodes=5)
    assert result.returns == (2.0, 3.0, 4.0, 5.0, 6.0)
    assert result.episode_steps == (2, 3, 4, 5, 6)


def test_the_step_that_only_resets_neither_scores_nor_counts_nor_ends() -> None:
    result = score(Scripted([[3, 3, 3]]), episodes=3)
    assert result.episode_steps == (3, 3, 3)


def test_a_game_may_end_and_score_in_a_step_that_is_not_the_policys() -> None:
    result = score(Scripted([[3, 4]], invalid_at=[3]), episodes=2)
    assert result.returns == (3.0, 4.0)


def test_a_time_limit_ends_a_game() -> None:
    assert score(Scripted([[5]], truncate=True), episodes=2).returns == (5.0, 5.0)


def test_a_game_without_an_end_is_cut() -> None:
    result = score(Scripted([[10**9], [2]]), episodes=2, max_episode_steps=50)
    assert result.episode_steps == (50, 2)


def test_a_game_is_not_cut_before_the_environments_own_limit() -> None:
    result = score(Scripted([[60], [2]], limit=60, truncate=True), episodes=2, max_episode_steps=50)
    assert result.episode_steps == (60, 2)


def test_the_watcher_sees_the_score_of_the_first_game_grow_to_its_end() -> None:
    seen: list[tuple[float, int]] = []
    score(Scripted([[3], [5]]), episodes=2, watch=lambda total, steps: seen.append((total, steps)))
    assert seen[:4] == [(0.0, 0), (1.0, 1), (2.0, 2), (3.0, 3)]


def test_a_stopped_evaluation_ends_at_once() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        score(Scripted([[10**9]]), episodes=1, stop=stop)


def test_greedy_takes_the_likeliest_action_and_sampled_varies_with_the_seed_only() -> None:
    simulators = Scripted([[400]])
    policy = policy_for(simulators)

    def actions(mode: str, seed: int) -> np.ndarray:
        evaluate(policy, simulators, environment_id="X-v0", episodes=1, mode=mode, seed=seed)
        return np.concatenate(simulators.actions)

    output = policy(torch.arange(400.0)[:, None])
    assert np.array_equal(actions("greedy", 0), output.parameters.argmax(-1).numpy())
    assert np.array_equal(actions("sampled", 1), actions("sampled", 1))
    assert not np.array_equal(actions("sampled", 1), actions("sampled", 2))
    assert set(actions("sampled", 1)) == {0, 1}


def test_memory_starts_anew_with_every_game() -> None:
    """All games look the same, so a policy whose memory is reset acts the same in each."""
    simulators = Scripted([[7]])
    policy = policy_for(simulators, recurrent=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    states = []
    forward = policy.forward

    def spy(observations: torch.Tensor, state: Any = None, starts: Any = None) -> Any:
        output = forward(observations, state, starts)
        states.append(output.state.clone())
        return output

    policy.forward = spy
    evaluate(policy, simulators, environment_id="X-v0", episodes=3, mode="greedy", seed=0)
    # A game is 7 decisions; the terminal observation is looked at once more, for nothing, before the next begins.
    first, second = states[0:7], states[8:15]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(states[0], states[1])


def test_the_same_seed_gives_the_same_games_of_a_real_environment() -> None:
    simulators = make_simulators(spec().environment, 2, for_evaluation=True)
    policy = policy_for(simulators)
    first, again, other = (
        evaluate(policy, simulators, environment_id="CartPole-v1", episodes=4, mode="sampled", seed=seed)
        for seed in (7, 7, 8)
    )
    simulators.close()
    assert first == again
    assert first.returns != other.returns
    assert first.episode_steps == tuple(int(value) for value in first.returns)


def test_what_one_evaluation_has_logged_does_not_pile_up_on_the_next_ones() -> None:
    simulators = make_simulators(spec().environment, 2, for_evaluation=True)
    policy = policy_for(simulators)

    def logged(evaluations: int) -> int:
        for _ in range(evaluations):
            evaluate(policy, simulators, environment_id="CartPole-v1", episodes=4, mode="greedy", seed=7)
        return len(simulators.pop_episodes())

    assert logged(1) == logged(3) >= 4
    simulators.close()


def test_atari_is_scored_as_the_simulators_own_log_has_it() -> None:
    """Raw scores of whole games, through lost lives and the FIRE that follows them."""
    simulators = make_simulators(spec("ALE/Breakout-v5").environment, 2, for_evaluation=True)
    policy = policy_for(simulators)
    result = evaluate(policy, simulators, environment_id="ALE/Breakout-v5", episodes=2, mode="sampled", seed=3)
    logged = {(episode.return_, episode.steps) for episode in simulators.pop_episodes()}
    simulators.close()
    assert set(zip(result.returns, result.episode_steps, strict=True)) <= logged
    assert result.human_normalised == pytest.approx((result.mean_return - 1.7) / 28.8)


@pytest.fixture
def evaluators() -> Iterator[Any]:
    made: list[BackgroundEvaluator] = []

    def make(**options: Any) -> BackgroundEvaluator:
        arguments = {"seed": 5, "schema_hash": flat().schema.hash, "on_result": lambda result, steps: None}
        made.append(BackgroundEvaluator(spec(), **(arguments | options)))
        return made[-1]

    yield make
    for evaluator in made:
        evaluator.close()


def flat() -> FlatState:
    simulators = make_simulators(spec().environment, 1)
    policy = policy_for(simulators)
    simulators.close()
    return FlatState(policy, policy.gossiped_buffers())


def test_a_snapshot_is_scored_in_the_background_with_the_parameters_it_was_taken_with(evaluators) -> None:
    results: list[tuple[EvaluationResult, int]] = []
    evaluator = evaluators(on_result=lambda result, steps: results.append((result, steps)))
    mine = flat()
    expected = mine.vector.clone()
    evaluator.submit(mine.vector, global_steps=1000)
    mine.vector.fill_(float("nan"))  # the learner goes on
    assert evaluator.wait(50)
    assert [(result.mode, steps) for result, steps in results] == [("greedy", 1000), ("sampled", 1000)]

    simulators = make_simulators(spec().environment, 2, for_evaluation=True)
    policy = policy_for(simulators)
    FlatState(policy, policy.gossiped_buffers()).vector.copy_(expected)
    alone = evaluate(policy, simulators, environment_id="CartPole-v1", episodes=2, mode="sampled", seed=5)
    simulators.close()
    assert results[1][0] == alone


def test_of_snapshots_that_wait_the_newest_is_scored(evaluators) -> None:
    steps_seen: list[int] = []
    go_on, reached = threading.Event(), threading.Event()

    def on_result(result: EvaluationResult, steps: int) -> None:
        steps_seen.append(steps)
        reached.set()
        assert go_on.wait(30)

    evaluator = evaluators(on_result=on_result, modes=("greedy",))
    vector = flat().vector
    evaluator.submit(vector, global_steps=1)
    assert reached.wait(30)
    evaluator.submit(vector, global_steps=2)
    evaluator.submit(vector, global_steps=3)
    assert not evaluator.wait(0)
    go_on.set()
    assert evaluator.wait(30)
    assert steps_seen == [1, 3]


def test_an_evaluation_that_hangs_holds_up_neither_the_learner_nor_the_end(evaluators, monkeypatch) -> None:
    release, hanging = threading.Event(), threading.Event()

    def hang(*arguments: Any, **options: Any) -> None:
        hanging.set()
        release.wait(50)
        raise Interrupted

    monkeypatch.setattr(evaluation, "evaluate", hang)
    evaluator = evaluators()
    vector = flat().vector
    evaluator.submit(vector, global_steps=1)
    assert hanging.wait(30)
    evaluator.submit(vector, global_steps=2)
    assert not evaluator.wait(0.01)
    assert not evaluator.close(timeout_seconds=0.01)
    evaluator.submit(vector, global_steps=3)
    release.set()
    assert evaluator.close(timeout_seconds=30)


def test_closing_interrupts_a_long_evaluation(evaluators, monkeypatch) -> None:
    endless = Scripted([[10**9]])
    playing = threading.Event()
    step = endless.step

    def watched_step(actions: np.ndarray) -> Transition:
        playing.set()
        return step(actions)

    endless.step = watched_step
    monkeypatch.setattr(evaluation, "make_evaluation_simulators", lambda spec, episodes: endless)
    policy = policy_for(endless)
    wanted = FlatState(policy, policy.gossiped_buffers())
    evaluator = evaluators(schema_hash=wanted.schema.hash)
    evaluator.submit(wanted.vector, global_steps=1)
    assert playing.wait(30)
    assert evaluator.close(timeout_seconds=30)


def test_a_failing_evaluation_is_logged_and_the_learner_goes_on(evaluators, caplog) -> None:
    evaluator = evaluators(schema_hash="of another network")
    vector = flat().vector
    evaluator.submit(vector, global_steps=1)
    assert evaluator.wait(30)
    assert "another schema" in caplog.text
    evaluator.submit(vector, global_steps=2)
    assert evaluator.wait(1)


def test_the_policys_own_random_numbers_are_not_disturbed() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    score(Scripted([[3]]), episodes=1, mode="sampled")
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_leaves_no_gradients_and_no_changed_statistics() -> None:
    simulators = Scripted([[3]])
    policy = policy_for(simulators)
    before = nn.utils.parameters_to_vector(policy.parameters()).clone()
    buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}
    evaluate(policy, simulators, environment_id="X-v0", episodes=1, mode="greedy", seed=0)
    assert torch.equal(nn.utils.parameters_to_vector(policy.parameters()), before)
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in policy.named_buffers())


@pytest.mark.parametrize(
    ("environment_id", "score", "expected"),
    [
        ("ALE/Pong-v5", 14.6, 1.0),
        ("ALE/Pong-v5", -20.7, 0.0),
        ("ale_py:ALE/Pong-v5", 14.6, 1.0),
        ("PongNoFrameskip-v4", 14.6, 1.0),
        ("ALE/SpaceInvaders-v5", 148.0, 0.0),
        ("ALE/BeamRider-v5", 16926.5, 1.0),
        ("ALE/Breakout-v5", 1.7 + 2 * 28.8, 2.0),
        ("ALE/Seaquest-v5", 42054.7, 1.0),
        ("ALE/Qbert-v5", 163.9, 0.0),
        ("ALE/Tetris-v5", 100.0, None),
        ("CartPole-v1", 500.0, None),
    ],
)
def test_human_normalised_scores(environment_id: str, score: float, expected: float | None) -> None:
    normalised = scores.human_normalised(environment_id, score)
    assert normalised == (None if expected is None else pytest.approx(expected))
