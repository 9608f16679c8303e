"""How much room a disk has, and when work has to wait for more. The floor is the setting `paths.min_free_mb`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lipsyncd.errors import DiskLow


def free_mb(folder: Path | int) -> float:
    """Space that we may still use there, in megabytes (10^6 bytes). `folder` is a path or a descriptor."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize / 1e6


def shortage(folder: Path, floor_mb: float) -> str:
    """What is missing on the folder's disk, in one sentence; "" while it has `floor_mb` free."""
    return lack(str(folder), free_mb(folder), floor_mb)


def lack(where: str, free: float, floor_mb: float) -> str:
    """`shortage`, for a folder whose free space, in megabytes, is known."""
    return f"{where} has {free:.0f} MB free; {floor_mb:.0f} MB are needed" if free < floor_mb else ""


def require(folder: Path, floor_mb: float) -> None:
    """Raises `DiskLow` when the folder's disk has less than `floor_mb` free."""
    if found := shortage(folder, floor_mb):
        raise DiskLow(found)


def says_full(error: Exception) -> bool:
    """Was it a disk without room? Also when a program that we ran reports it in its own words."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
