"""The flat vector: parameters are windows into it, gradients have its order."""

import pytest
import torch
from torch import nn

from gala_worker.flat import FlatState


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.full((4,), 5.0))
        self.register_buffer("private", torch.zeros(7))


def test_parameters_come_first_then_the_gossiped_buffers() -> None:
    net = Net()
    weight, bias = net.layer.weight.detach().clone(), net.layer.bias.detach().clone()
    flat = FlatState(net, ["mean"])
    assert flat.schema.names == ("layer.weight", "layer.bias", "mean")
    assert torch.equal(flat.vector, torch.cat([weight.flatten(), bias, torch.full((4,), 5.0)]))
    assert len(flat.trainable) == 8
    assert flat.schema.num_elements == 12


def test_a_change_of_the_vector_changes_the_module_and_back() -> None:
    net = Net()
    flat = FlatState(net, ["mean"])
    flat.vector.fill_(2.0)
    assert torch.equal(net.layer.weight, torch.full((2, 3), 2.0))
    assert torch.equal(net.mean, torch.full((4,), 2.0))
    with torch.no_grad():
        net.layer.bias.zero_()
        net.mean.fill_(9.0)
    assert torch.equal(flat.trainable[6:], torch.zeros(2))
    assert torch.equal(flat.vector[8:], torch.full((4,), 9.0))


def test_a_gradient_replaces_the_one_before_and_is_zero_where_nothing_depends() -> None:
    net = Net()
    net.aside = nn.Parameter(torch.ones(3))  # the first of the parameters
    flat = FlatState(net)
    inputs = torch.randn(5, 3)
    for factor in (1.0, 2.0):
        flat.differentiate(factor * net.layer(inputs).sum())
        expected = torch.cat([torch.zeros(3), inputs.sum(0).repeat(2), torch.full((2,), 5.0)])
        torch.testing.assert_close(flat.gradient, factor * expected)


def test_gradients_are_taken_in_the_order_of_their_elements_however_they_lie_in_memory() -> None:
    net = nn.Conv2d(2, 3, 2)
    flat = FlatState(net)
    weights = torch.arange(24.0).view(3, 2, 2, 2).to(memory_format=torch.channels_last)
    flat.differentiate((net.weight * weights).sum())
    assert torch.equal(flat.gradient, torch.cat([torch.arange(24.0), torch.zeros(3)]))


def test_tensors_are_named_copies() -> None:
    net = Net()
    flat = FlatState(net, ["mean"])
    copies = flat.tensors()
    assert {name: tuple(t.shape) for name, t in copies.items()} == {
        "layer.weight": (2, 3),
        "layer.bias": (2,),
        "mean": (4,),
    }
    flat.vector.zero_()
    assert torch.equal(copies["mean"], torch.full((4,), 5.0))


@pytest.mark.parametrize("change", [nn.Linear(3, 3), nn.Linear(2, 3), nn.Linear(3, 2, bias=False)])
def test_other_shapes_have_another_schema_hash(change: nn.Module) -> None:
    first, other = Net(), Net()
    other.layer = change  # type: ignore[assignment]
    assert FlatState(first).schema.hash != FlatState(other).schema.hash
    assert FlatState(first).schema.hash == FlatState(Net()).schema.hash


def test_only_float32_can_be_packed() -> None:
    with pytest.raises(TypeError, match="float64"):
        FlatState(Net().double())
