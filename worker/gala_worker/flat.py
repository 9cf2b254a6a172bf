"""All parameters of a learner in one contiguous vector.

Place in the flow: `worker.py` packs the policy once, at start. From then on the optimiser, the gossip and the
checkpoints work on vectors, and the module's parameters are windows into them: mixing is one fused operation, a
snapshot is one copy, and the wire carries one buffer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schema:
    """Names, shapes and types of what a vector holds, in order. Learners with different schemas refuse each other."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, over every name, shape and type."""
        lines = (f"{n} {tuple(s)} {d}" for n, s, d in zip(self.names, self.shapes, self.dtypes, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def describes(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it is these tensors, in whatever order, that the vector holds."""
        found = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
        types = (f"torch.{dtype}" for dtype in self.dtypes)
        return found == dict(zip(self.names, zip(self.shapes, types, strict=True), strict=True))

    @cached_property
    def num_elements(self) -> int:
        """Length of the vector."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)


class FlatState:
    """A module's parameters, then its gossiped float buffers, as one float32 vector.

    Attributes:
        vector: `[N]`, everything that neighbours mix.
        trainable: `[P]`, the first P elements: what the optimiser changes.
        gradient: `[P]`, in the order of `trainable`: what `differentiate` left there.
    """

    def __init__(self, module: nn.Module, gossiped_buffers: Iterable[str] = ()) -> None:
        """Re-seats the parameters of `module`; hold no tensor of it from before this call.

        Raises:
            TypeError: a parameter or gossiped buffer is not float32.
        """
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        chosen: dict[str, Tensor] = {**parameters, **{name: buffers[name] for name in gossiped_buffers}}
        for name, tensor in chosen.items():
            if tensor.dtype is not torch.float32:
                raise TypeError(f"{name} is {tensor.dtype}: only float32 can be packed")
        self.schema = Schema(tuple(chosen), tuple(tuple(t.shape) for t in chosen.values()), ("float32",) * len(chosen))
        num_trainable = sum(p.numel() for p in parameters.values())
        device = next(iter(chosen.values())).device
        self.vector = torch.empty(self.schema.num_elements, device=device)
        self.trainable = self.vector[:num_trainable]
        self.gradient = torch.zeros(num_trainable, device=device)
        self._parameters = tuple(parameters.values())
        offset = 0
        with torch.no_grad():
            for tensor in chosen.values():
                window = slice(offset, offset + tensor.numel())
                offset = window.stop
                view = self.vector[window].view(tensor.shape)
                view.copy_(tensor)
                tensor.data = view

    def differentiate(self, loss: Tensor) -> None:
        """`gradient` becomes that of `loss`, a scalar; zeros where a parameter has no part in it."""
        parts = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        torch.cat([part.flatten() for part in parts], out=self.gradient)

    def tensors(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """Copies of the named tensors of `vector` (default: the current one), on the CPU."""
        source = (self.vector if vector is None else vector).detach().to("cpu", copy=True)
        sizes = [torch.Size(shape).numel() for shape in self.schema.shapes]
        parts = torch.split(source, sizes)
        return {
            name: part.view(shape).clone()
            for name, shape, part in zip(self.schema.names, self.schema.shapes, parts, strict=True)
        }
