"""How much of a device a render may take, and what to do when that is too little.

Owns the cap, the batch size that fits, and the signs of exhaustion. Leaves what is computed to `pipeline`.
"""

from __future__ import annotations

import ctypes
import resource
from contextlib import AbstractContextManager, nullcontext

import torch

from lipsyncd.errors import OutOfMemory

GB = 10**9
# A batch pays because the UNet's 1.6 GiB are read once for it; beyond 16 frames that is nothing any more.
_LARGE_BATCH, _SMALL_BATCH, _LARGE_FROM_GB = 16, 8, 8
MOST = 64
_DRIVER_GB = 0.6  # a context of CUDA with cuDNN and cuBLAS
# What torch's other allocators say, for which it has no class of their own. The last one is oneDNN's: it says no more
# when it finds no room for the scratch space or the code of a convolution.
_SIGNS = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
    "could not create a primitive",
)


def cap(device: torch.device, most_gb: float) -> None:
    """Let this process take at most `most_gb` of the device's memory; more raises an error that `exhausted` knows.

    On a GPU the driver's own part of every process is taken off first: torch does not count it. On a CPU the kernel
    holds this process to it, and by inheritance its encoder for itself.
    """
    if device.type == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = int(most_gb * GB)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        ours = max(most_gb - _DRIVER_GB, 0.1) * GB
        torch.cuda.set_per_process_memory_fraction(min(ours / total, 1.0), device)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one of this thread: events belong to the current one, and each thread has its own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def give_back(device: torch.device) -> None:
    """Return what the allocator holds in reserve to the device, for other programs and for another try."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif (libc := ctypes.CDLL(None)) and hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)


def peak_gb(device: torch.device) -> float | None:
    """The most that tensors took since the start of the process or the last look; None where nobody counts."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / GB
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def exhausted(error: Exception) -> bool:
    """Does this error of torch mean that memory ran out?"""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _SIGNS)


class Batch:
    """How many frames a device takes at a time. What did not fit is remembered until `allow`: the daemon keeps it."""

    def __init__(self, device: torch.device, most_gb: float) -> None:
        self._usual = 1  # a CPU gains nothing, and would say less often how far it is
        self._most = MOST
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory / GB
            self._usual = _LARGE_BATCH if min(most_gb, total) >= _LARGE_FROM_GB else _SMALL_BATCH

    def size(self, wanted: int | None = None) -> int:
        """The size to use: what a job wants, or what suits the device, but never what did not fit before."""
        return min(wanted or self._usual, self._most)

    def allow(self, most: int) -> None:
        """Begin a job that may try up to `most` frames at a time; 0 sets no bound."""
        self._most = min(most, MOST) if most > 0 else MOST

    def halve(self, size: int) -> None:
        """A batch of `size` did not fit. Raises `OutOfMemory` when there is nothing to halve."""
        if size <= 1:
            raise OutOfMemory("a single frame does not fit into the memory that the render may take")
        self._most = min(self._most, size // 2)
