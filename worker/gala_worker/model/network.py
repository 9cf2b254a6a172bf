"""Trunks: from observations to the features that the policy and value heads read.

Shapes: B simulators; images uint8 or float32 [B, C, 84, 84], vectors [B, D]; features float32 or autocast's type [B, H].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIZE = (84, 84)
RELU_GAIN = math.sqrt(2.0)

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)


def orthogonal(layer: _Layer, gain: float) -> _Layer:
    """The layer with orthogonal weights of this gain and zero biases."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Nature32(nn.Module):
    """The convolutional network of GALA's experiments: 32 8x8/4, 64 4x4/2, 32 3x3/1, then 512 units, all ReLU."""

    num_features = 512

    def __init__(self, channels: int, *, scale: float) -> None:
        """`scale` brings observations into [0, 1]: 1/255 for bytes."""
        super().__init__()
        self._scale = scale
        self.conv1 = orthogonal(nn.Conv2d(channels, 32, 8, stride=4), RELU_GAIN)
        self.conv2 = orthogonal(nn.Conv2d(32, 64, 4, stride=2), RELU_GAIN)
        self.conv3 = orthogonal(nn.Conv2d(64, 32, 3, stride=1), RELU_GAIN)
        self.full = orthogonal(nn.Linear(32 * 7 * 7, self.num_features), RELU_GAIN)

    def forward(self, observations: Tensor) -> Tensor:
        """[B, C, 84, 84] -> [B, 512]."""
        # The weights are scaled instead of the input: 8 thousand numbers instead of half a million, and bfloat16 holds a byte exactly.
        pixels = observations.to(memory_format=torch.channels_last, dtype=torch.float32)
        hidden = functional.conv2d(pixels, self.conv1.weight * self._scale, self.conv1.bias, stride=4).relu_()
        hidden = self.conv2(hidden).relu_()
        hidden = self.conv3(hidden).relu_()
        return torch.relu_(self.full(hidden.flatten(1)))


class Mlp(nn.Module):
    """Fully connected tanh layers."""

    def __init__(self, num_inputs: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = [num_inputs, *hidden_sizes]
        self.num_features = sizes[-1]
        self.layers = nn.ModuleList(
            orthogonal(nn.Linear(size, next_size), RELU_GAIN) for size, next_size in zip(sizes, sizes[1:], strict=False)
        )

    def forward(self, observations: Tensor) -> Tensor:
        """[B, D] -> [B, H]."""
        hidden = observations
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return hidden
