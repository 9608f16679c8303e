"""The daemon's answer to SIGHUP: a small file in `state/`, for the command that sent the signal.

    reload.json   {"begun_ns": …, "status": 0, "lines": […]}, written after each reload, whichever process asked for it

A signal is the request because the kernel checks who may send it: the daemon's own user and root.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import AnotherDaemonRuns, NoDaemon, NotAllowed
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.storage import locks
from lipsyncd.storage.files import read_json, write_json

ANSWER_FILE = "reload.json"
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True)
class Outcome:
    """How a reload ended. `status` is the exit status for a command: 0 when the settings were taken over."""

    status: int
    lines: Sequence[str]


def answer(state: Path, outcome: Outcome, *, begun_ns: int) -> None:
    """Leave the outcome of a reload that began at `begun_ns` of the monotonic clock. Raises OSError."""
    content = {"begun_ns": begun_ns, "status": outcome.status, "lines": list(outcome.lines)}
    write_json(state / ANSWER_FILE, content, mode=0o640)


def ask(state: Path, *, timeout_s: float) -> Outcome:
    """Have the daemon of this state folder read its settings again, and wait for the outcome.

    An outcome counts if its reload began after the signal was sent, so another one's is not taken for ours.

    Raises `NoDaemon`, `NotAllowed`, or `AnotherDaemonRuns` when no outcome comes in time.
    """
    pid = locks.holder_pid(state) if is_held(state) else None
    if pid is None:
        raise NoDaemon(f"no daemon runs with the state folder {state}", remedy="start it; it then reads its settings")
    sent_ns = time.monotonic_ns()
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        raise NoDaemon(f"the daemon of {state} has just ended", remedy="start it; it then reads its settings") from None
    except PermissionError:
        raise NotAllowed(
            f"the daemon (pid {pid}) belongs to another user", remedy="use sudo systemctl reload lipsyncd, or its user"
        ) from None
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = read_json(state / ANSWER_FILE) or {}
        if found.get("begun_ns", 0) >= sent_ns:
            return Outcome(int(found["status"]), [str(line) for line in found["lines"]])
        time.sleep(_LOOK_AGAIN_S)
    raise AnotherDaemonRuns(
        f"the daemon (pid {pid}) did not read its settings within {timeout_s:g} s", remedy="see its log"
    )
