"""Atari: each known trap of the native vector environment has a test here that fails without its handling.

Emulators are slow to seed (0.1 s a game), so the tests use few of them and short games.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Box, Discrete

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments import Episode, Simulators, Transition, make_simulators
from gala_worker.environments import atari as atari_module
from waiting import eventually

NOOP, FIRE = 0, 1  # in every set of actions used here

Make = Callable[..., Simulators]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes simulators of a game, closed at the test's end."""
    made: list[Simulators] = []

    def make(
        game: str, num: int = 1, preset: str = "paper", *, threads: int = 1, for_evaluation: bool = False, **kwargs: Any
    ) -> Simulators:
        environment = Environment.model_validate({"id": f"ALE/{game}-v5", "preset": preset, "kwargs": kwargs})
        made.append(make_simulators(environment, num, threads=threads, for_evaluation=for_evaluation))
        return made[-1]

    yield make
    for simulators in made:
        simulators.close()


def play(simulators: Simulators, actions: np.ndarray) -> list[Transition]:
    """One transition for each row of actions `[T, B]`. Atari's observations are fresh arrays, so they may be kept."""
    return [simulators.step(row) for row in actions]


def random_actions(simulators: Simulators, steps: int, seed: int = 0) -> np.ndarray:
    assert isinstance(simulators.action_space, Discrete)
    shape = (steps, simulators.num_simulators)
    return np.random.default_rng(seed).integers(simulators.action_space.n, size=shape)


def play_a_game(simulators: Simulators, limit: int = 2_000) -> tuple[list[Transition], Episode]:
    """Random actions in one simulator until its game ends; its transitions and its score."""
    transitions = []
    for row in random_actions(simulators, limit):
        transitions.append(simulators.step(row))
        if episodes := simulators.pop_episodes():
            return transitions, episodes[0]
    raise AssertionError(f"no game ended within {limit} steps")


def column(transitions: list[Transition], name: str) -> np.ndarray:
    """A field of all transitions, `[T, B, ...]`."""
    return np.stack([getattr(transition, name) for transition in transitions])


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - one number, no paths


def test_observations_rewards_and_flags_have_the_promised_types(make: Make) -> None:
    simulators = make("Pong", 2)
    assert simulators.observation_space == Box(0, 255, (4, 84, 84), np.uint8)
    observations = simulators.reset(0)
    transition = simulators.step(np.array([NOOP, FIRE]))
    for batch in (observations, transition.observations):
        assert batch.shape == (2, 4, 84, 84)
        assert batch.dtype == np.uint8
    assert transition.rewards.dtype == np.float32
    for name in ("terminated", "truncated", "valid", "starts"):
        assert getattr(transition, name).dtype == np.bool_, name
        assert getattr(transition, name).shape == (2,), name


def test_rewards_are_raw_and_the_score_is_their_sum(make: Make) -> None:
    simulators = make("Qbert")  # 25 points for a cube
    simulators.reset(1)
    transitions, episode = play_a_game(simulators)
    rewards = column(transitions, "rewards")
    assert rewards.max() >= 25.0
    assert episode.return_ == rewards.sum()
    assert episode.steps == len(transitions)


def test_a_lost_life_is_an_end_for_the_learner_and_the_game_goes_on_to_its_last_life(make: Make) -> None:
    simulators = make("Breakout")  # five lives
    simulators.reset(0)
    transitions, episode = play_a_game(simulators)
    terminated = column(transitions, "terminated")[:, 0]
    assert terminated.sum() == 5
    assert terminated[-1]
    assert not column(transitions, "truncated").any()
    assert episode.steps == len(transitions)


def test_steps_equal_those_of_a_native_environment_that_presses_fire_after_each_lost_life(make: Make) -> None:
    """The oracle is ale-py's own life-loss signal, which must not reset the game, on the same seed and actions."""
    simulators = make("Breakout")
    native = AtariVectorEnv(
        "breakout", 1, num_threads=1, noop_max=31, reward_clipping=False, life_loss_info=True, episodic_life=False
    )
    assert np.array_equal(simulators.reset(7), native.reset(seed=7)[0])
    press = np.zeros(1, np.bool_)
    num_lost = 0
    for row in random_actions(simulators, 250):
        transition = simulators.step(row)
        observations, rewards, terminated, truncated, info = native.step(np.where(press, FIRE, row))
        assert np.array_equal(transition.observations, observations)
        assert np.array_equal(transition.rewards, rewards)
        assert np.array_equal(transition.terminated, terminated)
        assert np.array_equal(transition.truncated, truncated)
        press = terminated & (info["lives"] > 0)
        num_lost += press.sum()
    assert num_lost >= 4


