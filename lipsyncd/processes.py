"""How another process ended, in words for a message."""

from __future__ import annotations

import os
import signal


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
