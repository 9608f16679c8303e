"""How another process ended, in words for a message."""

from __future__ import annotations

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
