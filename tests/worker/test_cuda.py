"""What differs on a GPU: copies, precision and page-locked buffers. Skipped where there is none."""

import gymnasium
import numpy as np
import pytest
import torch

from gala.spec import Environment, Hyperparameters, Policy
from gala_worker.algorithms.a2c import A2C
from gala_worker.environments import make_simulators
from gala_worker.flat import FlatState
from gala_worker.gossip.fleet import small_plan
from gala_worker.gossip.memory import MemoryNetwork
from gala_worker.gossip.peer import GossipPeer
from gala_worker.model import Tape, make_policy
from gala_worker.rollout import Collector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

T, B = 3, 4
IMAGES = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def gradient(device: str, dtype: torch.dtype) -> torch.Tensor:
    """Of a made-up loss on made-up images: the same on every device."""
    policy = make_policy(IMAGES, gymnasium.spaces.Discrete(6), Policy(), seed=1).to(device)
    flat = FlatState(policy, policy.gossiped_buffers())
    tape = Tape(policy, T, B, dtype)
    images = torch.randint(0, 255, (T, B, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    tape.begin()
    for t in range(T):
        tape.act(images[t].to(device), torch.zeros(B, dtype=torch.bool, device=device))
    parameters, values = tape.replay()
    flat.differentiate(parameters.square().mean() + values.square().mean())
    return flat.gradient.cpu()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.01), (torch.bfloat16, 0.1)])
def test_the_gradient_on_a_gpu_is_the_one_on_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    reference = gradient("cpu", torch.float32)
    assert float((gradient("cuda", dtype) - reference).norm() / reference.norm()) < tolerance


def test_a_learner_on_a_gpu_makes_updates_that_are_finite() -> None:
    device = torch.device("cuda")
    simulators = make_simulators(Environment(id="ALE/Pong-v5"), B)
    policy = make_policy(simulators.observation_space, simulators.action_space, Policy(), seed=1).to(device)
    flat = FlatState(policy, policy.gossiped_buffers())
    before = flat.vector.clone()
    algorithm = A2C(policy, flat, Hyperparameters())
    collector = Collector(
        simulators,
        policy,
        rollout_length=T,
        clip_rewards=True,
        compute_type=torch.bfloat16,
        device=device,
        seed=1,
    )
    for _ in range(3):
        algorithm.update(collector.collect(), 0.0)
    simulators.close()
    assert bool(torch.isfinite(flat.vector).all())
    assert not torch.equal(flat.vector, before)


def test_parameters_on_a_gpu_are_offered_and_mixed() -> None:
    plan = small_plan(learners=2)
    network = MemoryNetwork()
    peers = [
        GossipPeer(rank, plan, "gpu", 8, transport=network.transport(rank), incarnation=2, pinned=True)
        for rank in plan.ranks
    ]
    for peer in peers:
        peer.start()
        peer.join()
    vectors = [torch.full((8,), float(4 * rank), device="cuda") for rank in plan.ranks]
    assert network.run_until(lambda: all(peer.stats().out_peers for peer in peers), 5.0)
    for peer, vector in zip(peers, vectors, strict=True):
        peer.offer(vector, version=1, steps=1)
    assert network.run_until(lambda: peers[0].mix(vectors[0]) is not None, 5.0)
    assert vectors[0].tolist() == [2.0] * 8
