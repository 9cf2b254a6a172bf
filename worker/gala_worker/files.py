"""What is checked of folders and of tensors before they are written, and how tensors are written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gala.errors import UsageError


def make_directory(path: Path) -> None:
    """Makes a folder to write to, before any work: without it, a run would say so only when its checkpoint is due.

    Raises:
        UsageError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from error


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor whose values are not all finite numbers, or of a kind that torch does not compute with."""
    for name, tensor in tensors.items():
        try:
            finite = not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
        except RuntimeError:  # NotImplementedError: of most kinds of 8 and fewer bits
            finite = False
        if not finite:
            return name
    return None


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as safetensors takes them: on the CPU, contiguous, and no two in one storage."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().to("cpu").contiguous()
        storage = dense.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != dense.nbytes:
            dense = dense.clone()
        plain[name] = dense
        storages.add(dense.untyped_storage().data_ptr())
    return plain
