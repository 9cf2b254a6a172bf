"""The convolutional trunk's activations of one rollout, and one backward pass over all of them.

Autograd would run the backward pass once for every step of acting, and convert and add up the gradients of all weights
every time. Here acting leaves its activations in buffers that span the rollout, and learning is one function of them
whose value is known already. On a CPU it works on pieces that stay in the cache. docs/performance.md has what it saves.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gala_worker.model.network import Nature32, NatureWeights, patches
from gala_worker.model.products import linear_relu, product

PIECE_BYTES: Final = {torch.float32: 2 << 20, torch.bfloat16: 8 << 20}
"""Of the first convolution's inputs: as much as a CPU's backward pass works on in one go, by the compute type."""


class ConvolutionTape:
    """Shapes: N = T * B images; slots are slices of N. Everything is channels last and in the compute type, but for the
    pixels, which stay what they were observed as: float32 would make them four times as large.
    """

    def __init__(self, trunk: Nature32, num_images: int, dtype: torch.dtype) -> None:
        self._trunk = trunk
        self._dtype = dtype
        self._channels = 16 * trunk.conv1.in_channels
        device = trunk.conv1.weight.device

        def buffer(*shape: int) -> Tensor:
            return torch.empty(num_images, *shape, dtype=dtype, device=device)

        self._pixels = self._latest = torch.empty(0, device=device)
        self._hidden1 = buffer(20, 20, 32)
        self._hidden2 = buffer(9, 9, 64)
        self._hidden3 = buffer(7, 7, 32)
        self._features = buffer(trunk.num_features)
        image_bytes = 21 * 21 * self._channels * dtype.itemsize
        pieces = math.ceil(num_images * image_bytes / PIECE_BYTES[dtype]) if device.type == "cpu" else 1
        self._piece = math.ceil(num_images / pieces)
        self.load_weights()

    @torch.no_grad()
    def load_weights(self) -> None:
        """Takes over the trunk's weights in the compute type: once per rollout, before its first `forward`."""
        self._weights = self._trunk.weights(self._dtype)

    @torch.no_grad()
    def forward(self, observations: Tensor, slot: slice | None, new_frames: int | None = None) -> Tensor:
        """Features [B, 512] in float32 of observations [B, C, 84, 84]; remembered in `slot`, not at all if None.

        `new_frames` of the C are other ones than in the last call, None = all may be: the rest is only moved.
        """
        weights = self._weights

        def activate(hidden: Tensor, buffer: Tensor) -> Tensor:
            return hidden.relu_() if slot is None else torch.clamp_min(hidden, 0.0, out=buffer[slot])

        pixels = self._rearrange(observations, slot, new_frames)
        hidden = functional.conv2d(_picture(pixels.to(self._dtype)), weights.conv1, weights.bias1)
        hidden = activate(_rows(hidden), self._hidden1)
        hidden = functional.conv2d(_picture(hidden), weights.conv2, weights.bias2, 2)
        hidden = activate(_rows(hidden), self._hidden2)
        hidden = functional.conv2d(_picture(hidden), weights.conv3, weights.bias3)
        hidden = activate(_rows(hidden), self._hidden3)
        features = linear_relu(hidden.flatten(1), weights.full, weights.bias)
        if slot is not None:
            self._features[slot] = features
        return features.to(torch.float32)

    def _rearrange(self, observations: Tensor, slot: slice | None, new_frames: int | None) -> Tensor:
        """`patches` of the observations, in `slot` of the pixels if there is one, else in a place of their own."""
        if not len(self._pixels):
            self._pixels = observations.new_empty(len(self._hidden1), 21, 21, self._channels)
            self._after = observations.new_empty(len(observations), 21, 21, self._channels)
        before, pixels = self._latest, self._after if slot is None else self._pixels[slot]
        self._latest = pixels
        if new_frames is None or before.data_ptr() == pixels.data_ptr():  # nothing is moved within one place
            return pixels.copy_(patches(observations))
        width = new_frames * self._channels // observations.shape[1]
        pixels[..., : self._channels - width] = before[..., width:]
        if new_frames:
            pixels[..., self._channels - width :] = patches(observations[:, -new_frames:])
        return pixels

    def replay(self) -> Tensor:
        """The remembered features [N, 512] in float32, differentiable once with respect to the trunk's parameters.

        To be differentiated before the next rollout overwrites them; autograd refuses afterwards.
        """
        activations = (self._pixels, self._hidden1, self._hidden2, self._hidden3, self._features)
        features: Tensor = _Known.apply(  # type: ignore[no-untyped-call]
            self._trunk, self._weights, self._piece, *activations, *self._trunk.parameters()
        )
        return features


def _picture(rows: Tensor) -> Tensor:
    """[N, height, width, channels] as lies in memory -> [N, channels, height, width] as torch counts; no copy."""
    return rows.permute(0, 3, 1, 2)


def _rows(picture: Tensor) -> Tensor:
    """The inverse of `_picture`."""
    return picture.permute(0, 2, 3, 1)


class _Known(torch.autograd.Function):
    """The features as a function of the trunk's parameters, given all activations."""

    @staticmethod
    def forward(ctx: Any, trunk: Nature32, weights: NatureWeights, piece: int, *tensors: Tensor) -> Tensor:
        *_, features = activations = tensors[:5]  # the parameters follow
        ctx.trunk, ctx.weights, ctx.piece = trunk, weights, piece
        ctx.save_for_backward(*activations)
        return features.to(torch.float32, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        trunk: Nature32 = ctx.trunk
        weights: NatureWeights = ctx.weights
        pixels, hidden1, hidden2, hidden3, features = ctx.saved_tensors
        slopes = _through_relu(gradient.to(features.dtype, copy=True), features)
        flat = hidden3.flatten(1)
        of_full, of_bias = product(slopes.t(), flat), slopes.sum(0)
        slopes = _through_relu(product(slopes, weights.full), flat).view_as(hidden3)
        sums: list[Tensor] = []
        for start in range(0, len(pixels), ctx.piece):
            piece = slice(start, start + ctx.piece)
            back, *third = _backward(slopes[piece], hidden2[piece], weights.conv3)
            back, *second = _backward(_through_relu(back, hidden2[piece]), hidden1[piece], weights.conv2, 2)
            back = _through_relu(back, hidden1[piece])
            _, *first = _backward(back, pixels[piece].to(back.dtype), weights.conv1, wants_inputs=False)
            parts = (*first, *second, *third)
            if sums:
                for total, part in zip(sums, parts, strict=True):
                    total.add_(part)
            else:
                sums = [part.to(torch.float32) for part in parts]
        return (*(None,) * 8, *trunk.gradients(NatureWeights._make((*sums, of_full, of_bias))))


def _backward(
    slopes: Tensor, inputs: Tensor, weight: Tensor, stride: int = 1, *, wants_inputs: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a convolution's inputs, weight and bias, the first of rows like `slopes` and `inputs`."""
    back, of_weight, of_bias = torch.ops.aten.convolution_backward(
        *(_picture(slopes), _picture(inputs), weight, [len(weight)], [stride] * 2, [0, 0], [1, 1]),
        *(False, [0, 0], 1, [wants_inputs, True, True]),
    )
    return _rows(back) if wants_inputs else back, of_weight, of_bias


def _through_relu(slopes: Tensor, outputs: Tensor) -> Tensor:
    """The gradient before a ReLU, in place of the one behind it."""
    result: Tensor = torch.ops.aten.threshold_backward.grad_input(slopes, outputs, 0, grad_input=slopes)
    return result
