"""Of stacked frames only new ones are rearranged: what simulators say is true, and learning sees no difference."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from gala.spec import Environment, Policy
from gala_worker.environments import make_simulators
from gala_worker.flat import FlatState
from gala_worker.model import ActorCritic, Tape, make_policy
from gala_worker.rollout import Collector

FRAMES = 4
STEPS, BATCH = 3, 2


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_what_atari_says_of_new_frames_is_true_in_every_step(preset: str) -> None:
    # Breakout loses lives, presses FIRE, and ends by its last life or, cut short, by its time limit.
    kwargs = {"max_num_frames_per_episode": 400}
    environment = Environment.model_validate({"id": "ALE/Breakout-v5", "preset": preset, "kwargs": kwargs})
    simulators = make_simulators(environment, BATCH, threads=1)
    random = np.random.default_rng(0)
    before, told = simulators.reset(1), []
    for _ in range(300):
        step = simulators.step(random.integers(4, size=BATCH))
        told.append(step.new_frames)
        if step.new_frames is not None:
            kept = FRAMES - step.new_frames
            np.testing.assert_array_equal(step.observations[:, :kept], before[:, step.new_frames :])
        elif step.valid.all():
            pytest.fail("only a new game is unknown")
        before = step.observations
    simulators.close()
    assert 0 < told.count(None) < 20
    assert set(told) == {1, None}


def make_image_policy() -> ActorCritic:
    space = gymnasium.spaces.Box(0, 255, (FRAMES, 84, 84), np.uint8)
    return make_policy(space, gymnasium.spaces.Discrete(6), Policy(), seed=1)


def moving(seed: int, steps: int) -> list[tuple[Tensor, int | None]]:
    """A film that moves on by one or two frames, stands still or begins anew, and what is said of each observation."""
    generator = torch.Generator().manual_seed(seed)

    def film(frames: int) -> Tensor:
        return torch.randint(0, 256, (BATCH, frames, 84, 84), dtype=torch.uint8, generator=generator)

    shown: list[tuple[Tensor, int | None]] = [(film(FRAMES), None)]
    for k in range(1, steps):
        new = (1, 2, 0, None, 1)[k % 5]
        last = shown[-1][0]
        shown.append((torch.cat((last[:, new:], film(new)), 1) if new is not None else film(FRAMES), new))
    return shown


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, STEPS])
def test_moved_frames_give_the_same_values_and_gradients_as_whole_observations(dtype: torch.dtype, length: int) -> None:
    policy = make_image_policy()
    flat = FlatState(policy)
    starts = torch.zeros(BATCH, dtype=torch.bool)

    def learn(*, says: bool) -> list[Tensor]:
        tape, results = Tape(policy, length, BATCH, dtype), []
        shown = iter(moving(0, 20))
        observation, new = next(shown)
        for _ in range(20 // length - 1):
            tape.begin()
            for _ in range(length):
                tape.act(observation, starts, new if says else None)
                observation, new = next(shown)
            results.append(tape.bootstrap(observation, starts, new if says else None))
            new = 0
            replay = tape.replay()
            flat.differentiate(replay.values.sum() + replay.parameters.square().sum())
            results.append(flat.gradient.clone())
        return results

    for told, untold in zip(learn(says=True), learn(says=False), strict=True):
        assert torch.equal(told, untold)


def test_frames_are_not_moved_over_themselves() -> None:
    policy = make_image_policy()
    starts = torch.zeros(BATCH, dtype=torch.bool)
    moved, whole = Tape(policy, 1, BATCH), Tape(policy, 1, BATCH)
    for observation, new in moving(0, 3):
        moved.begin()  # without a bootstrap in between the next step goes to where the last one is
        whole.begin()
        assert torch.equal(moved.act(observation, starts, new).value, whole.act(observation, starts).value)


def test_a_collector_hands_on_what_the_simulators_say(monkeypatch: pytest.MonkeyPatch) -> None:
    simulators = make_simulators(Environment(id="ALE/Pong-v5"), BATCH, threads=1)
    policy = make_policy(simulators.observation_space, simulators.action_space, Policy(), seed=1)
    collector = Collector(
        simulators,
        policy,
        rollout_length=STEPS,
        clip_rewards=True,
        compute_type=torch.float32,
        device=torch.device("cpu"),
        seed=1,
    )
    said: list[int | None] = []
    forward = collector._tape._forward

    def listen(observations: Tensor, starts: Tensor, slot: slice | None, new_frames: int | None) -> object:
        said.append(new_frames)
        return forward(observations, starts, slot, new_frames)

    monkeypatch.setattr(collector._tape, "_forward", listen)
    collector.collect()
    collector.collect()
    simulators.close()
    assert said == [None, 1, 1, 1, 0, 1, 1, 1]
