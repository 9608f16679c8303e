"""How torch computes: the kernels that it may choose on a GPU, the precision of float32, and what the device can do.

torch's switches count for the whole process, so each is set around the calls that need it and put back afterwards. The
networks run on one thread at a time, see `painting.pipeline`.

Owns torch's global switches, which change nothing on a CPU, and the facts about a device.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_switching = threading.RLock()


def use_defaults() -> None:
    """What holds outside of the contexts below: kernels that give the same result each time, chosen without trials.

    A trial picks the kernel that happened to be the fastest, so two processes would differ by single levels.
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@contextmanager
def true_float32() -> Iterator[None]:
    """Compute in real float32. Since Ampere torch computes convolutions in TF32, whose mantissa has 10 bits, not 23.

    One thread at a time: else the first to leave would switch TF32 on for the other one.
    """
    with (
        _switching,
        _switched(torch.backends.cudnn, "allow_tf32", False),
        _switched(torch.backends.cuda.matmul, "allow_tf32", False),
    ):
        yield


@contextmanager
def _switched(place: Any, name: str, value: bool) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def device_name(device: torch.device) -> str:
    """The model of a GPU or a processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_field("model name") or platform.machine()


def has_bfloat16() -> bool:
    """Does the processor multiply bfloat16 in hardware? Elsewhere it is slower than float32."""
    flags = _cpu_field("flags").split() + _cpu_field("Features").split()
    return bool({"avx512_bf16", "amx_bf16", "bf16"}.intersection(flags))


def _cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; "" where it is missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
