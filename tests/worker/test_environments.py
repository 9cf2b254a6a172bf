"""Environments through Gymnasium: bookkeeping of episodes, adapted spaces, refusals, a user's own module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from gala.errors import SimulatorError
from gala.spec import Environment
from gala_worker.environments import Episode, Simulators, make_simulators
from gala_worker.environments.simulators import EpisodeLog
from small_games import (
    LENGTH,
    Count,
    Counting,
    CountingVector,
    Leaving,
    RewardingDummies,
    SameStepVector,
    Spaces,
    Sticking,
    StickingVector,
    Telling,
)

Make = Callable[..., Simulators]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(gymnasium.registry)
    gymnasium.register("GalaCount-v0", entry_point=Count)
    gymnasium.register("GalaLeaving-v0", entry_point=Leaving)
    gymnasium.register("GalaSameStep-v0", entry_point=Count, vector_entry_point=SameStepVector)
    gymnasium.register("GalaRewardingDummies-v0", entry_point=Count, vector_entry_point=RewardingDummies)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes simulators of an id, closed at the test's end."""
    made: list[Simulators] = []

    def make(environment_id: str, num: int = 2, **kwargs: Any) -> Simulators:
        made.append(make_simulators(Environment.model_validate({"id": environment_id, "kwargs": kwargs}), num))
        return made[-1]

    yield make
    for simulators in made:
        simulators.close()


@pytest.fixture
def make_with(make: Make) -> Callable[..., tuple[Simulators, list[Spaces]]]:
    """Makes two simulators of given spaces, and gives the environments inside too."""

    def make_with(**options: Any) -> tuple[Simulators, list[Spaces]]:
        inner: list[Spaces] = []

        def create() -> Spaces:
            inner.append(Spaces(**options))
            return inner[-1]

        gymnasium.register("GalaSpaces-v0", entry_point=create, disable_env_checker=True)
        return make("GalaSpaces-v0"), inner

    return make_with


def step(simulators: Simulators, times: int = 1) -> Any:
    for _ in range(times):
        transition = simulators.step(np.zeros(simulators.num_simulators, np.int64))
    return transition


def test_a_terminated_episode_ends_in_its_last_observation_and_a_dummy_step_follows(make: Make) -> None:
    simulators = make("GalaCount-v0")
    assert simulators.reset(0).tolist() == [[0, 0], [0, 0]]
    for t in range(1, LENGTH):
        transition = step(simulators)
        assert transition.observations.tolist() == [[0, t], [0, t]]
        assert transition.valid.all()
        assert not (transition.terminated | transition.truncated | transition.starts).any()
    end = step(simulators)
    assert end.observations.tolist() == [[0, LENGTH], [0, LENGTH]]
    assert end.terminated.all()
    assert not end.truncated.any()
    assert end.valid.all()
    assert not end.starts.any()
    dummy = step(simulators)
    assert dummy.observations.tolist() == [[1, 0], [1, 0]]
    assert not dummy.valid.any()
    assert dummy.starts.all()
    assert not dummy.rewards.any()
    assert not (dummy.terminated | dummy.truncated).any()
    after = step(simulators)
    assert after.valid.all()
    assert not after.starts.any()


def test_at_a_time_limit_the_observation_is_the_one_to_bootstrap_from(make: Make) -> None:
    simulators = make("GalaCount-v0", truncates=True)
    simulators.reset(0)
    transition = step(simulators, LENGTH)
    assert transition.observations.tolist() == [[0, LENGTH], [0, LENGTH]]
    assert transition.truncated.all()
    assert not transition.terminated.any()


def test_an_end_that_is_also_a_time_limit_is_an_end(make: Make) -> None:
    simulators = make("GalaCount-v0", truncates=True, both=True)
    simulators.reset(0)
    transition = step(simulators, LENGTH)
    assert transition.terminated.all()
    assert not transition.truncated.any()


def test_a_registered_time_limit_truncates(make: Make) -> None:
    gymnasium.register("GalaLimited-v0", entry_point=Count, max_episode_steps=2)
    simulators = make("GalaLimited-v0")
    simulators.reset(0)
    assert step(simulators, 2).truncated.all()
    assert simulators.max_episode_steps == 2
    assert make("GalaCount-v0").max_episode_steps is None


@pytest.mark.parametrize(("limit", "known"), [(LENGTH - 1, LENGTH - 1), (-1, None)])
def test_the_documents_time_limit_goes_before_the_registered_one(make: Make, limit: int, known: int | None) -> None:
    gymnasium.register("GalaLimited-v0", entry_point=Count, max_episode_steps=1)
    simulators = make("GalaLimited-v0", max_episode_steps=limit)
    simulators.reset(0)
    transition = step(simulators, known or LENGTH)
    assert (transition.truncated if known else transition.terminated).all()
    assert simulators.max_episode_steps == known