def test_after_a_lost_life_fire_is_pressed_in_a_step_that_is_not_the_policys(make: Make) -> None:
    simulators = make("Breakout")
    simulators.reset(0)
    transitions = play(simulators, np.full((60, 1), NOOP))
    lost = int(np.flatnonzero(column(transitions, "terminated")[:, 0])[0])
    assert transitions[lost].valid[0]
    assert not transitions[lost].starts[0]
    assert not transitions[lost + 1].valid[0]
    assert transitions[lost + 1].starts[0]
    assert transitions[lost + 2].valid[0]
    assert not transitions[lost + 2].starts[0]


@pytest.mark.parametrize("for_evaluation", [False, True])
def test_a_policy_that_never_presses_fire_does_not_stall_breakout(make: Make, for_evaluation: bool) -> None:
    simulators = make("Breakout", for_evaluation=for_evaluation)
    simulators.reset(0)
    play(simulators, np.full((200, 1), NOOP))
    assert simulators.pop_episodes()


def test_without_pressing_fire_breakout_would_stall(make: Make) -> None:
    """Why FIRE is pressed at all: should a new ale-py make this fail, the handling may go."""
    simulators = make("Breakout", use_fire_reset=False)
    simulators.reset(0)
    assert not column(play(simulators, np.full((200, 1), NOOP)), "terminated").any()


def test_the_callers_actions_are_left_as_they_are_when_fire_is_pressed(make: Make) -> None:
    simulators = make("Breakout")
    simulators.reset(0)
    actions = np.full((60, 1), NOOP)
    assert column(play(simulators, actions), "terminated").any()
    assert not actions.any()


def test_in_a_game_without_fire_the_next_life_starts_in_the_step_that_lost_the_last(make: Make) -> None:
    simulators = make("MsPacman")
    simulators.reset(0)
    transitions, _ = play_a_game(simulators)
    terminated = column(transitions, "terminated")[:, 0]
    assert terminated.sum() == 3
    starts = column(transitions, "starts")[:, 0]
    assert np.array_equal(starts[:-1], terminated[:-1])
    assert not starts[-1]  # the last life's end is the game's: its observation starts nothing
    assert column(transitions, "valid").all()


def test_an_evaluation_has_whole_games_whose_valid_rewards_add_up(make: Make) -> None:
    simulators = make("Breakout", for_evaluation=True)
    simulators.reset(0)
    transitions, episode = play_a_game(simulators)
    assert column(transitions, "terminated").sum() == 1
    assert transitions[-1].terminated[0]
    assert column(transitions, "valid").all()
    assert episode.return_ == column(transitions, "rewards").sum()
    assert column(transitions, "starts").sum() == 4  # a recurrent policy is trained to forget with each life


def test_modern_does_not_tell_of_lost_lives(make: Make) -> None:
    simulators = make("Breakout", preset="modern")
    simulators.reset(0)
    transitions, _ = play_a_game(simulators)
    assert column(transitions, "terminated").sum() == 1
    assert column(transitions, "valid").all()
    assert not column(transitions, "starts").any()


def test_the_step_after_a_real_end_is_a_dummy_that_shows_the_first_observation(make: Make) -> None:
    simulators = make("Pong", preset="modern", max_num_frames_per_episode=40)
    first = simulators.reset(0)
    assert not first[:, :3].any()  # the stack of frames starts empty: only a first observation looks like that
    transitions = play(simulators, np.full((25, 1), NOOP))
    ends = np.flatnonzero(column(transitions, "truncated")[:, 0])
    assert list(ends) == [9, 20]
    for end in ends:
        assert transitions[end].valid[0]
        assert transitions[end].observations[:, :3].any()  # the last of the old episode, to bootstrap from
        assert not transitions[end].terminated[0]
        dummy = transitions[end + 1]
        assert not dummy.observations[:, :3].any()
        assert dummy.starts[0]
        assert not dummy.valid[0]
        assert dummy.rewards[0] == 0.0
    assert column(transitions, "valid").sum() == 23
    assert column(transitions, "starts").sum() == 2
    assert [episode.steps for episode in simulators.pop_episodes()] == [10, 10]


