"""Acting with what learning will need kept.

Parameters do not change within a rollout, so nothing that was computed to act has to be computed again to learn. A
recorder runs the policy T times without gradient bookkeeping and then gives the same outputs again, as one batch of T B
rows with a graph: one backward pass over a large batch costs less than T over small ones.

    recorder.begin()                                  # the parameters as they are now
    for t in range(T):
        output = recorder.step(observations, state, starts)
    following = recorder.bootstrap(observations, state, starts)
    outputs = recorder.replay()                       # [T, B, ...], differentiable, until the next begin()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gala_worker.model.network import Nature32, NatureWeights, patches
from gala_worker.model.policy import ActorCritic, PolicyOutput


class Recorder(ABC):
    """Runs a policy through rollouts of `num_steps` steps in `batch_size` simulators; for one thread.

    Parameters and observation statistics must not change between `begin` and the backward pass.
    """

    def __init__(self, policy: ActorCritic, num_steps: int, batch_size: int, autocast: torch.dtype | None) -> None:
        self._policy = policy
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._device = policy.device
        self._autocast = torch.autocast(self._device.type, autocast, enabled=autocast is not None)

    @abstractmethod
    def begin(self) -> None:
        """Starts a rollout and forgets the one before."""

    @abstractmethod
    def step(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> PolicyOutput:
        """The policy's outputs [B, ...], without gradient. The recorder keeps its own copy of what it needs."""

    @abstractmethod
    def replay(self) -> PolicyOutput:
        """The outputs of the T steps [T, B, ...], differentiable once; `state` is the one after the last step."""

    @torch.no_grad()
    def bootstrap(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Values [B] of the observations after the last step, without gradient."""
        with self._autocast:
            return self._policy(observations, state, starts).value


def make_recorder(
    policy: ActorCritic, *, num_steps: int, batch_size: int, autocast: torch.dtype | None = None
) -> Recorder:
    """The fastest recorder for this policy; `autocast` is the type to compute in, None for float32."""
    if policy.memory is not None:
        return GraphRecorder(policy, num_steps, batch_size, autocast)
    if isinstance(policy.trunk, Nature32):
        return ConvolutionRecorder(policy, num_steps, batch_size, autocast)
    return RecomputingRecorder(policy, num_steps, batch_size, autocast)


class GraphRecorder(Recorder):
    """Keeps the autograd graph of every step: right for any policy, and what backpropagation through time needs."""

    def begin(self) -> None:
        self._outputs: list[PolicyOutput] = []
        self._observations: list[Tensor] = []

    def step(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> PolicyOutput:
        # The first state of a rollout is given; the others are our own, and carry the graph that the caller's copy lacks.
        if self._outputs and state is not None:
            state = self._outputs[-1].state
        observations = observations.clone()
        with self._autocast:
            output: PolicyOutput = self._policy(observations, state, starts)
        self._outputs.append(output)
        self._observations.append(observations)
        return PolicyOutput(*(None if tensor is None else tensor.detach() for tensor in output))

    def replay(self) -> PolicyOutput:
        parameters = torch.stack([output.parameters for output in self._outputs])
        values = torch.stack([output.value for output in self._outputs])
        state = self._outputs[-1].state
        self._policy.observe(torch.cat(self._observations))
        return PolicyOutput(parameters, values, None if state is None else state.detach())


class RecomputingRecorder(Recorder):
    """Keeps the observations and runs the policy on all of them once more: for small networks, where calls cost most."""

    def begin(self) -> None:
        self._observations: list[Tensor] = []

    @torch.no_grad()
    def step(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> PolicyOutput:
        self._observations.append(observations.clone())
        with self._autocast:
            output: PolicyOutput = self._policy(observations)
        return output

    def replay(self) -> PolicyOutput:
        observations = torch.cat(self._observations)
        with self._autocast:
            output: PolicyOutput = self._policy(observations)
        self._policy.observe(observations)
        return _unflatten(output, self._num_steps)


class ConvolutionRecorder(Recorder):
    """Keeps every layer's activations of a feed-forward nature-32 policy, in buffers that are reused."""

    def __init__(self, policy: ActorCritic, num_steps: int, batch_size: int, autocast: torch.dtype | None) -> None:
        super().__init__(policy, num_steps, batch_size, autocast)
        assert isinstance(policy.trunk, Nature32)
        self._trunk = policy.trunk
        self._dtype = autocast or torch.float32
        channels = 16 * self._trunk.conv1.in_channels
        self._pixels, self._hidden1, self._hidden2, self._hidden3 = (
            self._buffer(*shape) for shape in ((21, 21, channels), (20, 20, 32), (9, 9, 64), (7, 7, 32))
        )
        self._features = self._buffer(self._trunk.num_features)

    def begin(self) -> None:
        self._weights = self._trunk.weights(self._dtype)
        self._constants = NatureWeights(*(weight.detach() for weight in self._weights))
        self._next = 0

    @torch.no_grad()
    def step(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> PolicyOutput:
        t = self._next
        if t >= self._num_steps:
            raise IndexError(f"a rollout has {self._num_steps} steps")
        self._next = t + 1
        return PolicyOutput(*self._policy.heads(self._run(observations, t)), None)

    @torch.no_grad()
    def bootstrap(self, observations: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        return self._policy.heads(self._run(observations, self._num_steps))[1]

    def replay(self) -> PolicyOutput:
        if self._next < self._num_steps:
            raise IndexError(f"only {self._next} of {self._num_steps} steps were made")
        rows = self._num_steps * self._batch_size
        weights = self._weights
        hidden = _picture(self._pixels[:rows])
        hidden = _convolution(hidden, weights.conv1, weights.bias1, _picture(self._hidden1[:rows]), 1)
        hidden = _convolution(hidden, weights.conv2, weights.bias2, _picture(self._hidden2[:rows]), 2)
        hidden = _convolution(hidden, weights.conv3, weights.bias3, _picture(self._hidden3[:rows]), 1)
        hidden = hidden.permute(0, 2, 3, 1).flatten(1)
        features = _linear(hidden, weights.full, weights.bias, self._features[:rows])
        return _unflatten(PolicyOutput(*self._policy.heads(features), None), self._num_steps)

    def _buffer(self, *shape: int) -> Tensor:
        """One row for each simulator and step, and for the bootstrap."""
        rows = (self._num_steps + 1) * self._batch_size
        return torch.empty(rows, *shape, dtype=self._dtype, device=self._device)

    def _run(self, observations: Tensor, t: int) -> Tensor:
        """Features [B, 512]; every layer's output goes to step t's rows of its buffer."""
        rows = slice(t * self._batch_size, (t + 1) * self._batch_size)
        weights = self._constants
        self._pixels[rows].copy_(patches(observations))
        hidden = functional.conv2d(_picture(self._pixels[rows]), weights.conv1, weights.bias1)
        hidden = torch.clamp_min(hidden, 0.0, out=_picture(self._hidden1[rows]))
        hidden = functional.conv2d(hidden, weights.conv2, weights.bias2, stride=2)
        hidden = torch.clamp_min(hidden, 0.0, out=_picture(self._hidden2[rows]))
        hidden = functional.conv2d(hidden, weights.conv3, weights.bias3)
        torch.clamp_min(hidden, 0.0, out=_picture(self._hidden3[rows]))
        features = functional.linear(self._hidden3[rows].flatten(1), weights.full, weights.bias)
        return torch.clamp_min(features, 0.0, out=self._features[rows])


def _picture(rows: Tensor) -> Tensor:
    """[B, height, width, channels] in memory -> [B, channels, height, width] in channels_last."""
    return rows.permute(0, 3, 1, 2)


def _unflatten(output: PolicyOutput, num_steps: int) -> PolicyOutput:
    parameters, value, state = output
    return PolicyOutput(parameters.unflatten(0, (num_steps, -1)), value.unflatten(0, (num_steps, -1)), state)


def _convolution(inputs: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor, stride: int) -> Tensor:
    """relu(conv2d(inputs, weight, bias, stride)), which is known to be `outputs`."""
    result: Tensor = _KnownConvolution.apply(inputs, weight, bias, outputs, stride)  # type: ignore[no-untyped-call]
    return result


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor) -> Tensor:
    """relu(linear(inputs, weight, bias)), which is known to be `outputs`."""
    result: Tensor = _KnownLinear.apply(inputs, weight, bias, outputs)  # type: ignore[no-untyped-call]
    return result


class _KnownConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(inputs, weight, outputs)
        ctx.stride = stride
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, outputs = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, outputs, 0.0)
        gradients = torch.ops.aten.convolution_backward(
            gradient,
            inputs,
            weight,
            [weight.shape[0]],
            [ctx.stride, ctx.stride],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [ctx.needs_input_grad[0], True, True],
        )
        return (*gradients, None, None)


class _KnownLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, outputs)
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, outputs = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, outputs, 0.0)
        return gradient @ weight, gradient.t() @ inputs, gradient.sum(0), None