def test_scores_are_raw_and_lengths_leave_dummy_steps_out(make: Make) -> None:
    simulators = make("GalaCount-v0", num=1)
    simulators.reset(0)
    transition = step(simulators, 3 * (LENGTH + 1) - 1)
    assert transition.rewards.dtype == np.float32
    assert transition.rewards[0] == 10.0
    assert simulators.pop_episodes() == [Episode(10.0 * LENGTH, LENGTH)] * 3
    assert simulators.pop_episodes() == []


def test_rewards_of_dummy_steps_count_for_nothing(make: Make) -> None:
    simulators = make("GalaRewardingDummies-v0", num=1, vectorization_mode="vector_entry_point")
    simulators.reset(0)
    assert not step(simulators, LENGTH + 1).rewards.any()
    step(simulators, LENGTH)
    assert [episode.return_ for episode in simulators.pop_episodes()] == [10.0 * LENGTH] * 2


def test_a_reset_forgets_the_episode_under_way(make: Make) -> None:
    simulators = make("GalaCount-v0", num=1)
    simulators.reset(0)
    step(simulators, LENGTH - 1)
    simulators.reset(0)
    step(simulators, LENGTH)
    assert [episode.steps for episode in simulators.pop_episodes()] == [LENGTH]
    simulators.reset(0)  # when a dummy step was due
    transition = step(simulators)
    assert transition.valid.all()
    assert not transition.starts.any()


def test_simulators_that_end_at_different_times_are_kept_apart() -> None:
    log = EpisodeLog(2)
    log.record(np.array([1.0, 5.0]))
    log.finish(np.array([True, False]))
    log.record(np.array([0.0, 5.0]))  # the first simulator's dummy step
    log.record(np.array([2.0, 5.0]))
    log.finish(np.array([True, True]))
    assert log.pop() == [Episode(1.0, 1), Episode(2.0, 1), Episode(15.0, 3)]


def test_a_simulator_gets_the_seed_plus_its_index(make_with: Callable[..., tuple[Simulators, list[Spaces]]]) -> None:
    simulators, inner = make_with()
    simulators.reset(5)
    first = [environment.noise for environment in inner]
    simulators.reset(5)
    assert [environment.noise for environment in inner] == first
    simulators.reset(6)
    assert inner[0].noise == first[1]
    assert inner[1].noise not in first


def test_box_observations_become_float32_vectors(make: Make) -> None:
    simulators = make("GalaCount-v0")
    assert simulators.observation_space == spaces.Box(-100.0, 100.0, (2,), np.float32)
    assert simulators.reset(0).dtype == np.float32


@pytest.mark.parametrize(
    ("space", "one", "shown"),
    [
        (spaces.Discrete(3, start=1), np.int64(2), [0.0, 1.0, 0.0]),
        (spaces.MultiBinary(2), np.array([1, 0], np.int8), [1.0, 0.0]),
        (spaces.Box(0, 9, (2, 2), np.float64), np.array([[1.0, 2.0], [3.0, 4.0]]), [1.0, 2.0, 3.0, 4.0]),
        (spaces.Box(0, 9, (2,), np.uint8), np.array([7, 8], np.uint8), [7.0, 8.0]),
    ],
)
def test_other_observations_become_float32_vectors_too(
    make_with: Callable[..., tuple[Simulators, list[Spaces]]], space: Any, one: Any, shown: list[float]
) -> None:
    simulators, _ = make_with(observation_space=space, observation=one)
    observations = simulators.reset(0)
    assert observations.dtype == np.float32
    assert observations.tolist() == [shown, shown]
    assert step(simulators).observations.tolist() == [shown, shown]
    assert observations[0] in simulators.observation_space


@pytest.mark.parametrize("shape", [(8, 6, 3), (3, 8, 6), (8, 6)])
def test_images_are_uint8_with_their_channels_first(
    make_with: Callable[..., tuple[Simulators, list[Spaces]]], shape: tuple[int, ...]
) -> None:
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    simulators, _ = make_with(observation_space=spaces.Box(0, 255, shape, np.uint8), observation=image)
    observations = simulators.reset(0)
    channels = {
        (8, 6, 3): lambda: [image[:, :, channel] for channel in range(3)],
        (3, 8, 6): lambda: list(image),
        (8, 6): lambda: [image],
    }
    expected = np.stack(channels[shape]())
    assert observations.dtype == np.uint8
    assert np.array_equal(observations[0], expected)
    assert observations[0] in simulators.observation_space


