"""The convolutional trunk's activations of one rollout, and one backward pass over all of them at once.

Autograd would run the backward pass once for every step of acting, on 16 images each, and convert and add up the
gradients of all weights every time. Here acting leaves its activations in buffers that span the rollout, and learning
builds the graph over the whole rollout from layers whose outputs are known already. Measured on one core with 16
simulators and 5 steps: a sixth less time per update, in float32 and in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gala_worker.model.network import Nature32, NatureWeights, patches


class ConvolutionTape:
    """Shapes: N = T * B images; slots are slices of N. Everything is kept in the compute type, channels last."""

    def __init__(self, trunk: Nature32, num_images: int, dtype: torch.dtype) -> None:
        self._trunk = trunk
        self._dtype = dtype
        device = trunk.conv1.weight.device

        def buffer(*shape: int) -> Tensor:
            return torch.empty(num_images, *shape, dtype=dtype, device=device)

        self._pixels = buffer(21, 21, 16 * trunk.conv1.in_channels)
        self._hidden1 = buffer(20, 20, 32)
        self._hidden2 = buffer(9, 9, 64)
        self._hidden3 = buffer(7, 7, 32)
        self._features = buffer(trunk.num_features)
        self.load_weights()

    def load_weights(self) -> None:
        """Takes over the trunk's weights in the compute type: once per rollout, before its first `forward`."""
        with torch.enable_grad():
            self._weights = self._trunk.weights(self._dtype)
        self._constants = NatureWeights(*(weight.detach() for weight in self._weights))

    @torch.no_grad()
    def forward(self, observations: Tensor, slot: slice | None) -> Tensor:
        """Features [B, 512] in float32 of observations [B, C, 84, 84]; remembered in `slot`, not at all if None."""
        weights = self._constants

        def activate(hidden: Tensor, buffer: Tensor) -> Tensor:
            return hidden.relu_() if slot is None else torch.clamp_min(hidden, 0.0, out=buffer[slot])

        moved = patches(observations)
        pixels = moved.to(self._dtype) if slot is None else self._pixels[slot].copy_(moved)
        hidden = functional.conv2d(_picture(pixels), weights.conv1, weights.bias1)
        hidden = activate(_rows(hidden), self._hidden1)
        hidden = functional.conv2d(_picture(hidden), weights.conv2, weights.bias2, 2)
        hidden = activate(_rows(hidden), self._hidden2)
        hidden = functional.conv2d(_picture(hidden), weights.conv3, weights.bias3)
        hidden = activate(_rows(hidden), self._hidden3)
        features = functional.linear(hidden.flatten(1), weights.full, weights.bias)
        return activate(features, self._features).to(torch.float32)

    def replay(self) -> Tensor:
        """The remembered features [N, 512] in float32, differentiable once with respect to the trunk's parameters.

        To be differentiated before the next rollout overwrites them; autograd refuses afterwards.
        """
        weights = self._weights
        hidden = _picture(self._pixels)
        hidden = _known_convolution(hidden, weights.conv1, weights.bias1, 1, _picture(self._hidden1))
        hidden = _known_convolution(hidden, weights.conv2, weights.bias2, 2, _picture(self._hidden2))
        hidden = _known_convolution(hidden, weights.conv3, weights.bias3, 1, _picture(self._hidden3))
        features = _known_linear(_rows(hidden).flatten(1), weights.full, weights.bias, self._features)
        return features.to(torch.float32)


def _picture(rows: Tensor) -> Tensor:
    """[N, height, width, channels] as lies in memory -> [N, channels, height, width] as torch counts; no copy."""
    return rows.permute(0, 3, 1, 2)


def _rows(picture: Tensor) -> Tensor:
    """The inverse of `_picture`."""
    return picture.permute(0, 2, 3, 1)


def _known_convolution(inputs: Tensor, weight: Tensor, bias: Tensor, stride: int, output: Tensor) -> Tensor:
    """relu(conv2d(inputs, weight, bias, stride)), whose value is `output`."""
    result: Tensor = _KnownConvolution.apply(inputs, weight, bias, stride, output)  # type: ignore[no-untyped-call]
    return result


def _known_linear(inputs: Tensor, weight: Tensor, bias: Tensor, output: Tensor) -> Tensor:
    """relu(linear(inputs, weight, bias)), whose value is `output`."""
    result: Tensor = _KnownLinear.apply(inputs, weight, bias, output)  # type: ignore[no-untyped-call]
    return result


class _KnownConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, stride: int, output: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, output)
        ctx.stride = stride
        return output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, output = ctx.saved_tensors
        into = torch.ops.aten.threshold_backward(gradient, output, 0)
        strides, wanted = [ctx.stride] * 2, [ctx.needs_input_grad[0], True, True]
        gradients = torch.ops.aten.convolution_backward(
            into, inputs, weight, [len(weight)], strides, [0, 0], [1, 1], False, [0, 0], 1, wanted
        )
        return (*gradients, None, None)


class _KnownLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, output)
        return output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, output = ctx.saved_tensors
        into = torch.ops.aten.threshold_backward(gradient, output, 0)
        return into @ weight, into.t() @ inputs, into.sum(0), None
