"""Processes: how another one ended, in words for a message, how many files it may open, how many cores it may use."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

_MOST_FILES = 65_536  # more than the daemon can use; some programs walk through all that they may open
_inherited: list[tuple[int, int]] = []


def raise_file_limit() -> int:
    """Let this process open as many files as it may; returns how many that is.

    The limit with which processes start is 1024, since `select` cannot handle larger descriptors: nothing in this
    process may use it. Source: file-descriptor limits, systemd.exec(5).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        _inherited[:] = [(soft, hard)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def give_back_file_limit(pid: int) -> None:
    """Give a child that was just started the limit with which this process started: it may use `select`."""
    for limits in _inherited:
        with contextlib.suppress(OSError):  # it has ended already
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def exit_text(status: int) -> str:
    """A `returncode` of `subprocess` as a verb: "exited with status 3", "was killed by SIGSEGV"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-status}"


def last_line(output: str) -> str:
    """The last line of a process's output that is not blank; "" when there is none."""
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "")


def last_lines(descriptor: int, count: int = 3, most_bytes: int = 2000) -> str:
    """The last lines that a process wrote into an open file, joined by " | "; "" when there are none."""
    start = max(0, os.fstat(descriptor).st_size - most_bytes)
    lines = os.pread(descriptor, most_bytes, start).decode(errors="replace").splitlines()
    return " | ".join([line.strip() for line in lines if line.strip()][-count:])


def usable_cores(environ: Mapping[str, str] = os.environ, cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many threads that compute this process should have, at least 1.

    As many as the cores that it may run on and the time that its control group gives it, rounded up; OMP_NUM_THREADS
    lowers it. Source: `cpu.max` of cgroup v2.
    """
    cores = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        place = next((line[4:] for line in lines if line.startswith("0::/")), None)
        if place is not None:
            below = cgroups / place
            cores = min(
                [cores, *(_cpu_quota(group) for group in (below, *below.parents) if cgroups in (group, *group.parents))]
            )
    wanted = environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        cores = min(cores, int(wanted))
    return max(math.ceil(cores), 1)


def _cpu_quota(group: Path) -> float:
    """How many cores' time a control group gives; infinite where nothing limits it."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max", or no such file
        return math.inf
