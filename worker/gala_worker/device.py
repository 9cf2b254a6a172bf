"""Where a learner computes, and in which precision."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# <malloc.h>; blocks of 32 MiB and more are still mapped and returned one by one.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM_BYTES, _MMAP_BYTES = 512 << 20, 32 << 20


def choose_device(rank: int, gpus: int) -> torch.device:
    """A GPU if the run asks for GPUs and the machine has one, else the CPU.

    Learners that see several GPUs spread over them by rank; learners that see one share it.
    """
    if gpus > 0:
        if torch.cuda.is_available():
            return torch.device("cuda", rank % torch.cuda.device_count())
        log.warning("worker.gpus is %d, but PyTorch finds no CUDA device here: computing on the CPU", gpus)
    return torch.device("cpu")


def prepare(device: torch.device) -> None:
    """Sets how this process computes, and on a GPU TensorFloat-32 and tuned convolutions."""
    # An exponent below float32's range costs a hundredfold in a multiplication and nothing in accuracy.
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def _keep_freed_memory() -> None:
    """Has glibc reuse freed blocks of megabytes instead of returning them to the kernel; elsewhere nothing happens.

    An update allocates and frees the same activations and gradients as the one before. By default they come as fresh
    pages each time: some 2,000 page faults and 5 ms per update of the convolutional network, measured.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def choose_threads(threads: int, *, convolutional: bool) -> int:
    """Compute threads of a learner that may have `threads`: one, unless its network is worth sharing out.

    A second thread does not make a small network faster, and where the cores are busy it makes it many times slower: in
    each operation one thread spins while the other one waits for a core.
    """
    return threads if convolutional else 1


def choose_compute_type(precision: str, *, convolutional: bool, device: torch.device) -> torch.dtype:
    """The type that the trunks compute in; parameters, losses and the optimiser are float32 always.

    `auto` is bfloat16 for the convolutional network where the hardware multiplies it natively, else float32: see
    docs/results for the learning curves behind that. Small networks gain nothing from it. Who asks for bfloat16 gets it
    and is told where it costs time (docs/performance.md: four times as much).
    """
    if precision == "auto":
        precision = "bfloat16" if convolutional and has_bfloat16(device) else "float32"
    elif precision == "bfloat16" and not has_bfloat16(device):
        log.warning(
            "precision is bfloat16, which this %s does not seem to have in hardware: where it is emulated, an update "
            "takes several times as long; auto computes in float32 here",
            "CPU" if device.type == "cpu" else "GPU",
        )
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
