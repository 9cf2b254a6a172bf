"""Contributions on their way: what an actor recorded arrives as it was, and what is hostile does not get in."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from gala.errors import MessageError
from gala_worker.algorithms.impala_rollouts import Batch, RolloutLayout
from gala_worker.gossip.messages import Reason
from gala_worker.model.distributions import make_distribution

T, B, H = 3, 2, 4
ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = spaces.Box(-math.inf, math.inf, (5,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(6),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "switches": spaces.MultiBinary(3),
}


def layout(space: spaces.Box = VECTOR, actions: str = "discrete", *, recurrent: bool = False) -> RolloutLayout:
    return RolloutLayout(T, B, space, make_distribution(ACTIONS[actions]), state_size=H if recurrent else None)


def rollout(space: spaces.Box = VECTOR, actions: str = "discrete", *, recurrent: bool = False, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    distribution = make_distribution(ACTIONS[actions])
    parameters = torch.randn(T, B, distribution.num_parameters, generator=generator)
    images = torch.randint(0, 256, (T + 1, B, *space.shape), dtype=torch.uint8, generator=generator)
    flags = torch.rand(3, T, B, generator=generator) < 0.3
    return Batch(
        observations=images if space is ATARI else torch.randn(T + 1, B, *space.shape, generator=generator),
        actions=distribution.sample(parameters, generator),
        parameters=parameters,
        rewards=torch.randn(T, B, generator=generator),
        terminated=flags[0],
        truncated=flags[1],
        valid=~flags[2],
        starts=torch.rand(T + 1, B, generator=generator) < 0.3,
        state=torch.randn(B, H, generator=generator) if recurrent else None,
    )


def sent(rollout: Batch, form: RolloutLayout) -> bytes:
    return b"".join(form.encode(rollout))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("actions", list(ACTIONS))
@pytest.mark.parametrize("space", [ATARI, VECTOR], ids=["images", "vectors"])
def test_what_is_sent_arrives_as_it_was(space: spaces.Box, actions: str, recurrent: bool) -> None:
    form = layout(space, actions, recurrent=recurrent)
    rollouts = [rollout(space, actions, recurrent=recurrent, seed=seed) for seed in range(3)]
    payloads = [sent(each, form) for each in rollouts]
    assert {len(payload) for payload in payloads} == {form.num_bytes}
    arrays = [
        form.decode(payload, num_steps=int(each.valid.sum())) for payload, each in zip(payloads, rollouts, strict=True)
    ]
    batch = form.join(arrays, torch.device("cpu"))
    for name, tensor in batch._asdict().items():
        if name == "state":
            expected = torch.cat([each.state for each in rollouts]) if recurrent else None
            assert tensor is expected is None or torch.equal(tensor, expected)
            continue
        expected = torch.cat([getattr(each, name) for each in rollouts], 1)
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected), name


def test_images_travel_as_bytes() -> None:
    form = layout(ATARI)
    assert form.num_bytes < (T + 1) * B * 4 * 84 * 84 * 1.01


def test_a_rollout_of_another_shape_is_not_sent() -> None:
    with pytest.raises(ValueError, match="rewards must be float32"):
        layout().encode(rollout()._replace(rewards=torch.zeros(T, B + 1)))
    with pytest.raises(ValueError, match="observations must be uint8"):
        layout(ATARI).encode(rollout(VECTOR))
    with pytest.raises(ValueError, match="has no state"):
        layout(recurrent=True).encode(rollout())


def test_observations_of_other_kinds_have_no_layout() -> None:
    with pytest.raises(ValueError, match="must be uint8 or float32"):
        layout(spaces.Box(0.0, 1.0, (5,), np.float64))


def spoilt(name: str, value: float, *, actions: str = "discrete", recurrent: bool = False) -> bytes:
    """A payload with one number of one field replaced."""
    form = layout(VECTOR, actions, recurrent=recurrent)
    payload = bytearray(sent(rollout(VECTOR, actions, recurrent=recurrent), form))
    field = next(field for field in form._fields if field.name == name)
    window = memoryview(payload)[field.offset : field.offset + field.num_bytes]
    np.frombuffer(window, field.dtype)[-1:] = value
    return bytes(payload)


STEPS = int(rollout().valid.sum())


@pytest.mark.parametrize(
    ("name", "value", "actions", "words"),
    [
        ("observations", math.nan, "discrete", "observations .* not finite"),
        ("parameters", math.inf, "discrete", "parameters .* not finite"),
        ("rewards", -math.inf, "discrete", "rewards .* not finite"),
        ("rewards", -1e30, "discrete", r"rewards .* beyond 1e\+15"),
        ("state", math.nan, "discrete", "state .* not finite"),
        ("actions", 6, "discrete", "actions .* does not have"),
        ("actions", -1, "discrete", "actions .* does not have"),
        ("actions", 2**62, "discrete", "actions .* does not have"),
        ("actions", math.nan, "box", "actions .* not finite"),
        ("actions", 3e38, "box", "cannot have taken"),
        ("parameters", -3e38, "box", "cannot have taken"),
        ("actions", 0.5, "switches", "neither on nor off"),
        ("terminated", 2, "discrete", "terminated .* neither true nor false"),
        ("valid", 255, "discrete", "valid .* neither true nor false"),
        ("starts", 7, "discrete", "starts .* neither true nor false"),
    ],
)
def test_hostile_numbers_are_refused(name: str, value: float, actions: str, words: str) -> None:
    recurrent = name == "state"
    form = layout(VECTOR, actions, recurrent=recurrent)
    steps = int(rollout(VECTOR, actions, recurrent=recurrent).valid.sum())
    with pytest.raises(MessageError, match=words):
        form.decode(spoilt(name, value, actions=actions, recurrent=recurrent), num_steps=steps)


@pytest.mark.parametrize(
    ("name", "value", "reason"), [("rewards", math.nan, Reason.NOT_FINITE), ("actions", 7, Reason.MALFORMED)]
)
def test_a_refusal_says_what_is_wrong(name: str, value: float, reason: Reason) -> None:
    refusal = layout().inspect(spoilt(name, value))
    assert refusal is not None
    assert refusal.reason is reason
    assert refusal.detail.startswith(f"{name} in a rollout that")
    assert layout().inspect(sent(rollout(), layout())) is None


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_another_size_is_refused(change: int) -> None:
    form = layout()
    payload = (sent(rollout(), form) + b"\0" * 1000)[: form.num_bytes + change]
    with pytest.raises(MessageError, match="bytes instead of"):
        form.decode(payload, num_steps=STEPS)
    with pytest.raises(MessageError, match="bytes instead of"):
        form.decode(b"", num_steps=STEPS)


@pytest.mark.parametrize("claimed", [STEPS - 1, STEPS + 1, 10**12])
def test_a_claim_of_other_decisions_than_there_are_is_refused(claimed: int) -> None:
    form = layout()
    with pytest.raises(MessageError, match="said to have"):
        form.decode(sent(rollout(), form), num_steps=claimed)


@pytest.mark.parametrize("seed", range(30))
def test_noise_of_the_right_size_is_refused_without_a_warning(seed: int) -> None:
    form = layout(ATARI, "box", recurrent=True)
    with pytest.raises(MessageError):
        form.decode(np.random.default_rng(seed).bytes(form.num_bytes), num_steps=STEPS)


def test_equal_runs_have_equal_layouts_and_every_number_is_aligned() -> None:
    form = layout(ATARI, "box", recurrent=True)
    assert [dataclasses.astuple(f) for f in form._fields] == [
        dataclasses.astuple(f) for f in layout(ATARI, "box", recurrent=True)._fields
    ]
    assert all(field.offset % field.dtype.itemsize == 0 for field in form._fields)