def test_episodes_are_popped_once(make: Make) -> None:
    simulators = make("Pong", 2, max_num_frames_per_episode=40)
    simulators.reset(0)
    play(simulators, random_actions(simulators, 12))
    assert len(simulators.pop_episodes()) == 2
    assert simulators.pop_episodes() == []


def test_a_reset_forgets_the_episode_under_way(make: Make) -> None:
    simulators = make("Pong", max_num_frames_per_episode=40)
    simulators.reset(0)
    play(simulators, random_actions(simulators, 8))
    simulators.reset(0)
    play(simulators, random_actions(simulators, 10))
    assert [episode.steps for episode in simulators.pop_episodes()] == [10]
    simulators.reset(0)  # when a dummy step was due
    transition = simulators.step(np.array([NOOP]))
    assert transition.valid.all()
    assert not transition.starts.any()


def test_presets_offer_the_minimal_and_the_full_action_set(make: Make) -> None:
    assert make("Breakout").action_space == Discrete(4)
    assert make("Breakout", preset="modern").action_space == Discrete(18)


def test_paper_has_no_sticky_actions_and_modern_has(make: Make) -> None:
    """Two games with different seeds and the same actions, without no-ops: only sticky actions can part them."""

    def apart(preset: str) -> bool:
        simulators = make("Pong", 2, preset, noop_max=0, full_action_space=False)
        simulators.reset(0)
        actions = np.tile(np.arange(60)[:, None] % 4, (1, 2))
        observations = column(play(simulators, actions), "observations")
        return not np.array_equal(observations[:, 0], observations[:, 1])

    assert not apart("paper")
    assert apart("modern")


def test_paper_starts_with_up_to_30_no_ops_and_modern_with_none(make: Make) -> None:
    def distinct_starts(preset: str) -> int:
        observations = make("Breakout", 3, preset).reset(0)
        return len(np.unique(observations.reshape(3, -1), axis=0))

    assert distinct_starts("paper") > 1
    assert distinct_starts("modern") == 1
    assert atari_module.PRESETS["paper"]["noop_max"] - 1 == 30  # the emulator draws from 0 to one below


def test_the_same_seed_gives_the_same_trajectory_over_several_games_and_another_seed_does_not(make: Make) -> None:
    def trajectory(seed: int) -> np.ndarray:
        simulators = make("Breakout", preset="modern", max_num_frames_per_episode=60)
        first = simulators.reset(seed)
        return np.concatenate([first[None], column(play(simulators, random_actions(simulators, 50)), "observations")])

    reference = trajectory(3)
    assert np.array_equal(trajectory(3), reference)
    assert not np.array_equal(trajectory(1003), reference)


def test_seeds_beyond_the_emulators_range_wrap_around(make: Make) -> None:
    simulators = make("Pong", 2)  # the second simulator's seed is 2**31
    assert simulators.reset(2**31 - 1).shape == (2, 4, 84, 84)


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_are_started_as_asked_for_and_close_ends_them(make: Make, threads: int) -> None:
    before = threads_of_this_process()
    simulators = make("Pong", threads=threads)
    assert threads_of_this_process() == before + threads
    simulators.reset(0)
    simulators.close()
    eventually(lambda: threads_of_this_process() == before)  # one that was joined is still listed for a moment
    simulators.close()
    with pytest.raises(RuntimeError, match="closed"):
        simulators.step(np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [({}, 27_000), ({"frameskip": 1}, 108_000), ({"max_num_frames_per_episode": 402}, 101)],
)
def test_the_emulators_limit_is_told_in_decisions(make: Make, kwargs: dict[str, int], steps: int) -> None:
    simulators = make("Pong", **kwargs)
    assert simulators.max_episode_steps == steps
    if steps < 1_000:
        simulators.reset(1)
        ended = [bool(t.truncated[0]) for t in play(simulators, np.zeros((steps, 1), np.int64))]
        assert ended.index(True) == steps - 1