def test_box_actions_are_clipped_and_shaped_for_the_environment(
    make_with: Callable[..., tuple[Simulators, list[Spaces]]],
) -> None:
    space = spaces.Box(np.array([[-1.0, 0.0]]), np.array([[1.0, 5.0]]), dtype=np.float64)
    simulators, inner = make_with(action_space=space)
    assert isinstance(simulators.action_space, spaces.Box)
    assert simulators.action_space.shape == (2,)
    simulators.reset(0)
    simulators.step(np.array([[-3.0, 9.0], [0.5, 2.0]], np.float32))
    assert inner[0].actions[0].tolist() == [[-1.0, 5.0]]
    assert inner[1].actions[0].tolist() == [[0.5, 2.0]]
    assert inner[0].actions[0].dtype == np.float64


def test_discrete_actions_count_from_the_environments_first(
    make_with: Callable[..., tuple[Simulators, list[Spaces]]],
) -> None:
    simulators, inner = make_with(action_space=spaces.Discrete(3, start=-1))
    assert simulators.action_space == spaces.Discrete(3)
    simulators.reset(0)
    simulators.step(np.array([0, 2]))
    assert [environment.actions[0].item() for environment in inner] == [-1, 1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"observation_space": spaces.Dict({"x": spaces.Discrete(2)})}, "observation space Dict.*FlattenObservation"),
        ({"observation_space": spaces.Tuple([spaces.Discrete(2)])}, "observation space Tuple"),
        ({"observation_space": spaces.Discrete(5000)}, r"observation space Discrete\(5000\)"),
        (
            {"observation_space": spaces.Box(0, 1, (3, 0))},
            r"observation space Box.* at least 1 long, got \[3, 0\]; let it",
        ),
        ({"observation_space": spaces.Box(0, 255, (0, 84, 84), np.uint8)}, "observation space Box.*at least 1 long"),
        ({"action_space": spaces.MultiDiscrete([2, 3])}, "action space MultiDiscrete.*TransformAction"),
        ({"action_space": spaces.Dict({"x": spaces.Discrete(2)})}, "action space Dict"),
        ({"action_space": spaces.Box(0, 3, (1,), np.int64)}, "action space Box"),
    ],
)
def test_spaces_that_no_policy_takes_are_refused(
    make_with: Callable[..., tuple[Simulators, list[Spaces]]], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SimulatorError, match=f"spec.environment.id: GalaSpaces-v0 has the {told}"):
        make_with(**options)


def test_a_vector_environment_with_same_step_autoreset_is_refused(make: Make) -> None:
    with pytest.raises(SimulatorError, match="SAME_STEP and NEXT_STEP is needed"):
        make("GalaSameStep-v0", vectorization_mode="vector_entry_point")
    make("GalaSameStep-v0").reset(0)  # its single environments will do


@pytest.mark.parametrize(
    ("environment_id", "kwargs", "told"),
    [
        ("CartPol-v1", {}, "Did you mean: `CartPole`.*use an id that"),
        ("CartPole-v9", {}, "`v9` for environment `CartPole` doesn't exist"),
        ("NoSuchNamespace/Thing-v0", {}, "use an id that"),
        ("GalaCount-v0", {"colour": "red"}, "cannot be made with kwargs .*unexpected keyword argument 'colour'"),
        ("GalaLeaving-v0", {"at": "made"}, r"cannot be made with kwargs .*: SystemExit: "),
        ("GalaCount-v0", {"vectorization_mode": "magic"}, "Invalid vectorization mode: 'magic'"),
    ],
)
def test_what_gymnasium_cannot_make_is_refused(
    make: Make, environment_id: str, kwargs: dict[str, Any], told: str
) -> None:
    with pytest.raises(SimulatorError, match=f"^spec.environment.*{told}"):
        make(environment_id, **kwargs)


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_what_an_environment_does_to_its_kwargs_is_seen_by_nobody_else(mode: str) -> None:
    gymnasium.register("GalaCounting-v0", entry_point=Counting, vector_entry_point=CountingVector)
    kwargs = {"config": {"made": 0}, "vectorization_mode": mode}
    environment = Environment.model_validate({"id": "GalaCounting-v0", "kwargs": kwargs})
    simulators = make_simulators(environment, 3)
    simulators.reset(0)
    assert step(simulators).rewards.tolist() == ([1.0] * 3 if mode != "vector_entry_point" else [1.0, 2.0, 3.0])
    simulators.close()
    assert environment.kwargs == kwargs


