"""Trunks: from observations to the features that the policy and value heads read.

Shapes: B simulators; images uint8 or float32 [B, C, 84, 84], vectors [B, D]; features [B, H].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE = (84, 84)
RELU_GAIN = math.sqrt(2.0)

# The first convolution moves in steps of 4 pixels, and an image is 21 such steps wide and high.
_PATCH = 4
_PATCHES = IMAGE_SIZE[0] // _PATCH

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)


def orthogonal(layer: _Layer, gain: float) -> _Layer:
    """The layer with orthogonal weights of this gain and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def compute_type(device: torch.device) -> torch.dtype:
    """The type that autocast asks for at this point, float32 outside of it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


class NatureWeights(NamedTuple):
    """The trunk's parameters as its arithmetic wants them: in the compute type, the convolutions' in channels_last.

    They carry the graph back to the parameters and are made once for many forward passes.
    """

    conv1: Tensor
    """[32, 16 C, 2, 2], see `Nature32`."""
    bias1: Tensor
    conv2: Tensor
    bias2: Tensor
    conv3: Tensor
    bias3: Tensor
    full: Tensor
    bias: Tensor


class Nature32(nn.Module):
    """The convolutional network of GALA's experiments: 32 8x8/4, 64 4x4/2, 32 3x3/1, then 512 units, all ReLU.

    It computes in channels_last, and the first convolution as a 2x2 one over patches: 4x4 pixels of C images become the
    16 C channels of one place in a 21x21 picture. The sums are the same and the parameters have their usual shape; but
    rearranging bytes into patches four at a time is several times cheaper than interleaving C channels pixel by pixel.
    """

    num_features = 512

    def __init__(self, channels: int, *, scale: float) -> None:
        """`scale` brings observations into [0, 1]: 1/255 for bytes."""
        super().__init__()
        self._scale = scale
        self.conv1 = orthogonal(nn.Conv2d(channels, 32, 8, stride=4), RELU_GAIN)
        self.conv2 = orthogonal(nn.Conv2d(32, 64, 4, stride=2), RELU_GAIN)
        self.conv3 = orthogonal(nn.Conv2d(64, 32, 3, stride=1), RELU_GAIN)
        # Reads the last picture in the order height, width, channel: as it lies in memory.
        self.full = orthogonal(nn.Linear(7 * 7 * 32, self.num_features), RELU_GAIN)

    def weights(self, dtype: torch.dtype) -> NatureWeights:
        """The parameters for computing in `dtype`."""
        out, channels = self.conv1.weight.shape[:2]
        # The weights are scaled instead of the pixels: thousands of products instead of half a million, and bfloat16
        # holds a byte exactly but not its 255th part.
        first = (self.conv1.weight * self._scale).view(out, channels, 2, _PATCH, 2, _PATCH)
        first = first.permute(0, 1, 3, 5, 2, 4).reshape(out, channels * _PATCH * _PATCH, 2, 2)

        def convolution(weight: Tensor) -> Tensor:
            return weight.to(dtype, memory_format=torch.channels_last)

        def cast(layer: nn.Module) -> Tensor:
            assert isinstance(layer.bias, Tensor)
            return layer.bias.to(dtype)

        return NatureWeights(
            convolution(first),
            cast(self.conv1),
            convolution(self.conv2.weight),
            cast(self.conv2),
            convolution(self.conv3.weight),
            cast(self.conv3),
            self.full.weight.to(dtype),
            cast(self.full),
        )

    def gradients(self, weights: NatureWeights) -> tuple[Tensor, ...]:
        """Of the parameters, in their order, float32: from those of `weights(dtype)`, as `NatureWeights`."""
        out, channels = self.conv1.weight.shape[:2]
        first = weights.conv1.to(torch.float32).reshape(out, channels, _PATCH, _PATCH, 2, 2)
        first = first.permute(0, 1, 4, 2, 5, 3).reshape(out, channels, 2 * _PATCH, 2 * _PATCH) * self._scale
        return (first, *(gradient.to(torch.float32) for gradient in weights[1:]))

    def forward(self, observations: Tensor) -> Tensor:
        """[B, C, 84, 84] -> [B, 512] in autocast's type."""
        dtype = compute_type(observations.device)
        weights = self.weights(dtype)
        hidden = patches(observations).to(dtype).permute(0, 3, 1, 2)
        hidden = functional.conv2d(hidden, weights.conv1, weights.bias1).relu_()
        hidden = functional.conv2d(hidden, weights.conv2, weights.bias2, stride=2).relu_()
        hidden = functional.conv2d(hidden, weights.conv3, weights.bias3).relu_()
        return functional.linear(hidden.permute(0, 2, 3, 1).flatten(1), weights.full, weights.bias).relu_()


def patches(images: Tensor) -> Tensor:
    """[B, C, 84, 84] -> [B, 21, 21, 16 C], contiguous: the channel is (image, row, column within the patch)."""
    batch, channels = images.shape[:2]
    if images.dtype == torch.uint8:
        # Four neighbouring bytes move as one word.
        words = images.contiguous().view(torch.int32).view(batch, channels, _PATCHES, _PATCH, _PATCHES)
        moved = words.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8)
    else:
        moved = images.reshape(batch, channels, _PATCHES, _PATCH, _PATCHES, _PATCH).permute(0, 2, 4, 1, 3, 5)
    return moved.reshape(batch, _PATCHES, _PATCHES, channels * _PATCH * _PATCH)


class Mlp(nn.Module):
    """Fully connected tanh layers."""

    def __init__(self, num_inputs: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = [num_inputs, *hidden_sizes]
        self.num_features = sizes[-1]
        self.layers = nn.ModuleList(orthogonal(nn.Linear(*pair), RELU_GAIN) for pair in itertools.pairwise(sizes))

    def forward(self, observations: Tensor) -> Tensor:
        """[B, D] -> [B, H]."""
        hidden = observations
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden
