"""The GPU of a device: its model, its memory and how much is in use, as NVIDIA's library reports.

The library (NVML) comes with the driver; no Python package is needed. Without it, or if it does not answer, there is no
GPU for us. It makes no CUDA context.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from dataclasses import dataclass
from typing import Any

_OK = 0
_TEXT_BYTES = 128  # more than NVML's longest name, version and UUID
_DEVICE = re.compile(r"(?:auto|cuda)(?::(\d+))?")


@dataclass(frozen=True)
class Memory:
    """Of one GPU, in GB (10^9 bytes)."""

    used_gb: float
    total_gb: float


@dataclass(frozen=True)
class Gpu:
    """One GPU: its model, the version of its driver, its present memory."""

    name: str
    driver: str
    memory: Memory


class _NvmlMemory(ctypes.Structure):
    """nvmlMemory_t of NVIDIA's nvml.h; all in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def memory(device: str) -> Memory | None:
    """The memory of the GPU of a device: "auto" and "cuda" mean the first GPU. None without a GPU."""
    library = _library()
    handle = _handle(library, device)
    return None if handle is None else _memory(library, handle)


def find(device: str) -> Gpu | None:
    """The GPU of a device, named as in `memory`."""
    library = _library()
    handle = _handle(library, device)
    found = None if handle is None else _memory(library, handle)
    if handle is None or found is None:
        return None
    name, driver = ctypes.create_string_buffer(_TEXT_BYTES), ctypes.create_string_buffer(_TEXT_BYTES)
    size = ctypes.c_uint(_TEXT_BYTES)
    library.nvmlDeviceGetName(handle, name, size)
    library.nvmlSystemGetDriverVersion(driver, size)
    return Gpu(name.value.decode(errors="replace"), driver.value.decode(errors="replace"), found)


def uuid(device: str) -> str:
    """What names the GPU of a device on this machine, whatever its number: its UUID. "" without a GPU.

    `CUDA_VISIBLE_DEVICES` renumbers the GPUs of a process: the device's number counts in that list. An entry that is a
    UUID itself, also of a part of a GPU (MIG), stands for itself.
    """
    match = _DEVICE.fullmatch(device)
    library = _library()
    if match is None or library is None:
        return ""
    number = int(match[1] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        entries = [entry.strip() for entry in visible.split(",")]
        entry = entries[number] if number < len(entries) else ""
        if not entry.isdecimal():
            return entry if entry.startswith(("GPU-", "MIG-")) else ""
        number = int(entry)
    handle, text = _handle(library, f"cuda:{number}"), ctypes.create_string_buffer(_TEXT_BYTES)
    found = handle is not None and library.nvmlDeviceGetUUID(handle, text, ctypes.c_uint(_TEXT_BYTES)) == _OK
    return text.value.decode(errors="replace") if found else ""


def _handle(library: Any, device: str) -> ctypes.c_void_p | None:
    match = _DEVICE.fullmatch(device)
    handle = ctypes.c_void_p()
    if match is None or library is None:
        return None
    found = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(match[1] or 0)), ctypes.byref(handle))
    return handle if found == _OK else None


def _memory(library: Any, handle: ctypes.c_void_p) -> Memory | None:
    found = _NvmlMemory()
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found)) != _OK:
        return None
    return Memory(found.used / 1e9, found.total / 1e9)


def sight() -> tuple[str, ...]:
    """A value that changes when a GPU or its driver comes or goes: the nodes in /dev, and whether NVML answers."""
    nodes = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
    return (*nodes, "nvml") if _library() is not None else tuple(nodes)


_found: list[Any] = []


def _library() -> Any:
    """NVML, initialised; None while it is not installed or finds no driver, which may change."""
    if not _found:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2() == _OK:
                _found.append(library)
    return _found[0] if _found else None
