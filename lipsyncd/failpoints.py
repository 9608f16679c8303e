"""Named places where a test may end the process, as a power cut would.

`LIPSYNCD_FAIL=name` kills this process with SIGKILL the first time that it reaches `name`; `name:3` the third time.
Without the variable a failpoint costs one comparison. The names that exist are found by `tests/test_recovery.py`.
"""

from __future__ import annotations

import os
import signal

_ARMED, _, _count = os.environ.get("LIPSYNCD_FAIL", "").partition(":")
_left = int(_count) if _count.isdigit() else 1


def reach(name: str) -> None:
    """Say that the work has come this far."""
    if name == _ARMED:
        _die_when_due()


def _die_when_due() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
