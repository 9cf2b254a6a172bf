"""Running statistics of observations: equal to those of all observations at once, and robust."""

from __future__ import annotations

import math

import pytest
import torch

from gala_worker.model.normalisation import RunningNormalisation


def observations(count: int, *, mean: float = 3.0, deviation: float = 2.0, seed: int = 0) -> torch.Tensor:
    return mean + deviation * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def statistics(module: RunningNormalisation) -> list[torch.Tensor]:
    return [module.mean.clone(), module.variance.clone(), module.count.clone()]


@pytest.mark.parametrize("sizes", [[1], [16] * 20, [1, 100, 7, 1], [1] * 30])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_merged_batches_give_the_statistics_of_all_observations(sizes: list[int], mean: float) -> None:
    everything = observations(sum(sizes), mean=mean)
    module = RunningNormalisation(4)
    for batch in everything.split(sizes):
        module.update(batch)
    exact = everything.double()
    torch.testing.assert_close(module.mean, exact.mean(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.variance, exact.var(0, correction=0).float(), rtol=1e-3, atol=1e-5)
    assert module.count == sum(sizes)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_what_several_have_seen_apart_makes_the_statistics_of_all(mean: float) -> None:
    everything = observations(900, mean=mean)
    whole, centre = RunningNormalisation(4), RunningNormalisation(4)
    whole.update(everything)
    actors = [RunningNormalisation(4) for _ in range(3)]
    for actor in actors:
        actor.collect_fresh()
    for number, batch in enumerate(everything.split(60)):
        actor = actors[number % 3]
        for own, centre_s in zip(actor.buffers(), centre.buffers(), strict=True):
            own.copy_(centre_s.bfloat16())  # what it adopts, however rounded, is not what it has seen
        actor.update(batch[:20])
        actor.update(batch[20:])
        centre.merge(actor.pop_fresh())
        assert actor.pop_fresh().weight == 0
    torch.testing.assert_close(centre.mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(centre.variance, whole.variance, rtol=1e-3, atol=1e-5)
    assert centre.count == 900


def test_output_has_mean_zero_and_deviation_one() -> None:
    module = RunningNormalisation(4)
    module.update(observations(10_000))
    output = module(observations(10_000, seed=1))
    torch.testing.assert_close(output.mean(0), torch.zeros(4), rtol=0.0, atol=0.05)
    torch.testing.assert_close(output.std(0), torch.ones(4), rtol=0.0, atol=0.05)


def test_before_the_first_update_observations_pass_unchanged() -> None:
    batch = observations(8, mean=0.0)
    torch.testing.assert_close(RunningNormalisation(4)(batch), batch)


def test_outliers_and_constant_features_are_clipped_to_ten() -> None:
    module = RunningNormalisation(4)
    batch = observations(100)
    batch[:, 0] = 7.0
    module.update(batch)
    assert module(torch.full((1, 4), 1e6)).tolist() == [[10.0] * 4]
    assert module(torch.full((1, 4), -1e6)).tolist() == [[-10.0] * 4]
    assert module(batch)[:, 0].abs().max() < 1e-2


def test_invalid_rows_are_left_out() -> None:
    module, expected = RunningNormalisation(4), RunningNormalisation(4)
    batch = observations(10)
    valid = torch.arange(10) % 2 == 0
    module.update(torch.where(valid.unsqueeze(1), batch, 1e9), valid)
    expected.update(batch[valid])
    for ours, theirs in zip(statistics(module), statistics(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20, -torch.finfo(torch.float32).max])
def test_observations_that_are_not_finite_or_whose_squares_may_not_be_are_left_out(bad: float) -> None:
    module, expected = RunningNormalisation(4), RunningNormalisation(4)
    batch = observations(6)
    expected.update(batch[1:])
    batch[0, 2] = bad
    module.update(batch)
    for ours, theirs in zip(statistics(module), statistics(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_usable_changes_nothing() -> None:
    module = RunningNormalisation(4)
    module.update(observations(5))
    before = statistics(module)
    module.update(observations(5), torch.zeros(5, dtype=torch.bool))
    module.update(torch.full((3, 4), math.nan))
    assert all(map(torch.equal, statistics(module), before))


def test_statistics_change_in_place_so_that_they_stay_in_the_flat_vector() -> None:
    module = RunningNormalisation(4)
    vector = torch.zeros(9)
    for tensor, window in zip((module.mean, module.variance, module.count), vector.split([4, 4, 1]), strict=True):
        tensor.data = window.view(tensor.shape)
    module.update(observations(50))
    assert torch.equal(vector, torch.cat([module.mean, module.variance, module.count.view(1)]))
    assert vector[8] == 50.0


def test_updating_leaves_kept_graphs_usable() -> None:
    module, layer = RunningNormalisation(4), torch.nn.Linear(4, 1)
    output = layer(module(observations(8))).sum()
    module.update(observations(8, seed=2))
    output.backward()
    assert layer.weight.grad is not None


def test_bytes_are_normalised_as_numbers() -> None:
    module = RunningNormalisation(4)
    batch = torch.randint(0, 256, (1000, 4), dtype=torch.uint8)
    module.update(batch)
    assert module(batch).std(0).sub(1.0).abs().max() < 0.01
