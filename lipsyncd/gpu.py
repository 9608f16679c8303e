"""How much memory the GPU has and how much of it is taken, asked of NVIDIA's own library without any Python package.

The library comes with the driver. Where there is none, or it does not answer, there is no GPU to speak of.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from dataclasses import dataclass
from functools import cache

_OK = 0


@dataclass(frozen=True)
class Memory:
    """Of one GPU, in GB (10^9 bytes)."""

    used_gb: float
    total_gb: float


class _NvmlMemory(ctypes.Structure):
    """nvmlMemory_t of NVIDIA's nvml.h; all in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def memory(device: str) -> Memory | None:
    """The memory of the GPU that a device name means: "auto" and "cuda" are the first. None without a GPU."""
    match = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?", device)
    library = _library() if match else None
    if match is None or library is None:
        return None
    handle, found = ctypes.c_void_p(), _NvmlMemory()
    if library.nvmlDeviceGetHandleByIndex_v2(int(match[1] or 0), ctypes.byref(handle)) != _OK:
        return None
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found)) != _OK:
        return None
    return Memory(found.used / 1e9, found.total / 1e9)


@cache
def _library() -> ctypes.CDLL | None:
    """NVML, ready to be asked; None where it is not installed or finds no driver."""
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() == _OK:
            return library
    return None
