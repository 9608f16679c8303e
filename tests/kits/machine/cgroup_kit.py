"""A control group with a memory limit, for tests in which the kernel really kills a process for want of memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Gives `cgroup.procs` of a new group: a process whose id is written there joins it, with its later children.

    Skips the test if this user cannot make control groups.
    """
    group = _make(limit_bytes)
    try:
        yield group / "cgroup.procs"
    finally:
        deadline = time.monotonic() + 20
        while group.exists() and time.monotonic() < deadline:
            with suppress(OSError):  # one of its processes has not ended yet
                group.rmdir()
            time.sleep(0.02)


def _make(limit_bytes: int) -> Path:
    failures = []
    for top, version in _tops():
        group = top / f"lipsyncd-test-{os.getpid()}"
        try:
            if version == 2:
                (top / "cgroup.subtree_control").write_text("+memory")
            group.mkdir()
            limit, swap = ("memory.max", "memory.swap.max") if version == 2 else ("memory.limit_in_bytes", None)
            (group / limit).write_text(str(limit_bytes))
            if swap is None:
                swap, allowed = "memory.memsw.limit_in_bytes", str(limit_bytes)  # of memory and swap together
            else:
                allowed = "0"
            if (group / swap).exists():
                (group / swap).write_text(allowed)
        except OSError as error:
            failures.append(f"{group}: {error.strerror}")
            if group.exists():
                group.rmdir()
            continue
        return group
    pytest.skip(f"no control group with a limit of memory can be made here: {'; '.join(failures) or 'none is mounted'}")


def _tops() -> Iterator[tuple[Path, int]]:
    """Mount points of the hierarchies with the memory controller, each with its version."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, _, options = fields[fields.index("-") + 1 :]
        top = Path(fields[4])
        if kind == "cgroup2" and "memory" in (top / "cgroup.controllers").read_text().split():
            yield top, 2
        if kind == "cgroup" and "memory" in options.split(","):
            yield top, 1
