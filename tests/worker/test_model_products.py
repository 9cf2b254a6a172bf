"""Products of matrices are those of torch, whoever computes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gala_worker.model import products

ANYONE = pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "torch"])
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def _choose(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not onednn:
        monkeypatch.setattr(products, "_onednn", None)
    elif products._onednn is None:
        pytest.skip("torch has no oneDNN on this machine")


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if actual.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@ANYONE
@TYPES
def test_a_layer_with_relu_equals_torchs(onednn: bool, dtype: torch.dtype) -> None:
    inputs, weight, bias = some(dtype, 5, 33), some(dtype, 7, 33), some(dtype, 7)
    result = products.linear_relu(inputs, weight, bias)
    assert result.dtype is dtype
    close(result, functional.linear(inputs.float(), weight.float(), bias.float()).relu())
    assert (result == 0).any()


@ANYONE
@TYPES
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_a_product_takes_matrices_as_they_lie_or_transposed(
    onednn: bool, dtype: torch.dtype, transposed: tuple[bool, bool]
) -> None:
    left = some(dtype, 33, 5).t() if transposed[0] else some(dtype, 5, 33)
    right = some(dtype, 7, 33).t() if transposed[1] else some(dtype, 33, 7)
    result = products.product(left, right)
    assert result.is_contiguous()
    close(result, left.float() @ right.float())
