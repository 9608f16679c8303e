"""Other processes: how one ended, in words for a message, and how many files it may open."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

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
