"""Products of matrices on the way through a fully connected layer and back.

torch leaves float32 to MKL on an x86 CPU, which makes half of what the hardware can on one that is not Intel's: 105
GFLOP/s on a core of an AMD EPYC where oneDNN, which does the convolutions, makes 245. So oneDNN does these products
too, by the operator that torch's own compiler uses for it; where there is none, nothing is different but the speed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _find() -> Callable[..., Tensor] | None:
    """Takes inputs [B, I], weight [O, I], bias [O] or None, an activation, its scalars and its algorithm; [B, O]."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if platform.machine() not in ("x86_64", "AMD64") or not has_onednn:
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_onednn = _find()


def linear_relu(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(inputs [B, I] times the transpose of weight [O, I], plus bias [O]): [B, O]. No graph."""
    if _onednn is not None and _is_slow(inputs):
        return _onednn(inputs, weight, bias, "relu", [], "")
    return functional.linear(inputs, weight, bias).relu_()


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [M, K] times right [K, N]: [M, N]; both may be transposed views. No graph."""
    if _onednn is not None and _is_slow(left):
        return _onednn(left, right.t(), None, "none", [], "")
    return left @ right


def _is_slow(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu"