def test_a_refusal_names_the_kwargs_as_they_were_given(make: Make) -> None:
    gymnasium.register("GalaCounting-v0", entry_point=Counting)
    with pytest.raises(SimulatorError, match=r"with kwargs \{'config': \{'made': 0, 'fail': True\}\}: RuntimeError"):
        make("GalaCounting-v0", config={"made": 0, "fail": True})


@pytest.mark.parametrize(("num", "threads"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(num: int, threads: int) -> None:
    with pytest.raises(SimulatorError, match="must be at least 1, got 0"):
        make_simulators(Environment.model_validate({"id": "GalaCount-v0"}), num, threads=threads)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("infos", [[None, 1], [[0.0], [0.0, 0.0]]])
def test_infos_that_do_not_match_each_other_are_no_matter(make: Make, mode: str, infos: list[Any]) -> None:
    """Gymnasium packs those of all simulators into arrays of the first one's type and shape."""
    gymnasium.register("GalaTelling-v0", entry_point=Telling)
    simulators = make("GalaTelling-v0", vectorization_mode=mode, infos=infos)
    simulators.reset(0)
    step(simulators, LENGTH + 2)
    assert [episode.return_ for episode in simulators.pop_episodes()] == [10.0 * LENGTH] * 2


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_an_environment_that_cannot_be_closed_is_a_warning(
    make: Make, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    gymnasium.register("GalaSticking-v0", entry_point=Sticking, vector_entry_point=StickingVector)
    simulators = make("GalaSticking-v0", vectorization_mode=mode)
    simulators.reset(0)
    simulators.close()
    simulators.close()
    assert "GalaSticking-v0 cannot be closed: RuntimeError: it sticks (" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's way of telling what a process of its own has met
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_environment_that_ends_its_process_is_an_error_that_names_it(
    make: Make, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """sys.exit() would pass for a learner that has finished."""
    told = r"GalaLeaving-v0 has called sys\.exit\(None\)"
    with pytest.raises(RuntimeError, match=told):
        make("GalaLeaving-v0", vectorization_mode=mode, at="reset").reset(0)
    stepping = make("GalaLeaving-v0", vectorization_mode=mode, at="stepped")
    stepping.reset(0)
    with pytest.raises(RuntimeError, match=told):
        step(stepping)
    make("GalaLeaving-v0", vectorization_mode=mode, at="closed").close()
    assert "GalaLeaving-v0 cannot be closed: SystemExit: " in caplog.text


def test_closed_simulators_say_so_and_close_again(make: Make) -> None:
    simulators = make("GalaCount-v0")
    simulators.reset(0)
    simulators.close()
    simulators.close()
    with pytest.raises(RuntimeError, match="closed"):
        step(simulators)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes `mine/games.py` in a new current directory; imports of it are undone at the end."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write(text: str) -> None:
        (tmp_path / "mine" / "games.py").write_text(text)

    yield write
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]


OWN_GAME = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
class Game(CartPoleEnv):
    pass
gymnasium.register("Mine-v0", entry_point=Game, max_episode_steps=7)
"""


def test_an_environment_of_ones_own_is_found_in_the_current_directory(
    make: Make, own_module: Callable[[str], None]
) -> None:
    own_module(OWN_GAME)
    simulators = make("mine.games:Mine-v0")
    assert simulators.reset(0).shape == (2, 4)


def test_the_documented_environment_runs_as_it_stands(make: Make, own_module: Callable[[str], None]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    own_module(document.split("```python\n")[1].split("```")[0])
    simulators = make("mine.games:Corridor-v0", num=1, length=4)
    simulators.reset(0)
    for _ in range(4):
        simulators.step(np.ones(1, np.int64))
    assert [episode.steps for episode in simulators.pop_episodes()] == [4]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            OWN_GAME.replace("import gymnasium\n", "import nothing_of_the_kind\n"),
            "No module named 'nothing_of_the_kind'",
        ),
        ("import sys; sys.exit(3)", r"SystemExit: 3 \(.*games.py:1\)"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*games.py:1\)"),
        ("", "Mine.*doesn't exist"),
    ],
)
def test_what_is_wrong_with_ones_own_module_is_told(
    make: Make, own_module: Callable[[str], None], text: str, told: str
) -> None:
    own_module(text)
    with pytest.raises(SimulatorError, match=f"^spec.environment.id: .*{told}"):
        make("mine.games:Mine-v0")


def test_a_module_that_is_not_there_is_told_with_the_places_searched(
    make: Make, own_module: Callable[[str], None], tmp_path: Path
) -> None:
    with pytest.raises(SimulatorError, match=r"no module 'mine\.plays'") as caught:
        make("mine.plays:Mine-v0")
    assert str(tmp_path) in str(caught.value)
    assert "PYTHONPATH" in str(caught.value)
