"""How much of a device's memory a render may use, and which batch size fits into it.

Owns the limit, the batch size, what happens to unused memory, and the recognition of out-of-memory errors. Leaves the
computation to `painting.pipeline`.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from lipsyncd.errors import OutOfMemory
from lipsyncd.jobs.options import MAX_BATCH

GB = 10**9
# A batch is faster because the UNet's 1.6 GiB are read once for all its frames; beyond 16 frames this gains nothing.
_LARGE_BATCH, _SMALL_BATCH, _LARGE_FROM_GB = 16, 8, 8
_TIGHT_PART = 0.1  # of a device's memory: with less than this free, unused memory is not kept for the next job
_DRIVER_GB = 0.6  # a CUDA context with cuDNN and cuBLAS
# Out-of-memory messages of allocators for which torch has no exception class. The last one is oneDNN's, which gives no
# other reason when there is no memory for the scratch space or the code of a convolution.
_MESSAGES = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
    "could not create a primitive",
)


def limit_memory(device: torch.device, most_gb: float) -> None:
    """Limit this process to `most_gb` of the device's memory; beyond that torch raises, see `is_out_of_memory`.

    On a GPU the driver's own memory of each process is subtracted first, since torch does not count it. On a CPU the
    kernel enforces the limit for this process, and separately for its encoder, which inherits it.
    """
    if device.type == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = int(most_gb * GB)
        resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        ours = max(most_gb - _DRIVER_GB, 0.1) * GB
        torch.cuda.set_per_process_memory_fraction(min(ours / total, 1.0), device)


def current_gpu(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one of this thread: events belong to the current GPU, which each thread has of its own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def release_memory(device: torch.device) -> None:
    """Return the allocator's unused memory to the device, for other programs or for another attempt."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif (libc := ctypes.CDLL(None)) and hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)


class UnusedMemory:
    """Returns the allocator's unused memory after jobs, where the setting asks for it.

    Freeing blocks and allocating them again costs the next job 50 to 150 ms on a GPU. So they are freed when the
    process rests; after the job itself only where others need them, since the device is nearly full.
    """

    def __init__(
        self,
        wanted: bool,
        *,
        release: Callable[[], None],
        room: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        """
        wanted   the setting `render.clear_cache`
        release  returns the memory
        room     free and total bytes of the device; None: unknown
        """
        self._wanted, self._release, self._room = wanted, release, room
        self._due = False

    def end_job(self) -> None:
        """To be called after each job."""
        self._due = self._wanted
        room = self._room() if self._due else None
        if room is not None and room[0] < _TIGHT_PART * room[1]:
            self.rest()

    def rest(self) -> None:
        """To be called when no job waits."""
        if self._due:
            self._due = False
            self._release()


def free_and_total(device: torch.device) -> tuple[int, int] | None:
    """Bytes of the device that are free for any process, and all of them; None on a CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def peak_gb(device: torch.device) -> float | None:
    """The peak of tensor memory since the start of the process or the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / GB
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def is_out_of_memory(error: Exception) -> bool:
    """Does this error of torch mean that memory ran out?"""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _MESSAGES)


class BatchSize:
    """How many frames a device processes at a time. It shrinks after a failure, until `start_job` sets it again.

    The daemon remembers across jobs which sizes did not fit.
    """

    def __init__(self, device: torch.device, most_gb: float) -> None:
        self._usual = 1  # a CPU gains nothing from more, and would report progress less often
        self._most = MAX_BATCH
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory / GB
            self._usual = _LARGE_BATCH if min(most_gb, total) >= _LARGE_FROM_GB else _SMALL_BATCH

    def size(self, wanted: int | None = None) -> int:
        """The size to use: the one a job requests, or the device's usual one, but none that did not fit before."""
        return min(wanted or self._usual, self._most)

    def start_job(self, most: int) -> None:
        """Begin a job that may try up to `most` frames at a time; 0 means no bound."""
        self._most = min(most, MAX_BATCH) if most > 0 else MAX_BATCH

    def halve(self, size: int) -> None:
        """Use half of `size`, which did not fit. Raises `OutOfMemory` when that was one frame."""
        if size <= 1:
            raise OutOfMemory("a single frame does not fit into the memory that the render may use")
        self._most = min(self._most, size // 2)