def test_continuous_actions_are_clipped_to_their_bounds(make: Make) -> None:
    simulators = make("Pong", preset="modern", continuous=True, repeat_action_probability=0.0)
    assert isinstance(simulators.action_space, Box)

    def last(radius: float, angle: float) -> np.ndarray:
        simulators.reset(0)
        return play(simulators, np.tile(np.array([radius, angle, 0.0], np.float32), (20, 1, 1)))[-1].observations

    assert np.array_equal(last(-3.0, 0.0), last(0.0, 0.0))  # a negative radius would point the other way
    assert not np.array_equal(last(1.0, np.pi), last(0.0, 0.0))


@pytest.fixture
def scripted(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Transition]]:
    """Breakout that answers by a script of (lives, terminated, truncated), after a reset with five lives."""

    def scripted(*script: tuple[int, bool, bool]) -> list[Transition]:
        simulators = make("Breakout")
        simulators.reset(0)
        answers = iter(script)

        def step(self: AtariVectorEnv, actions: np.ndarray) -> tuple[Any, ...]:
            lives, terminated, truncated = next(answers)
            frames, rewards = np.zeros((1, 4, 84, 84), np.uint8), np.zeros(1, np.int32)
            info = {"lives": np.array([lives], np.int32)}
            return frames, rewards, np.array([terminated]), np.array([truncated]), info

        monkeypatch.setattr(AtariVectorEnv, "step", step)
        return play(simulators, np.zeros((len(script), 1), np.int64))

    return scripted


def test_lives_left_at_a_time_limit_are_not_lost_by_the_next_game(scripted: Callable[..., list[Transition]]) -> None:
    transitions = scripted((6, False, False), (6, False, True), (5, False, False), (4, False, False))
    assert list(column(transitions, "terminated")[:, 0]) == [False, False, False, True]
    assert list(column(transitions, "truncated")[:, 0]) == [False, True, False, False]


def test_a_bonus_life_is_no_lost_life(scripted: Callable[..., list[Transition]]) -> None:
    assert not column(scripted((5, False, False), (6, False, False)), "terminated").any()


@pytest.mark.parametrize("last", [(0, True, True), (4, False, True)])
def test_an_end_in_the_last_step_before_the_time_limit_is_an_end(
    scripted: Callable[..., list[Transition]], last: tuple[int, bool, bool]
) -> None:
    transition = scripted((5, False, False), last)[-1]
    assert transition.terminated.all()
    assert not transition.truncated.any()


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"reward_clipping": True}, "spec.environment.kwargs.reward_clipping: cannot be set: .*rewardClipping"),
        ({"episodic_life": True}, "spec.environment.kwargs.episodic_life: .*spec.environment.preset"),
        ({"mode": 3}, "spec.environment.kwargs.mode: unknown .*possible are .*frameskip"),
        ({"frameskip": 0}, "spec.environment.kwargs.frameskip: must be a number from 1 to 1000, got 0"),
        ({"stack_num": 0}, "spec.environment.kwargs.stack_num: must be a number from 1"),  # the emulator would hang
        ({"noop_max": "many"}, "spec.environment.kwargs.noop_max: must be a number .* got 'many'"),
        ({"frameskip": 2.5}, "spec.environment.kwargs: ALE/Pong-v5 does not accept .*2.5"),
        ({"maxpool": "sometimes"}, "spec.environment.kwargs: ALE/Pong-v5 does not accept .*sometimes"),
        ({"grayscale": False}, "spec.environment.kwargs.grayscale: "),
    ],
)
def test_kwargs_that_cannot_be_are_refused(make: Make, kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(SimulatorError, match=told):
        make("Pong", **kwargs)


def test_kwargs_reach_the_emulator(make: Make) -> None:
    simulators = make("Pong", stack_num=2, img_height=42, img_width=42)
    assert simulators.reset(0).shape == (1, 2, 42, 42)
